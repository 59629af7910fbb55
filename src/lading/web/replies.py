"""Replies: a status, headers, and bytes or an object; sent in bounded pieces."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.types import Send

from lading.oci.ranges import ByteRange
from lading.storage.disk import DiskObject

PIECE_BYTES = 256 * 1024
_FILE_PIECE_BYTES = 4 * 1024 * 1024
ZERO_COPY = "http.response.zerocopysend"
"""ASGI's extension by which a server sends a part of an open file."""

_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class BlobBody:
    """Ranges of a blob. With a `boundary` each is a part of a multipart/byteranges body."""

    content: bytes | DiskObject
    blob_bytes: int
    ranges: Sequence[ByteRange]
    boundary: str = ""

    def part_head(self, part: ByteRange) -> bytes:
        """Return what stands before a part (RFC 9110, 14.6)."""
        return (
            f"\r\n--{self.boundary}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Range: bytes {part}/{self.blob_bytes}\r\n\r\n"
        ).encode()

    @property
    def tail(self) -> bytes:
        """What stands after the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        """The number of bytes of the body."""
        payload = sum(part.length for part in self.ranges)
        if not self.boundary:
            return payload
        return payload + sum(len(self.part_head(part)) for part in self.ranges) + len(self.tail)

    def close(self) -> None:
        """Close the object."""
        if isinstance(self.content, DiskObject):
            self.content.close()


@dataclass(slots=True)
class Reply:
    """What is sent back. `headers` may carry a name many times by a list of values."""

    status: int
    headers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    body: bytes | BlobBody = b""

    @property
    def length(self) -> int:
        """The number of bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.length

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers as ASGI wants them, with Content-Length where the status allows one."""
        raw: list[tuple[bytes, bytes]] = []
        for name, values in self.headers.items():
            each = [values] if isinstance(values, str) else values
            raw.extend((name.lower().encode("latin-1"), value.encode("latin-1")) for value in each)
        if self.status not in _BODILESS:
            raw.append((b"content-length", str(self.length).encode()))
        return raw


def json_reply(status: int, value: object, headers: Mapping[str, str | Sequence[str]] | None = None) -> Reply:
    """Return a JSON reply; its Content-Type stands, unless `headers` names another."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, body)


def new_boundary() -> str:
    """Return a boundary that no content can be made to contain."""
    return secrets.token_hex(16)


async def send_body(send: Send, reply: Reply, *, zero_copy: bool, more: bool = False) -> int:
    """Send the reply's body; return how many bytes. With `more` the message stays open for the caller to end.

    `zero_copy` tells whether the server takes files.

    Raises:
        ClientGone: there is nobody to send to (raised by `send`).
        OSError: the object became shorter while it was sent; the connection has to be cut.
        TimeoutError: the client took nothing for too long (raised by `send`).

    """
    if isinstance(reply.body, bytes):
        await _send(send, reply.body, more=more)
        return len(reply.body)
    body = reply.body
    if zero_copy and isinstance(body.content, DiskObject) and len(body.ranges) == 1 and not body.boundary:
        return await _send_file(send, body.content, body.ranges[0], more=more)
    sent = 0
    for part in body.ranges:
        if body.boundary:
            head = body.part_head(part)
            await _send(send, head, more=True)
            sent += len(head)
        sent += await _send_range(send, body, part, more=more or bool(body.boundary) or part is not body.ranges[-1])
    if body.boundary or not body.ranges:
        tail = body.tail if body.boundary else b""
        await _send(send, tail, more=more)
        sent += len(tail)
    return sent


async def _send_file(send: Send, content: DiskObject, part: ByteRange, *, more: bool) -> int:
    offset, end = part.first, part.last + 1
    while offset < end:
        count = min(_FILE_PIECE_BYTES, end - offset)
        await content.load(offset, count)
        message = {"type": ZERO_COPY, "file": content.descriptor, "offset": offset, "count": count}
        offset += count
        await send({**message, "more_body": more or offset < end})
    return part.length


async def _send_range(send: Send, body: BlobBody, part: ByteRange, *, more: bool) -> int:
    offset, end = part.first, part.last + 1
    while offset < end:
        length = min(PIECE_BYTES, end - offset)
        if isinstance(body.content, bytes):
            piece = body.content[offset : offset + length]
        else:
            piece = await body.content.read(offset, length)
        if not piece:
            raise OSError("the object ended before its recorded size")
        offset += len(piece)
        await _send(send, piece, more=more or offset < end)
    return part.length


async def _send(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
