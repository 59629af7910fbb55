"""The machine that each test gets."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.bench import Bench

TEST_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time that it needs on a busy machine, where a start of the registry takes half a minute."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Boot a machine, with its network for this thread, and shut it down."""
    with contextlib.closing(Bench(tmp_path)) as machine, machine.network():
        yield machine
        print(machine.output())  # shown where the test failed
