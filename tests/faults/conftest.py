"""A server for each test, the seed of a run, and the long form."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.capability import preloaded
from tests.capability.server import RegistryProcess
from tests.faults.verifying import assert_verified

FULL = os.environ.get("LADING_FULL", "") not in {"", "0"}
SEED = os.environ.get("LADING_SEED") or f"{random.SystemRandom().getrandbits(32):08x}"
MOUNTING = frozenset({"test_controls", "test_full_disk", "test_power_cut", "test_quota", "test_unfit_disks"})
"""Modules that take turns: a process with a mount namespace of its own keeps what others have mounted by then."""


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Say how to repeat this run, also where pytest is asked to be quiet."""
    form = "the long form" if FULL else "the short form; LADING_FULL=1 runs all"
    session.config.get_terminal_writer().line(f"faults: LADING_SEED={SEED} ({form})")


class TakingTurns(LoadScopeScheduling):  # type: ignore[misc]
    """Deals tests to processes one by one, but for those that mount: they are dealt to one process, and first.

    It is what `--dist loadgroup` would do; with this pytest, pytest-xdist 3.8 loses its groups without a word.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "mounts" if Path(nodeid.partition("::")[0]).stem in MOUNTING else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TakingTurns:
    """Have them take turns."""
    return TakingTurns(config, log)


@pytest.fixture(scope="session")
def seed() -> str:
    """Return what the plans of all clients are made from."""
    return SEED


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RegistryProcess]:
    """Return a server that is not started yet, with two workers or as many as the test's parameter says.

    Whatever a test does to it, `lading verify` finds nothing in what is left.
    """
    process = RegistryProcess(tmp_path, workers=getattr(request, "param", 2), parent=preloaded.shared())
    try:
        yield process
        process.kill()
        assert_verified(process.data)
    finally:
        process.kill()
        shutil.rmtree(tmp_path, ignore_errors=True)
