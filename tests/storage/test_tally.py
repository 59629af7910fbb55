"""The bytes of all unfinished uploads: this process's own at once, the others' by counting."""

from pathlib import Path

import pytest

from lading.oci.errors import TooManyUploads
from lading.storage.tally import StagedBytes


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Return a folder with two staging files of 1,000 bytes together."""
    (tmp_path / "one").write_bytes(b"1" * 400)
    (tmp_path / "two").write_bytes(b"2" * 600)
    return tmp_path


def test_a_count_sees_what_others_have_written(uploads: Path) -> None:
    """A process that has just begun knows nothing of the sessions that are open."""
    staged = StagedBytes(uploads, most_bytes=1500)
    assert staged.is_due

    staged.count()

    staged.refuse_if_crowded(500)
    with pytest.raises(TooManyUploads, match=r"uploads\.max_bytes"):
        staged.refuse_if_crowded(501)
    assert not staged.is_due


def test_own_changes_count_at_once(uploads: Path) -> None:
    """One stream must not run past the limit between two counts, nor be held back by what has gone."""
    staged = StagedBytes(uploads, most_bytes=1500)
    staged.count()

    staged.add(400)

    with pytest.raises(TooManyUploads):
        staged.refuse_if_crowded(101)
    staged.add(-1400)
    staged.refuse_if_crowded(1500)


def test_without_a_limit_nothing_is_counted(uploads: Path) -> None:
    """Ten thousand files need not be looked at for a limit that nobody has set."""
    staged = StagedBytes(uploads, most_bytes=None)

    assert not staged.is_due
    staged.refuse_if_crowded(2**62)
