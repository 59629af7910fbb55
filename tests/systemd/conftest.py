"""The machine that each test gets."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Boot a machine, with its network for this thread, and shut it down."""
    with contextlib.closing(Bench(tmp_path)) as machine, machine.network():
        yield machine
        print(machine.output())  # shown where the test failed
