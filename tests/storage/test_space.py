"""Free space: the floor, and the ballast that is never larger."""

import os
from pathlib import Path

import pytest

from lading.oci.errors import StorageFull
from lading.storage.space import Space

MIB = 1 << 20
FLOOR_BYTES = 8 * MIB


def held_bytes(data: Path) -> int:
    """Return the blocks that the ballast holds."""
    return sum(path.stat().st_blocks * 512 for path in (data / "ballast").iterdir())


def free_bytes(data: Path) -> int:
    """Return what an ordinary user may still write there."""
    status = os.statvfs(data)
    return status.f_bavail * status.f_frsize


def test_what_would_go_below_the_floor_is_refused(tmp_path: Path) -> None:
    """Refused before it is written: afterwards it would be too late for the deletes."""
    space = Space(tmp_path, floor_bytes=FLOOR_BYTES)

    space.refuse_if_scarce(1)

    with pytest.raises(StorageFull):
        space.refuse_if_scarce(free_bytes(tmp_path) + MIB)


def test_a_floor_of_nothing_refuses_nothing(tmp_path: Path) -> None:
    """Some will want their last byte used."""
    Space(tmp_path, floor_bytes=0).refuse_if_scarce(free_bytes(tmp_path) - 64 * MIB)


def test_the_ballast_holds_a_quarter_of_the_floor(tmp_path: Path) -> None:
    """Given up, it leaves less than the floor: no upload can take it."""
    space = Space(tmp_path, floor_bytes=FLOOR_BYTES)

    space.hold_ballast()
    held = held_bytes(tmp_path)
    space.hold_ballast()

    assert FLOOR_BYTES // 4 <= held == held_bytes(tmp_path) < FLOOR_BYTES


def test_the_ballast_is_given_up_once(tmp_path: Path) -> None:
    """Who asks a second time must hear that there is nothing more to hope for."""
    space = Space(tmp_path, floor_bytes=FLOOR_BYTES)
    space.hold_ballast()

    assert space.give_up_ballast()

    assert held_bytes(tmp_path) == 0
    assert not space.give_up_ballast()


def test_a_directory_without_a_ballast_has_none_to_give(tmp_path: Path) -> None:
    """A data directory of an older Lading, or one that never had room."""
    assert not Space(tmp_path).give_up_ballast()


def test_the_ballast_is_not_made_of_the_floor(tmp_path: Path) -> None:
    """It would stop the pushes that it is not there for."""
    space = Space(tmp_path, floor_bytes=free_bytes(tmp_path) + MIB)

    space.hold_ballast()

    assert held_bytes(tmp_path) == 0
