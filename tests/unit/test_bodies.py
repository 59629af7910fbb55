"""Deadlines of a request's body, on a loop whose clock the test moves."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from starlette.types import Message, Receive

from lading.oci.errors import BodyTimeout
from lading.web.bodies import Body


class Clock(asyncio.SelectorEventLoop):
    """A loop in which time passes when it is told to."""

    ahead_seconds = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_seconds


def _run(test: Callable[[Clock], Coroutine[None, None, None]]) -> None:
    clock = Clock()
    try:
        clock.run_until_complete(test(clock))
    finally:
        clock.close()


def _sending(clock: Clock, *, every_seconds: float, piece: bytes, times: int) -> Receive:
    """Return an ASGI `receive` of a client that sends a piece at intervals, and then nothing."""
    left = times

    async def receive() -> Message:
        nonlocal left
        left -= 1
        if left < 0:
            clock.call_soon(_pass_time, clock, 31.0)
            await clock.create_future()
        clock.ahead_seconds += every_seconds
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    return receive


async def _take(body: Body, kept: list[bytes]) -> None:
    async for buffers in body.pieces():
        kept += map(bytes, buffers)


def _pass_time(clock: Clock, seconds: float) -> None:
    clock.ahead_seconds += seconds


def test_a_body_that_stalls_is_given_up() -> None:
    """A client that sends nothing for half a minute will not send the rest; what came before is kept."""

    async def test(clock: Clock) -> None:
        body = Body({}, _sending(clock, every_seconds=1.0, piece=b"a" * 100, times=3), None)
        kept: list[bytes] = []
        with pytest.raises(BodyTimeout):
            await _take(body, kept)
        assert b"".join(kept) == b"a" * 300

    _run(test)


def test_a_body_that_trickles_is_given_up_after_a_minute() -> None:
    """A byte now and then would hold a session, a descriptor and a lock for as long as the sender likes."""

    async def test(clock: Clock) -> None:
        body = Body({}, _sending(clock, every_seconds=25.0, piece=b"a" * 1000, times=100), None)
        with pytest.raises(BodyTimeout, match="1024 bytes a second"):
            await _take(body, [])
        assert body.received == 3000, "it has the first minute to pick up speed"

    _run(test)


def test_a_body_that_comes_slowly_but_well_enough_is_taken() -> None:
    """Old lines upload for hours, and that is no attack."""

    async def test(clock: Clock) -> None:
        body = Body({}, _sending(clock, every_seconds=20.0, piece=b"a" * 30_000, times=500), None)
        with pytest.raises(BodyTimeout, match="stalled"):
            await _take(body, [])
        assert body.received == 500 * 30_000

    _run(test)
