"""The HTTP/1.1 protocol of a connection: uvicorn's on httptools, with a bounded head and the sentences of our API."""

import asyncio
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lading.oci.errors import HeadersTooLarge, RegistryError, RequestInvalid, TargetTooLong
from lading.web import errors

MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS_BYTES = 32 * 1024
HEAD_SECONDS = 10.0
_MAX_HEAD_BYTES = MAX_TARGET_BYTES + 2 * MAX_HEADERS_BYTES
_MAX_DROPPED_BYTES = 8 * 1024 * 1024
_DROP_SECONDS = 2.0


class Http(HttpToolsProtocol):
    """Refuses a head that is too long or too slow before it is whole, when no application can."""

    _in_head = True
    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None
    _refusal: RegistryError | None = None
    _refused = False
    _dropped_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first head its deadline."""
        super().connection_made(transport)
        self._head_deadline = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what is still no whole head."""
        if self._refused:
            self._drop(data)
            return
        super().data_received(data)
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse(HeadersTooLarge() if self.headers else TargetTooLong())

    def on_message_begin(self) -> None:
        """Begin to count, and to wait for the end of the head."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """Hand over a head of bounded length."""
        self._in_head = False
        self._end_deadline()
        if len(self.url) > MAX_TARGET_BYTES:
            self._refusal = TargetTooLong(f"the request target is limited to {MAX_TARGET_BYTES} bytes")
            raise httptools.HttpParserError(str(self._refusal))
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's own words help nobody
        """Answer what the parser refused."""
        self._refuse(self._refusal or RequestInvalid("the request is not valid HTTP/1.1"))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a client may ask for an upgrade, and gets HTTP/1.1."""

    def _refuse(self, error: RegistryError) -> None:
        """Answer and end the connection; what still comes is dropped within bounds, so that the answer gets read."""
        self._refused = True
        self._end_deadline()
        if self._is_answering():
            self.cycle.keep_alive = False  # a bad request behind one whose reply is on its way gets none
            return
        reply = errors.render(error)
        head = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n".encode()
        headers = [*reply.raw_headers(), errors.API_VERSION, (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(head + lines + b"\r\n" + bytes(reply.body if isinstance(reply.body, bytes) else b""))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_DROP_SECONDS, self.transport.close)

    def _is_answering(self) -> bool:
        """Tell whether a whole request has its reply to come; end one that waits for its body: it will get no more."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if cycle.response_started or not cycle.more_body:
            return True
        cycle.disconnected = True
        cycle.message_event.set()
        return False

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        if self._dropped_bytes > _MAX_DROPPED_BYTES:
            self.transport.abort()

    def _end_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None
