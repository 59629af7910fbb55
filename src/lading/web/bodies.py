"""Request bodies: in bounded pieces, with a deadline for each wait, and never past a limit (I8)."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive, Scope

from lading.oci.errors import BodyTimeout, BodyTooLarge, ClientGone
from lading.web.http_exchange import VIEWS

IDLE_SECONDS = 30.0
SLOW_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 1024
_PIECE_BYTES = 1024 * 1024

Buffers = Sequence[bytes | memoryview]


class Body:
    """The body of one request; `received` counts its bytes, `finished` is True once its end was seen.

    Where the server offers views of its buffers, those are taken, and no byte is copied.
    """

    def __init__(self, scope: Scope, receive: Receive, declared_bytes: int | None) -> None:
        views = scope.get("extensions", {}).get(VIEWS)
        self._receive: Receive = views["receive"] if views else receive
        self._gathers = views is None
        self.declared_bytes = declared_bytes
        self.received = 0
        self.finished = declared_bytes == 0
        self._ahead: list[bytes | memoryview] = []
        self._began_at: float | None = None

    async def is_empty(self) -> bool:
        """Tell whether the body has no byte, which a chunked one shows only when it is read."""
        while not (self._ahead or self.finished):
            self._ahead += await self._next()
        return not self._ahead

    async def pieces(self) -> AsyncIterator[Buffers]:
        """Yield the body in lists of buffers of about 1 MiB together; each is valid until the next is asked for.

        Raises:
            ClientGone: the connection ended before the body did.
            BodyTimeout: nothing came for 30 seconds, or after a minute less than 1 KiB a second.

        """
        gathered, self._ahead = self._ahead, []
        gathered_bytes = sum(map(len, gathered))
        while not self.finished:
            if gathered_bytes >= (_PIECE_BYTES if self._gathers else 1):
                yield gathered
                gathered, gathered_bytes = [], 0
            try:
                buffers = await self._next()
            except (ClientGone, BodyTimeout):
                if gathered:
                    yield gathered
                raise
            gathered += buffers
            gathered_bytes += sum(map(len, buffers))
        if gathered:
            yield gathered

    async def read(self, most_bytes: int) -> bytes:
        """Return the whole of a small body.

        Raises:
            BodyTooLarge: it has, or says it has, more than `most_bytes`.
            ClientGone, BodyTimeout: as `pieces`.

        """
        if self.declared_bytes is not None and self.declared_bytes > most_bytes:
            raise BodyTooLarge(f"at most {most_bytes} bytes are accepted here")
        gathered: list[bytes] = []
        while not self.finished:
            gathered += map(bytes, await self._next())
            if self.received > most_bytes:
                raise BodyTooLarge(f"at most {most_bytes} bytes are accepted here")
        return b"".join(gathered)

    async def drain(self, most_bytes: int, seconds: float) -> None:
        """Read and drop what is left, within bounds, so that a client still sending gets to read its reply."""
        limit = self.received + most_bytes
        try:
            async with asyncio.timeout(seconds):
                while not self.finished and self.received < limit:
                    await self._next()
        except (ClientGone, BodyTimeout, TimeoutError):
            return

    async def client_gone(self) -> None:
        """Return when the client has closed its connection. Only after the body was read to its end."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self) -> Buffers:
        loop = asyncio.get_running_loop()
        if self._began_at is None:
            self._began_at = loop.time()
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyTimeout from error
        if message["type"] == "http.disconnect":
            self.finished = True
            raise ClientGone
        buffers: Buffers = message["views"] if "views" in message else [message.get("body", b"")]
        self.received += sum(map(len, buffers))
        self.finished = not message.get("more_body", False)
        seconds = loop.time() - self._began_at
        if not self.finished and seconds > SLOW_SECONDS and self.received < LEAST_BYTES_PER_SECOND * seconds:
            raise BodyTimeout(f"the request body came at less than {LEAST_BYTES_PER_SECOND} bytes a second")
        return [buffer for buffer in buffers if buffer]
