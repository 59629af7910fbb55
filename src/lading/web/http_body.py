"""The body of a request as it comes off the socket: received into pooled buffers, decoded where it lies.

Two buffers of 1 MiB take turns: while the application hashes and writes the views of one, the other fills. Nothing is
copied between the socket and the disk, except what is small, and what comes when all buffers of a worker
are in use.
"""

import re
from typing import ClassVar

from lading.oci.errors import RequestInvalid

BUFFER_BYTES = 1024 * 1024
SMALL_BYTES = 64 * 1024
_MAX_BUFFERS = 64
_KEPT_BUFFERS = 16
_LEAST_ROOM_BYTES = 16 * 1024
_MAX_VIEWS = 1024
_MAX_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 4096
_MAX_EXCESS_BYTES = 16 * 1024
_NEXT_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")

Views = list[memoryview]


class Buffer:
    """A pooled buffer. `filled` is where the next bytes go."""

    __slots__ = ("filled", "raw", "view")
    _free: ClassVar[list["Buffer"]] = []
    _in_use: ClassVar[int] = 0

    def __init__(self) -> None:
        self.raw = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.raw)
        self.filled = 0

    @classmethod
    def take(cls) -> "Buffer | None":
        """Return an empty buffer, or None when this process has given out as many as it may."""
        if cls._in_use >= _MAX_BUFFERS:
            return None
        cls._in_use += 1
        return cls._free.pop() if cls._free else cls()

    def release(self) -> None:
        """Give it back; a few are kept for the next."""
        Buffer._in_use -= 1
        self.filled = 0
        if len(self._free) < _KEPT_BUFFERS:
            self._free.append(self)


class Length:
    """Decodes a body of known length."""

    __slots__ = ("_left",)

    def __init__(self, body_bytes: int) -> None:
        self._left = body_bytes

    @property
    def ended(self) -> bool:
        """Whether all of the body has been seen."""
        return not self._left

    def decode(self, raw: bytes | bytearray, view: memoryview, start: int, end: int, payload: Views) -> int:  # noqa: ARG002 - as Chunks
        """Append the views of payload in `raw[start:end]`; return where the body's part of it ends."""
        stop = min(start + self._left, end)
        if stop > start:
            payload.append(view[start:stop])
            self._left -= stop - start
        return stop


