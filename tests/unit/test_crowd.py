"""Who has to go when too many are connected, and who may not."""

import asyncio
import json

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from tests.fuzz.connection import Pipe
from uvicorn.server import ServerState

from lading.web.http import Http
from lading.web.http_crowd import Awaits, Crowd, Seat

MOST = 4


def _seat(gone: list[str], name: str) -> Seat:
    return Seat(overdue=lambda: gone.append(f"{name} is late"), make_way=lambda: gone.append(name))


def _full(gone: list[str], awaits: Awaits, seconds: float) -> Crowd:
    """Return a crowd of as many as there may be, all of whom have waited for about so long, the first one longest."""
    loop, crowd = asyncio.get_running_loop(), Crowd()
    crowd.most = MOST
    for number in range(MOST):
        seat = _seat(gone, f"seat {number}")
        assert crowd.admit(seat, loop)
        seat.wait_for(awaits, loop.time() - seconds + number / 1000)
    return crowd


@pytest.mark.parametrize(
    ("awaits", "seconds", "gone"),
    [
        (Awaits.HEAD, 0.1, ["seat 0"]),
        (Awaits.BODY, 5.0, ["seat 0"]),
        (Awaits.BODY, 0.05, []),
        (Awaits.US, 60.0, []),
    ],
    ids=["silent", "stalled", "sending", "served"],
)
def test_the_longest_silent_goes_and_nobody_who_is_served(awaits: Awaits, seconds: float, gone: list[str]) -> None:
    """A thousand silent sockets must not keep a client out, nor may a new client end somebody's push."""

    async def test() -> None:
        went: list[str] = []
        crowd = _full(went, awaits, seconds)
        admitted = crowd.admit(_seat(went, "newcomer"), asyncio.get_running_loop())
        assert (admitted, went) == (bool(gone), gone)

    asyncio.run(test())


def test_who_finds_no_place_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset would look like a broken network; a 503 says that it is worth another try."""

    async def nobody(_: Scope, __: Receive, ___: Send) -> None:
        raise AssertionError

    async def test() -> None:
        monkeypatch.setattr(Http, "crowd", _full([], Awaits.US, 60.0))
        protocol = Http(uvicorn.Config(nobody, lifespan="off", log_config=None), ServerState(), {})
        pipe = Pipe(protocol)

        protocol.connection_made(pipe)

        head, _, body = bytes(pipe.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 "), head
        assert b"retry-after: 1" in head, head
        assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"

    asyncio.run(test())
