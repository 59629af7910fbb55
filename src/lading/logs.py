"""What the server says: events through structlog, and the access log as one prebuilt line per request.

Both go to standard output, a line at a time, and neither ever waits for a reader that does not read.
"""

import fcntl
import functools
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, MutableMapping
from json.encoder import encode_basestring_ascii as _ascii
from typing import Literal, cast

import structlog

Style = Literal["auto", "console", "json"]

STDOUT = 1
# A write of at most PIPE_BUF bytes to a pipe is whole or not at all, also between processes (pipe(7)).
MAX_LINE_BYTES = select.PIPE_BUF
MAX_FIELD_BYTES = 560
CLIPPED_CHARACTERS = 44
EVENT_PATIENCE_MS = 200
SECOND_NS = 1_000_000_000

_RED, _GREEN, _YELLOW, _CYAN, _DIM, _PLAIN = (f"\x1b[{code}m" for code in (31, 32, 33, 36, 2, 0))
_Texts = tuple[str, str, str, str | None, str | None, str | None]
_Numbers = tuple[int, int, int, int]
_STATUS_COLOURS = {2: _GREEN, 3: _CYAN, 4: _YELLOW, 5: _RED}


def configure(style: Style, *, fd: int = STDOUT) -> None:
    """Send the program's events, and the warnings of libraries, to `fd`; called once, before the fork."""
    output = Output(fd)
    structlog.configure(
        processors=_console_chain(colours=output.colours) if output.is_console(style) else _json_chain(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _EventWriter(output),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToEvents()], level=logging.WARNING, force=True)


class AccessLog:
    """One line for each request that was answered."""

    def __init__(self, style: Style = "auto", *, fd: int = STDOUT, clock: Callable[[], int] = time.time_ns) -> None:
        self._output = Output(fd)
        self._line = self._console_line if self._output.is_console(style) else self._json_line
        self._clock = clock
        self._second = -1
        self._prefix = ""

    def write(  # noqa: PLR0913 - a record object would cost as much as the line (measured: 0.9 us of 3)
        self,
        *,
        request_id: str,
        method: str,
        route: str,
        repository: str | None,
        digest: str | None,
        status: int,
        sent_bytes: int,
        received_bytes: int,
        duration_us: int,
        client: str | None,
    ) -> None:
        """Write the line of one request, or drop it where the reader of standard output is gone or too slow.

        `route` is the route's name, or the path of a request that met none. `sent_bytes` and `received_bytes` count
        bodies. Texts may hold anything: what could break the line is escaped, what is too long is cut.
        """
        texts = (request_id, method, route, repository, digest, client)
        numbers = (status, sent_bytes, received_bytes, duration_us)
        line = self._line(texts, numbers)
        if len(line) > MAX_LINE_BYTES:
            optional = (repository and _clipped(repository), digest and _clipped(digest), client and _clipped(client))
            line = self._line((_clipped(request_id), _clipped(method), _clipped(route), *optional), numbers)
        if self._output.write(line.encode("ascii")) and self._output.dropped:
            lost, self._output.dropped = self._output.dropped, 0
            event_logger().warning("access log lines were dropped", count=lost)

    def close(self) -> None:
        """Give back what was opened; `fd` itself stays open."""
        self._output.close()

    def _json_line(self, texts: _Texts, numbers: _Numbers) -> str:
        request_id, method, route, repository, digest, client = texts
        status, sent_bytes, received_bytes, duration_us = numbers
        return (
            f'{{"event": "request", "at": "{self._now("%Y-%m-%dT%H:%M:%S")}Z", "request_id": {_ascii(request_id)}, '
            f'"method": {_ascii(method)}, "route": {_ascii(route)}, '
            f'"repository": {"null" if repository is None else _ascii(repository)}, '
            f'"digest": {"null" if digest is None else _ascii(digest)}, "status": {status}, "bytes": {sent_bytes}, '
            f'"received": {received_bytes}, "duration_us": {duration_us}, '
            f'"client": {"null" if client is None else _ascii(client)}}}\n'
        )

    def _console_line(self, texts: _Texts, numbers: _Numbers) -> str:
        _, method, route, repository, digest, client = map(_escaped, texts)
        status, sent_bytes, received_bytes, duration_us = numbers
        place = " ".join(text for text in (repository, _short(digest)) if text)
        sizes = f"{_human(received_bytes)} in, {_human(sent_bytes)} out, {duration_us / 1000:.1f} ms"
        colour, dim, plain = ("", "", "")
        if self._output.colours:
            colour, dim, plain = _STATUS_COLOURS.get(status // 100, ""), _DIM, _PLAIN
        return (
            f"{dim}{self._now('%H:%M:%S')[:-3]}{plain} {colour}{status}{plain} {method:<6} {route:<18} {place} "
            f"{dim}{sizes}, {client or 'unknown client'}{plain}\n"
        )

    def _now(self, layout: str) -> str:
        """Return the time in UTC with microseconds; the part down to the second is formatted once a second."""
        second, fraction_ns = divmod(self._clock(), SECOND_NS)
        if second != self._second:
            self._second, self._prefix = second, time.strftime(layout, time.gmtime(second))
        return f"{self._prefix}.{fraction_ns // 1000:06d}"


class Output:
    """A descriptor of text lines; a line it cannot take now is dropped, and counted in `dropped`."""

    def __init__(self, fd: int) -> None:
        self.dropped = 0
        self.is_terminal = os.isatty(fd)
        # NO_COLOR is every program's convention (no-color.org), not a setting of ours.
        self.colours = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._fd, self._send, self.close = _nonblocking(fd)
        self._torn = False

    def is_console(self, style: Style) -> bool:
        """Tell whether `style` means console style here."""
        return style == "console" or (style == "auto" and self.is_terminal)

    def write(self, line: bytes, *, patience_ms: int = 0) -> bool:
        """Write `line`, with its newline, and tell whether all of it was taken; wait at most `patience_ms` for room.

        A line that was cut in the middle is ended before the next one, which therefore stays whole.
        """
        deadline = time.monotonic() + patience_ms / 1000
        left = b"\n" + line if self._torn else line
        while left:
            try:
                sent = self._send(left)
            except BlockingIOError:
                if self._has_room_before(deadline):
                    continue
                break
            except OSError:  # nobody reads, or the disk is full: no reason to fail a request
                break
            left = left[sent:]
            self._torn = bool(left)
        self.dropped += bool(left)
        return not left

    def _has_room_before(self, deadline: float) -> bool:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(left_seconds * 1000))


