"""Builds with one safety taken out: the tests that guard it fail on each, and say why."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capability.preloaded import Preloaded
from tests.faults.checker import Checker
from tests.faults.controls import DIGEST_NAMED_KEYS, NO_BOOT_RULE, NO_SYNC, ROW_BEFORE_BYTES, Control
from tests.faults.crash_points import OPERATIONS, Ground, Operation
from tests.faults.injector import When
from tests.faults.power import FILE_SYSTEMS
from tests.faults.preloaded import PreloadedRegistry
from tests.faults.test_object_keys import assert_all_pullable, heal
from tests.faults.test_power_cut import cut_again_and_again

MOST_CUTS = 12
MOST_ROUNDS = 60
FILE_SYSTEM = {file_system.name: file_system for file_system in FILE_SYSTEMS}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory, for trees and for data that no power cut is about."""
    path = Path(tempfile.mkdtemp(prefix="lading-control-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("file_system", ["ext4-ordered", "xfs"])
def test_a_build_without_fsync_fails_in_a_power_cut(folder: Path, seed: str, file_system: str) -> None:
    """The kernel has the bytes, the disk does not: blobs with a 201 are gone, or are zeros."""
    tree = NO_SYNC.build(folder)

    with pytest.raises(AssertionError, match=r"(?s)holds .*expected|other bytes") as found:
        cut_again_and_again(FILE_SYSTEM[file_system], MOST_CUTS, seed, tree=tree)

    tell(NO_SYNC, found.value)


def test_a_build_without_the_boot_rule_fails_in_a_power_cut_before_the_put(folder: Path, seed: str) -> None:
    """It believes the digest of bytes that another boot has seen, and answers 201 for whatever is there now."""
    tree = NO_BOOT_RULE.build(folder)

    with pytest.raises(AssertionError, match="other bytes") as found:
        cut_again_and_again(FILE_SYSTEM["ext4-writeback-nodelalloc"], MOST_CUTS, seed, tree=tree)

    tell(NO_BOOT_RULE, found.value)


def test_a_build_that_writes_the_row_first_fails_at_a_crash_point(folder: Path, seed: str) -> None:
    """Between its row and its bytes there is a blob that does not exist."""
    (push,) = [operation for operation in OPERATIONS if operation.name == "push"]
    with Preloaded(tree=ROW_BEFORE_BYTES.build(folder)) as parent, Ground(folder, parent, seed) as ground:
        calls = ground.calls(push)
        linked = next(number for number, call in enumerate(calls, 1) if call.startswith("link "))

        with pytest.raises(AssertionError, match=r"its object .* is not there") as found:
            try_around(ground, push, linked)

    tell(ROW_BEFORE_BYTES, found.value)


def try_around(ground: Ground, operation: Operation, point: int) -> None:
    """Try a point and its neighbours: the server's own jobs make calls, too, so no two runs count alike."""
    for shift in (0, -1, 1, -2, 2, -3, 3):
        ground.try_point(operation, point + shift, When.BEFORE)


def test_a_build_with_digest_named_keys_fails_when_pushes_meet(folder: Path) -> None:
    """What the slower push throws away as its own is what the quicker one has its 201 for."""
    with Preloaded(tree=DIGEST_NAMED_KEYS.build(folder)) as parent:
        server = PreloadedRegistry(folder, parent)
        server.start()
        try:
            with pytest.raises(AssertionError, match="expected 200") as found:
                assert_all_pullable(server, MOST_ROUNDS)
            heal(server)
            reused = [problem for problem in Checker(server.data).problems() if "doomed" in problem]
        finally:
            server.close()

    tell(DIGEST_NAMED_KEYS, found.value)
    assert reused, "no key was used again"
    print(reused[0])


def tell(control: Control, error: AssertionError) -> None:
    """Print what the tests had to say of a control build."""
    print(f"{control.name}: {' '.join(str(error).split())[:300]}")
