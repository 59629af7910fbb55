"""Request bodies: in bounded pieces, with a deadline for each wait, and never past a limit (I8)."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from starlette.types import Receive

from lading.oci.errors import BodyTimeout, BodyTooLarge, ClientGone

IDLE_SECONDS = 30.0
_PIECE_BYTES = 1024 * 1024


class Body:
    """The body of one request; `received` counts its bytes, `finished` is True once its end was seen."""

    def __init__(self, receive: Receive, declared_bytes: int | None) -> None:
        self._receive = receive
        self.declared_bytes = declared_bytes
        self.received = 0
        self.finished = declared_bytes == 0
        self._ahead: list[bytes] = []

    async def is_empty(self) -> bool:
        """Tell whether the body has no byte, which a chunked one shows only when it is read."""
        while not (self._ahead or self.finished):
            buffer = await self._next()
            if buffer:
                self._ahead.append(buffer)
        return not self._ahead

    async def pieces(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield the body in lists of buffers of about 1 MiB together.

        Raises:
            ClientGone: the connection ended before the body did.
            BodyTimeout: nothing came for 30 seconds.

        """
        gathered, self._ahead = self._ahead, []
        gathered_bytes = sum(map(len, gathered))
        while not self.finished:
            try:
                buffer = await self._next()
            except (ClientGone, BodyTimeout):
                if gathered:
                    yield gathered
                raise
            if buffer:
                gathered.append(buffer)
                gathered_bytes += len(buffer)
            if gathered_bytes >= _PIECE_BYTES:
                yield gathered
                gathered, gathered_bytes = [], 0
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
            gathered.append(await self._next())
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

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyTimeout from error
        if message["type"] == "http.disconnect":
            self.finished = True
            raise ClientGone
        buffer: bytes = message.get("body", b"")
        self.received += len(buffer)
        self.finished = not message.get("more_body", False)
        return buffer
