"""Records that never reached their place: counted at once, and told in the log when there is a way again."""

import threading
from collections.abc import Callable

import structlog


def _uncounted(_: int) -> None:
    """Count nothing: this process has no metrics."""


_count: Callable[[int], None] = _uncounted


def count_by(count: Callable[[int], None] | None) -> None:
    """Tell `count` from now on how many records are lost, each time; it is called by any thread. None ends that."""
    global _count  # noqa: PLW0603 - the log is one for the process, and so is what it lost
    _count = count or _uncounted


class Lost:
    """What one place lost, and has not told yet."""

    def __init__(self) -> None:
        self.untold = 0
        self._lock = threading.Lock()

    def add(self, records: int) -> None:
        """Count some."""
        with self._lock:
            self.untold += records
        _count(records)

    def tell(self) -> None:
        """Say how many there were: the place takes records again."""
        with self._lock:
            count, self.untold = self.untold, 0
        if count:
            structlog.get_logger().warning("log lines were dropped", count=count)