class Chunks:
    """Decodes a body in chunks (RFC 9112, 7.1): strictly, and with a bound on all that is not payload."""

    __slots__ = ("_excess", "_in_trailer", "_left", "_line", "_needs_end_of_chunk", "_trailer_bytes", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._left = 0
        self._line = b""  # the beginning of a line whose end has not come
        self._needs_end_of_chunk = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self._excess = 0

    def decode(self, raw: bytes | bytearray, view: memoryview, start: int, end: int, payload: Views) -> int:
        """Append the views of payload in `raw[start:end]`; return where the body's part of it ends.

        Raises:
            RequestInvalid: these are no chunks.

        """
        at = start
        while at < end and not self.ended:
            if self._left:
                stop = min(at + self._left, end)
                payload.append(view[at:stop])
                self._left -= stop - at
                self._needs_end_of_chunk = not self._left
                at = stop
                if len(payload) > _MAX_VIEWS:  # tiny chunks: a view takes more memory than what it shows
                    payload[:] = [memoryview(b"".join(payload))]
            elif self._needs_end_of_chunk and not self._line and (matched := _NEXT_CHUNK.match(raw, at, end)):
                at = matched.end()
                self._begin_chunk(int(matched[1], 16))
            else:
                at = self._read_line(raw, at, end)
        return at

    def _begin_chunk(self, chunk_bytes: int) -> None:
        self._left = chunk_bytes
        self._needs_end_of_chunk = False
        self._in_trailer = not chunk_bytes

    def _read_line(self, raw: bytes | bytearray, at: int, end: int) -> int:
        """Take one line, or as much of it as is there; return where it ends."""
        found = raw.find(b"\n", at, end)
        stop = end if found < 0 else found + 1
        if len(self._line) + stop - at > _MAX_LINE_BYTES:
            raise RequestInvalid("a line between the chunks of the body is too long")
        line = self._line + raw[at:stop]
        if found < 0:
            self._line = line
            return stop
        self._line = b""
        if not line.endswith(b"\r\n"):
            raise RequestInvalid("a line between the chunks of the body does not end in CR LF")
        self._take_line(line[:-2])
        return stop

    def _take_line(self, line: bytes) -> None:
        if self._needs_end_of_chunk:
            if line:
                raise RequestInvalid("a chunk of the body is longer than it says")
            self._needs_end_of_chunk = False
        elif self._in_trailer:
            self._trailer_bytes += len(line)
            if line and (self._trailer_bytes > _MAX_TRAILER_BYTES or not _TRAILER_LINE.fullmatch(line)):
                raise RequestInvalid("what follows the body's last chunk is not acceptable")
            self.ended = not line
        else:
            matched = _CHUNK_LINE.fullmatch(line)
            if matched is None:
                raise RequestInvalid("a chunk of the body does not begin with its length")
            self._begin_chunk(int(matched[1], 16))
            # Extensions are to be ignored, and may not outweigh what they come with (as in Go's net/http).
            self._excess = max(0, self._excess + len(line) - 16 - 2 * self._left)
            if self._excess > _MAX_EXCESS_BYTES:
                raise RequestInvalid("the body has more chunk extensions than content")


class Incoming:
    """What has come of a body and was not taken yet."""

    __slots__ = ("_decoder", "_filling", "_lent", "_payload", "_received", "_waiting")

    def __init__(self, body_bytes: int | None) -> None:
        self._decoder: Chunks | Length = Chunks() if body_bytes is None else Length(body_bytes)
        self._payload: Views = []
        self._waiting = 0
        self._received = 0
        self._filling: Buffer | None = None
        self._lent: Buffer | None = None

    @property
    def ended(self) -> bool:
        """Whether the body's end has come."""
        return self._decoder.ended

    @property
    def has_some(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be received before what is there is taken."""
        if self._filling is None:
            return self._waiting >= SMALL_BYTES
        return self._filling.filled > BUFFER_BYTES - _LEAST_ROOM_BYTES

    def room(self) -> memoryview | None:
        """Return where the next bytes go, to be reported to `filled`; None when they must be copied, by `feed`."""
        if self._received < SMALL_BYTES or self.is_full:
            return None
        if self._filling is None:
            self._filling = Buffer.take()
            if self._filling is None:
                return None
        return self._filling.view[self._filling.filled :]

    def filled(self, count: int) -> bytes:
        """Take `count` bytes that were received into `room`; return those that are not of this body.

        Raises:
            RequestInvalid: they are no chunks.

        """
        buffer = self._filling
        assert buffer is not None, "bytes were reported for which there was no room"
        start, end = buffer.filled, buffer.filled + count
        buffer.filled = end
        stop = self._decode(buffer.raw, buffer.view, start, end)
        if not self._waiting:  # lines between chunks only
            buffer.filled = 0
        return bytes(buffer.view[stop:end])

    def feed(self, data: bytes) -> bytes:
        """Take bytes from elsewhere; return those that are not of this body.

        Raises:
            RequestInvalid: they are no chunks.

        """
        return data[self._decode(data, memoryview(data), 0, len(data)) :]

    def take(self) -> Views:
        """Return the payload that has come; the views are valid until the next call."""
        if self._lent is not None:
            self._lent.release()
        self._lent, self._filling = self._filling, None
        payload, self._payload, self._waiting = self._payload, [], 0
        return payload

    def close(self) -> None:
        """Give the buffers back, when nobody looks at a view any more."""
        self.take()
        self.take()

    def _decode(self, raw: bytes | bytearray, view: memoryview, start: int, end: int) -> int:
        stop = self._decoder.decode(raw, view, start, end, self._payload)
        waiting = sum(map(len, self._payload))
        self._received += waiting - self._waiting
        self._waiting = waiting
        return stop
