"""The tree is killed at every mutating system call of an operation; at each of these points, what is left is whole."""

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capability.preloaded import Preloaded
from tests.faults.conftest import FULL
from tests.faults.crash_points import COLLECTION, OPERATIONS, CollectionGround, Ground, Operation, enumerate_points
from tests.faults.injector import When

SAMPLED = {"push": 8, "collection": 6}
SAMPLED_OTHERS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def ground(seed: str) -> Iterator[Ground]:
    """Return the ground of all points, in memory: a kill leaves what the kernel was given, wherever that is kept."""
    with in_memory() as folder, Preloaded() as parent, Ground(folder, parent, seed) as ground:
        yield ground


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """Make a folder, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lading-points-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name.replace(" ", "-"))
def test_a_kill_at_any_system_call_leaves_it_whole_or_absent(ground: Ground, operation: Operation, seed: str) -> None:
    """Code that is safe between its steps can still be wrong inside one; this looks between all of them (V1 to V10)."""
    assert_clean(ground, operation, seed)


def test_a_kill_at_any_system_call_of_a_collection_costs_nothing(seed: str) -> None:
    """Rows go before files, and each is found again: nothing alive is lost, the next collection ends it (I1, I2)."""
    with in_memory() as folder, Preloaded() as parent, CollectionGround(folder, parent, seed) as ground:
        assert_clean(ground, COLLECTION, seed)


def assert_clean(ground: Ground, operation: Operation, seed: str) -> None:
    """Try all points of an operation, or a sample, and assert that what is left at each is whole."""
    calls = ground.calls(operation)
    assert len(calls) >= SAMPLED.get(operation.name, SAMPLED_OTHERS), calls
    if FULL:
        clean = {when: sum(1 for _ in enumerate_points(ground, operation, when)) for when in _sides(operation)}
        print(f"{operation.name}: clean before {' and after '.join(f'{n} of {n}' for n in clean.values())} calls")
        assert all(number >= len(calls) - 2 for number in clean.values()), (clean, calls)
        return
    source = random.Random(f"{seed} {operation.name}")
    wanted = SAMPLED.get(operation.name, SAMPLED_OTHERS)
    drawn = [(point, source.choice(_sides(operation))) for point in source.sample(range(1, len(calls) + 1), wanted)]
    reached = sum(ground.try_point(operation, point, when) for point, when in drawn)
    print(f"{operation.name}: clean at {reached} of {wanted} points, of {len(calls)}, drawn with LADING_SEED={seed}")
    assert reached > wanted // 2, f"only {reached} of {wanted} points were reached"


def _sides(operation: Operation) -> tuple[When, ...]:
    """Return the sides to try: at its start the parent is alone, and after a call is before the next."""
    return (When.BEFORE,) if operation.act is None else (When.BEFORE, When.AFTER)
