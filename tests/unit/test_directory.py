"""The claim on the data directory."""

from pathlib import Path

import pytest

from lading.oci.errors import DataDirectoryInUse
from lading.web.directory import claimed

OURS, OTHERS = "0123456789abcdef", "fedcba9876543210"


def test_servers_on_the_same_sockets_share_a_directory_once_it_is_prepared(tmp_path: Path) -> None:
    """One takes the other's place, and only the first may change what is there already."""
    with claimed(tmp_path, OURS) as first:
        assert first.alone
        with pytest.raises(DataDirectoryInUse), claimed(tmp_path, OURS):
            pass
        first.share()

        with claimed(tmp_path, OURS) as second:
            assert not second.alone
            second.share()
            first.ends_within(0)
            with claimed(tmp_path, OURS) as third:
                assert not third.alone


@pytest.mark.parametrize("sockets", [OTHERS, None])
def test_a_server_elsewhere_is_refused_as_long_as_one_is_left(tmp_path: Path, sockets: str | None) -> None:
    """It was started by mistake; and so is refused what must have the directory for itself, such as a restore."""
    with claimed(tmp_path, OURS) as first:
        first.share()
        with claimed(tmp_path, OURS):
            with pytest.raises(DataDirectoryInUse), claimed(tmp_path, sockets):
                pass
            with claimed(tmp_path, OURS) as third:
                assert not third.alone

    with claimed(tmp_path, sockets) as alone:
        assert alone.alone


def test_a_server_that_was_passed_no_sockets_shares_with_nobody(tmp_path: Path) -> None:
    """Its port is its own, and so is the directory."""
    with claimed(tmp_path) as first:
        first.share()

        with pytest.raises(DataDirectoryInUse, match="another Lading server is using"), claimed(tmp_path, OURS):
            pass
