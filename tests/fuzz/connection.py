"""The protocol class in this process, on a transport that is a list: thousands of connections a second."""

import asyncio
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, cast

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from lading.web.http import Http
from lading.web.http_exchange import VIEWS

_TURNS = 200
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")


@dataclass(slots=True)
class Outcome:
    """What became of a connection's bytes: the replies' statuses, and the requests that the application saw whole."""

    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[str, bytes, str]] = field(default_factory=list)
    started: int = 0

    @property
    def answers(self) -> list[int]:
        """The statuses without 100, which says that a body is waited for: not when it came with its head (RFC 9110)."""
        return [status for status in self.statuses if status != 100]


class Pipe(asyncio.Transport):
    """Keeps what is written; loses the connection when it is closed."""

    def __init__(self, protocol: Http) -> None:
        super().__init__({})
        self.written = bytearray()
        self.reading = True
        self._protocol = protocol
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written += b""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


class Server:
    """The protocol class with an application that reads each body and says that it did."""

    def __init__(self) -> None:
        self._config = uvicorn.Config(self._answer, lifespan="off", interface="asgi3", log_config=None)
        self._config.load()
        self._state = ServerState()
        self._outcome = Outcome()

    async def outcome(self, pieces: list[bytes]) -> Outcome:
        """Return what a connection comes to whose bytes arrive in these pieces, and that the client then leaves."""
        outcome = self._outcome = Outcome()
        protocol = Http(self._config, self._state, {})
        pipe = Pipe(protocol)
        protocol.connection_made(pipe)
        for piece in pieces:
            await self._deliver(protocol, pipe, piece)
        await self._settle()
        pipe.close()
        await self._settle()
        assert not self._state.tasks, "a request outlives its connection"
        assert not self._state.connections, "a connection outlives its client"
        outcome.statuses = [int(status) for status in _STATUS.findall(pipe.written)]
        return outcome

    async def _deliver(self, protocol: Http, pipe: Pipe, piece: bytes) -> None:
        while piece and not pipe.is_closing():
            for _ in range(_TURNS):
                if pipe.reading:
                    break
                await asyncio.sleep(0)
            else:
                raise AssertionError("reading is paused for good")
            room = protocol.get_buffer(-1)
            count = min(len(room), len(piece))
            room[:count] = piece[:count]
            protocol.buffer_updated(count)
            piece = piece[count:]
        await asyncio.sleep(0)

    async def _settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def _answer(self, scope: Scope, _: Receive, send: Send) -> None:
        outcome = self._outcome
        outcome.started += 1
        receive = cast("Receive", scope["extensions"][VIEWS]["receive"])
        digest, more = hashlib.sha256(), True
        while more:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                return
            for view in message["views"]:
                digest.update(view)
            more = message["more_body"]
        outcome.requests.append((scope["method"], scope["raw_path"], digest.hexdigest()))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
