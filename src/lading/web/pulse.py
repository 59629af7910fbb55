"""Workers that hang: their processes live, but their event loops have had no turn for long."""

import signal
import time
from collections.abc import Collection

from lading.logs import event_logger
from lading.web.child import Child
from lading.web.worker import BEAT_SECONDS, SHOW_STACK

# Long: a disk that stalls makes every worker wait, and another in its place would wait as well.
HANG_SECONDS = 30.0
LEAST_BEATS = 5
LATE_SECONDS = 2.0
STACK_SECONDS = 0.2


class Pulse:
    """Kills workers that were not heard of for `silence_seconds`, after letting them say where they hang.

    Time in which the parent itself had no turn does not count.
    """

    def __init__(self, silence_seconds: float | None = None) -> None:
        self._silence_seconds = max(LEAST_BEATS * BEAT_SECONDS, silence_seconds or HANG_SECONDS)
        self._looked_at = time.monotonic()

    def feel(self, children: Collection[Child], now: float) -> None:
        """Look once; to be called about every second, when all that the children said has been heard."""
        lost = max(0.0, now - self._looked_at - LATE_SECONDS)  # we had no turn, perhaps the whole machine had none
        self._looked_at = now
        for child in children:
            child.heard_at = min(now, child.heard_at + lost)
        hung = [
            child
            for child in children
            if child.ready and child.kill_at is None and now - child.heard_at > self._silence_seconds
        ]
        if hung:
            self._kill(hung)

    def _kill(self, hung: Collection[Child]) -> None:
        pids = sorted(child.pid for child in hung)
        event_logger().error("workers hang and are killed", pids=pids, silent_seconds=self._silence_seconds)
        for child in hung:
            child.send(SHOW_STACK)
        time.sleep(STACK_SECONDS)
        for child in hung:
            child.send(signal.SIGKILL)
            child.heard_at = time.monotonic()  # one that the kernel does not let go is killed again, later
