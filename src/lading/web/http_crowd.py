"""The connections of one worker together: their deadlines, and who goes when there are too many."""

import asyncio
import heapq
import math
import resource
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

MAX_CONNECTIONS = 8192
_SWEEP_SECONDS = 1.0
# A connection that is served has up to three descriptors: itself, a file, and a second one for `sendfile`.
_DESCRIPTORS_EACH = 3
_SHED_SHARE = 32
_LINGERING_SHARE = 8


class Awaits(Enum):
    """What a connection waits for; the value is how long, in seconds, before it may be closed for a newer one."""

    HEAD = 0.0
    """The client's next request, its first one or a further one."""
    BODY = 0.1
    """More of a request's body. Who sends has been silent for less than others, and goes after them in any case."""
    US = math.inf
    """Our reply."""


@dataclass(slots=True, eq=False)
class Seat:
    """The place of one connection. `overdue` is called when `deadline`, in the loop's time, has passed."""

    overdue: Callable[[], None]
    make_way: Callable[[], None]
    deadline: float = math.inf
    awaits: Awaits = Awaits.HEAD
    since: float = 0.0

    def wait_for(self, awaits: Awaits, now: float) -> None:
        """Begin to wait."""
        self.awaits = awaits
        self.since = now


class Crowd:
    """Everyone who is connected to this worker. One timer looks after all of them."""

    def __init__(self) -> None:
        self._seats: set[Seat] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self.most = 0

    def admit(self, seat: Seat, loop: asyncio.AbstractEventLoop) -> bool:
        """Give a place, if need be that of those who have been silent for longest; False when all are being served."""
        if not self.most:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.most = min(MAX_CONNECTIONS, descriptors // _DESCRIPTORS_EACH)
        now = loop.time()
        seat.wait_for(Awaits.HEAD, now)
        self._seats.add(seat)
        if self._sweeping is None:
            self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop)
        return len(self._seats) <= self.most or self._shed(now, newcomer=seat)

    def leave(self, seat: Seat) -> None:
        """Give the place up."""
        self._seats.discard(seat)

    @property
    def overflows(self) -> bool:
        """Whether there are so many that one more cannot even be told."""
        return len(self._seats) > self.most + 1 + self.most // _LINGERING_SHARE

    def _shed(self, now: float, newcomer: Seat) -> bool:
        idle = [seat for seat in self._seats if now - seat.since >= seat.awaits.value and seat is not newcomer]
        for seat in heapq.nsmallest(max(1, self.most // _SHED_SHARE), idle, key=lambda seat: seat.since):
            self._seats.discard(seat)
            seat.make_way()
        return bool(idle)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for seat in [seat for seat in self._seats if seat.deadline <= now]:
            seat.overdue()
        self._sweeping = loop.call_later(_SWEEP_SECONDS, self._sweep, loop) if self._seats else None
