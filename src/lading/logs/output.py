"""A descriptor that was given to us, mostly standard output, written to without ever waiting for its reader."""

import fcntl
import functools
import os
import select
import socket
import stat
import time
from collections.abc import Callable

from lading.logs.lost import Lost

STDOUT = 1
STDERR = 2
# A write of at most PIPE_BUF bytes to a pipe is whole or not at all, also between processes (pipe(7)).
MAX_LINE_BYTES = select.PIPE_BUF
EVENT_PATIENCE_MS = 200


class Output:
    """A descriptor of text lines; a line it cannot take now is dropped, and counted."""

    def __init__(self, fd: int) -> None:
        self._lost = Lost()
        self.is_terminal = os.isatty(fd)
        # NO_COLOR is every program's convention (no-color.org), not a setting of ours.
        self.colours = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._fd, self._send, self.close = _nonblocking(fd)
        self._torn = False

    def put(self, line: bytes, *, urgent: bool = False) -> None:
        """Write `line`, or drop it; an urgent one waits a moment for room. Tell of what was dropped when one passes."""
        if self.write(line, patience_ms=EVENT_PATIENCE_MS if urgent else 0):
            if self._lost.untold:
                self._lost.tell()
        else:
            self._lost.add(1)

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
