"""Carries records to a place that may be slow or gone, and lets nobody wait for it longer than an event may."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from lading.logs import lost
from lading.logs.output import STDERR, Output

MAX_WAITING_BYTES = 8 * 1024 * 1024
# How long a record waits for others to go along: one write for many costs the requests nearly nothing.
GATHER_SECONDS = 0.05
RETRY_SECONDS = 0.1
# A place that takes nothing for this long is said to be stuck; a restart of the journal takes less.
STUCK_SECONDS = 2.0
STOP_SECONDS = 1.0
# Where there is no thread: in the parent, which may have none, and before and after a worker's requests.
PATIENCE_SECONDS = 0.5


class Place(Protocol):
    """Where records go, by a name for people."""

    def __str__(self) -> str:
        """Return the name."""
        ...

    def deliver(self, records: deque[bytes]) -> None:
        """Take records from the left; those that it took are gone from `records`.

        Raises:
            OSError: it takes no more now.

        """
        ...


class Courier:
    """Brings records to one place, in order: each at once, or, between `start` and `end`, by a thread.

    What the place does not take waits, up to `MAX_WAITING_BYTES`, and is tried again; what is more is lost and counted.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lost = lost.Lost()
        self._lock = threading.Lock()
        self._delivering = threading.Lock()
        self._waiting: list[bytes] = []
        # Waiting, and with the thread.
        self._held_bytes = self._held_records = 0
        self._filled = threading.Event()
        self._hurried = threading.Event()
        self._thread: threading.Thread | None = None
        self._end: float | None = None
        self._stuck_since: float | None = None
        self._said_stuck = False

    def put(self, record: bytes, *, urgent: bool = False) -> None:
        """Have a record brought; an urgent one does not wait for others to come along."""
        with self._lock:
            threaded = self._thread is not None
            if threaded and self._held_bytes and self._held_bytes + len(record) > MAX_WAITING_BYTES:
                self._lost.add(1)
                return
            if threaded:
                self._waiting.append(record)
                self._held_bytes += len(record)
                self._held_records += 1
        if not threaded:
            patience_seconds = 0.0 if self._said_stuck else PATIENCE_SECONDS
            self._deliver([record], time.monotonic() + patience_seconds)
            return
        if urgent:
            self._hurried.set()
        if not self._filled.is_set():
            self._filled.set()

    def start(self) -> None:
        """Let a thread do it from now on."""
        self._end = None
        self._thread = threading.Thread(target=self._run, name=f"write to {self._place}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have what waits brought within `STOP_SECONDS`, and the thread ended."""
        with self._lock:
            self._end = time.monotonic() + STOP_SECONDS
        self._hurried.set()
        self._filled.set()

    def join(self) -> None:
        """Wait for that. The thread ends by itself, unless it is held at a disk that hangs: its records are lost."""
        thread = self._thread
        if thread is not None:
            thread.join(2 * STOP_SECONDS)
            if thread.is_alive():
                self._lost.add(self._held_records)

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._hurried.wait(GATHER_SECONDS)
            with self._lock:
                taken, self._waiting = self._waiting, []
                if self._end is None:
                    self._filled.clear()
                    self._hurried.clear()
                elif not taken:
                    self._thread = None
                    return
            taken_bytes, taken_records = sum(map(len, taken)), len(taken)
            self._deliver(taken, None)
            with self._lock:
                self._held_bytes -= taken_bytes
                self._held_records -= taken_records

    def _deliver(self, taken: list[bytes], end: float | None) -> None:
        """Bring records until the place has them all, at most to `end`, or to the end of the thread."""
        records = deque(taken)
        with self._delivering:
            while records:
                try:
                    self._place.deliver(records)
                except OSError as error:
                    now = time.monotonic()
                    last = self._end if end is None else end
                    gives_up = last is not None and now >= last
                    self._say_if_stuck(error, now, at_once=gives_up)
                    if gives_up:
                        self._lost.add(len(records))
                        return
                    time.sleep(RETRY_SECONDS)
                else:
                    self._stuck_since, self._said_stuck = None, False
        if taken:
            self._lost.tell()

    def _say_if_stuck(self, error: OSError, now: float, *, at_once: bool) -> None:
        if self._stuck_since is None:
            self._stuck_since = now
        if self._said_stuck or not (at_once or now - self._stuck_since >= STUCK_SECONDS):
            return
        self._said_stuck = True
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        output = Output(STDERR)
        output.write(f"lading: {self._place} takes nothing ({reason}): what is logged waits, or is lost\n".encode())
        output.close()


_couriers: dict[Place, Courier] = {}


def courier_to(place: Place) -> Courier:
    """Return the one courier of this process for a place."""
    return _couriers.setdefault(place, Courier(place))


@contextlib.contextmanager
def in_background(count_lost: Callable[[int], None]) -> Iterator[None]:
    """Let threads bring what is logged; `count_lost` hears of records that are lost. In a worker, after the fork."""
    lost.count_by(count_lost)
    couriers = list(_couriers.values())
    for courier in couriers:
        courier.start()
    try:
        yield
    finally:
        for courier in couriers:
            courier.end()
        for courier in couriers:
            courier.join()
        lost.count_by(None)
