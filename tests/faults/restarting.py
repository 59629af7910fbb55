"""What every fault test asks of a server that starts again: soon ready, and soon without what a crash has left."""

import os
import time
from pathlib import Path

from tests.capability.server import RegistryProcess, until
from tests.faults.checker import Checker

READY_SECONDS = 5.0
SWEEP_SECONDS = 20.0


def start_in_time(server: RegistryProcess) -> None:
    """Start the server and assert that it is ready soon, not counting what the machine gave to others meanwhile."""
    began, waited_before = time.monotonic(), _waited_seconds(os.getpid())
    server.start()
    took = time.monotonic() - began
    waited = _waited_seconds(os.getpid()) - waited_before
    waited += sum(_waited_seconds(pid) for pid in server.tree()[:2])  # the parent, and one of its workers beside it
    assert took - waited < READY_SECONDS, f"ready after {took:.1f} s, {waited:.1f} s of them waiting for a processor"


def _waited_seconds(pid: int) -> float:
    """Return how long a process was ready to run and did not get a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def assert_swept(checker: Checker, *, of_open_sessions: bool = False) -> None:
    """Assert that the sweep of the start finds each file that no row accounts for."""
    assert until(lambda: not checker.leftovers(of_open_sessions=of_open_sessions), seconds=SWEEP_SECONDS), (
        checker.leftovers(of_open_sessions=of_open_sessions)
    )