def _nonblocking(fd: int) -> tuple[int, Callable[[bytes], int], Callable[[], None]]:
    """Return a descriptor for `fd`, how to write to it without ever waiting, and how to give it back.

    O_NONBLOCK belongs to the open file description, which our parent shell shares: setting it on `fd` itself would
    break other programs. So a pipe or a terminal is opened anew, and a socket is asked send by send.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            stream = socket.socket(fileno=os.dup(fd))
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            return stream.fileno(), lambda data: stream.send(data, flags), stream.close
        if stat.S_ISREG(mode):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
            return fd, functools.partial(os.write, fd), _keep_open
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # closed, of another user, or no /proc
        return fd, functools.partial(_write_where_room, fd), _keep_open
    return own, functools.partial(os.write, own), functools.partial(os.close, own)


def _keep_open() -> None:
    """Do nothing: the descriptor is the caller's."""


def _write_where_room(fd: int, data: bytes) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(fd, data[:MAX_LINE_BYTES])


def _escaped(text: str | None) -> str:
    """Return `text` in ASCII, without any control character; nothing for None."""
    return "" if text is None else _ascii(text)[1:-1]


def _clipped(text: str) -> str:
    return text if len(_escaped(text)) <= MAX_FIELD_BYTES else f"{text[:CLIPPED_CHARACTERS]}..."


def _short(digest: str) -> str:
    algorithm, colon, encoded = digest.partition(":")
    return f"{algorithm}{colon}{encoded[:12]}"


def _human(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


class _EventWriter:
    """Where structlog leaves its finished lines; events are few, so each may wait a moment for a slow reader."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def msg(self, message: str) -> None:
        self._output.write(f"{message}\n".encode("utf-8", "backslashreplace"), patience_ms=EVENT_PATIENCE_MS)

    debug = info = warning = error = critical = msg


class _ToEvents(logging.Handler):
    """Carries the records of libraries (uvicorn, asyncio) over to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        event_logger().log(record.levelno, record.getMessage().strip(), logger=record.name, exc_info=record.exc_info)


def _json_chain() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        _event_first,
        structlog.processors.JSONRenderer(),
    ]


def _console_chain(*, colours: bool) -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=True),
        structlog.processors.format_exc_info,
        _without_controls,
        structlog.dev.ConsoleRenderer(colors=colours),
    ]


def _event_first(_: object, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    return {"event": event.pop("event"), "at": event.pop("at"), **event}


def _without_controls(_: object, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Escape what a terminal would obey; a traceback keeps its line ends."""
    return {
        name: _printable(value, keep="\n" if name == "exception" else "") if isinstance(value, str) else value
        for name, value in event.items()
    }


def _printable(text: str, *, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else _ascii(character)[1:-1] for character in text
    )


def event_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the logger of the program's events."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())
