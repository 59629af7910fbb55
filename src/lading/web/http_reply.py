"""A reply as it goes out: its head, the framing of its body, and whether the connection goes on after it."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus

from starlette.types import Message

from lading.web.http_outlet import Outlet

Headers = Sequence[tuple[bytes, bytes]]

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_JOINED_BYTES = 16 * 1024


def whole_reply(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return a last reply as bytes: the connection ends after it."""
    lines = [name + b": " + value + b"\r\n" for name, value in headers if name != b"connection"]
    return b"".join((_STATUS_LINES[status], *lines, b"connection: close\r\n\r\n", body))


class HttpReply:
    """Takes ASGI's messages of one reply and writes them."""

    def __init__(
        self, outlet: Outlet, default_headers: Headers, *, method: str, version: str, keep_alive: bool
    ) -> None:
        self._outlet = outlet
        self._default_headers = default_headers
        self._without_body = method == "HEAD"
        self._version = version
        self._head = b""
        self._left = 0
        self._chunked = False
        self.keep_alive = keep_alive
        self.started = False
        self.ended = False

    async def send(self, message: Message) -> None:
        """Write a message, once the client has taken most of what was written before.

        Raises:
            ClientGone: it has left while a file was sent.
            OSError: a file is shorter than what was said.
            RuntimeError: the application breaks the rules.

        """
        kind = message["type"]
        if not self.started:
            if kind != "http.response.start":
                raise RuntimeError(f"{kind} before the reply's start")
            self.started = True
            self._head = self._begin(message["status"], message.get("headers", ()))
        elif self.ended:
            raise RuntimeError(f"{kind} after the reply's end")
        elif kind == "http.response.body":
            await self._send_bytes(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.zerocopysend":
            await self._send_file(message)
        else:
            raise RuntimeError(f"{kind} is no part of a reply")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the head, which goes out with the first of the body."""
        length: bytes | None = None
        says_close = False
        lines = [_STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n".encode()]
        for name, value in (*self._default_headers, *headers):
            if name == b"content-length":
                length = value
            elif name == b"connection" and value == b"close":
                if says_close:
                    continue
                says_close = True
            lines.append(name + b": " + value + b"\r\n")
        lines += self._framing(status, length)
        if says_close:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self._version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        head = b"".join(lines) + b"\r\n"
        if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1 or b"\x00" in head:
            raise RuntimeError("a header of the reply has a line end in it")
        return head

    def _framing(self, status: int, length: bytes | None) -> list[bytes]:
        if status in _BODILESS:
            self._without_body = True
        elif length is not None:
            self._left = int(length)
        elif self._version == "1.0":
            self.keep_alive = False  # the end of the connection is the end of the body
            self._left = -1
        else:
            self._chunked = True
            return [b"transfer-encoding: chunked\r\n"]
        return []

    async def _send_bytes(self, body: bytes, *, more: bool) -> None:
        if self._without_body:
            body = b""
        elif self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        else:
            self._count(len(body), more=more)
        head, self._head = self._head, b""
        if head and len(body) <= _JOINED_BYTES:
            body, head = head + body, b""
        if head:
            await self._outlet.write(head)
        if body:
            await self._outlet.write(body)
        self.ended = not more

    async def _send_file(self, message: Message) -> None:
        more = message.get("more_body", False)
        head, self._head = self._head, b""
        if self._without_body:
            await self._outlet.write(head)
        else:
            self._count(message["count"], more=more)
            await self._outlet.send_file(head, message["file"], message["offset"], message["count"])
        self.ended = not more

    def _count(self, count: int, *, more: bool) -> None:
        if self._left < 0:
            return
        self._left -= count
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the reply's body is not as long as its Content-Length")
