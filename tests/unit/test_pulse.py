"""Workers that hang."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from lading.settings import Settings
from lading.web.child import Child, Generation
from lading.web.pulse import Pulse


@pytest.fixture
def child() -> Iterator[Child]:
    """Return a worker that serves, and was heard of just now."""
    with subprocess.Popen(["sleep", "60"]) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        yield Child(process.pid, -1, Generation(Settings(), None), time.monotonic(), ready=True)


def ended_by(child: Child) -> signal.Signals | None:
    """Return the signal that ended it, or None while it lives."""
    info = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if info is None else signal.Signals(info.si_status)


def test_a_worker_that_was_silent_for_too_long_is_killed(child: Child) -> None:
    """It is asked where it hangs first; one that does not know the question dies of it."""
    pulse = Pulse(30)
    now = time.monotonic()
    child.heard_at = now - 29

    pulse.feel([child], now)
    assert ended_by(child) is None

    pulse.feel([child], now + 1.5)
    assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is not None


@pytest.mark.parametrize("why", ["starting", "leaving"])
def test_a_worker_that_does_not_serve_is_not_looked_at(child: Child, why: str) -> None:
    """The one opens the database, however long that takes; the other has a deadline already."""
    child.ready, child.kill_at = why != "starting", None if why == "starting" else 1e12
    pulse = Pulse(30)
    child.heard_at -= 100

    pulse.feel([child], time.monotonic())

    assert ended_by(child) is None


def test_time_in_which_nothing_ran_does_not_count(child: Child) -> None:
    """A machine that was paused, or Ctrl-Z: the workers stood still as well, and speak when they are woken."""
    pulse = Pulse(30)
    now = time.monotonic()

    pulse.feel([child], now + 3600)
    pulse.feel([child], now + 3601)

    assert ended_by(child) is None
