"""Kills a process tree at its N-th mutating system call below one directory, counted over all threads and children.

The processes carry a seccomp filter that asks a listener before each such call (SECCOMP_RET_USER_NOTIF), so the calls
come one at a time, in one order. strace's `when=N` counts for each thread alone and misses most points.

Stores through a memory map, as SQLite makes in its `-shm` file, are no system calls: no point lies between them. That
file holds nothing that must outlive a crash.
"""

import collections
import contextlib
import ctypes
import enum
import fcntl
import itertools
import os
import platform
import select
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_MILLISECONDS = 100
SPINS = 20
JOIN_SECONDS = 10.0
MAX_PATH_BYTES = 4096
PAGE_BYTES = 4096

# From linux/seccomp.h, linux/filter.h, linux/audit.h and asm/unistd_64.h.
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_FLAG_WAIT_KILLABLE = 1 << 5  # else a signal sends the call, already counted, round again
_RET_USER_NOTIF = 0x7FC00000
_RET_ALLOW = 0x7FFF0000
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_AT_NUMBER, _AT_ARCH, _AT_THIRD_ARGUMENT = 0, 4, 32
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_CONTINUE = 1
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class _Kind:
    """A call that changes files; which argument is its descriptor, or its path and the directory that it is below."""

    name: str
    path: int | None = None
    descriptor: int | None = None


_OPENAT = 257
_KINDS = {
    1: _Kind("write", descriptor=0),
    18: _Kind("pwrite64", descriptor=0),
    20: _Kind("writev", descriptor=0),
    40: _Kind("sendfile", descriptor=0),
    74: _Kind("fsync", descriptor=0),
    75: _Kind("fdatasync", descriptor=0),
    76: _Kind("truncate", path=0),
    77: _Kind("ftruncate", descriptor=0),
    82: _Kind("rename", path=0),
    83: _Kind("mkdir", path=0),
    84: _Kind("rmdir", path=0),
    85: _Kind("creat", path=0),
    86: _Kind("link", path=0),
    87: _Kind("unlink", path=0),
    88: _Kind("symlink", path=1),
    90: _Kind("chmod", path=0),
    91: _Kind("fchmod", descriptor=0),
    93: _Kind("fchown", descriptor=0),
    _OPENAT: _Kind("openat", path=1, descriptor=0),
    258: _Kind("mkdirat", path=1, descriptor=0),
    263: _Kind("unlinkat", path=1, descriptor=0),
    264: _Kind("renameat", path=1, descriptor=0),
    265: _Kind("linkat", path=1, descriptor=0),
    266: _Kind("symlinkat", path=2, descriptor=1),
    268: _Kind("fchmodat", path=1, descriptor=0),
    277: _Kind("sync_file_range", descriptor=0),
    285: _Kind("fallocate", descriptor=0),
    296: _Kind("pwritev", descriptor=0),
    316: _Kind("renameat2", path=1, descriptor=0),
    326: _Kind("copy_file_range", descriptor=2),
    328: _Kind("pwritev2", descriptor=0),
}


class When(enum.Enum):
    """On which side of the call the kill falls."""

    BEFORE = "before"
    AFTER = "after"


def install_filter() -> int:
    """Have this process and all its children ask before each call of `_KINDS`; return the listener's descriptor.

    Raises:
        RuntimeError: this machine is no x86-64, or its kernel is older than 5.19.

    """
    if platform.machine() != "x86_64":
        raise RuntimeError(
            f"crash points need x86-64, whose call numbers the filter knows; this is {platform.machine()}"
        )
    program = _program()
    instructions = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    pointer = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    flags = _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE
    listener: int = libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, pointer)
    if listener < 0:
        reason = os.strerror(ctypes.get_errno())
        raise RuntimeError(f"crash points need Linux 5.19 or newer with seccomp user notification: {reason}")
    return listener


def _program() -> Sequence[bytes]:
    """Return the filter: openat is asked about only where it may make a file."""

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    numbers = sorted(_KINDS.keys() - {_OPENAT})
    checks = [instruction(_JUMP_EQUAL, number, len(numbers) - at + 3) for at, number in enumerate(numbers)]
    return [
        instruction(_LOAD, _AT_ARCH),
        instruction(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, 1),
        instruction(_RETURN, _RET_ALLOW),
        instruction(_LOAD, _AT_NUMBER),
        *checks,
        instruction(_JUMP_EQUAL, _OPENAT, 0, 2),
        instruction(_LOAD, _AT_THIRD_ARGUMENT),
        instruction(_JUMP_ANY_BIT, os.O_CREAT, 1),
        instruction(_RETURN, _RET_ALLOW),
        instruction(_RETURN, _RET_USER_NOTIF),
    ]


@dataclass(frozen=True, slots=True)
class _Notification:
    """A call that waits for the listener's word."""

    number: int
    thread: int
    id: int
    arguments: Sequence[int]


class Injector:
    """Answers one tree's calls, in a thread, until the tree is gone; from `arm` on it counts those below `folder`."""

    def __init__(self, listener: int, folder: Path, kill: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self._listener = listener
        self._prefix = f"{folder}/"
        self._kill = kill
        self._point: int | None = None
        self._when = When.BEFORE
        self._armed = False
        self._killed = threading.Event()
        self._held: collections.deque[_Notification] = collections.deque()
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._thread = threading.Thread(target=self._serve, name="injector", daemon=True)

    @property
    def reached(self) -> bool:
        """Whether the tree was killed at its point."""
        return self._killed.is_set()

    def arm(self, point: int | None, when: When) -> None:
        """Count from here on, and kill at call number `point`, the first being 1; None only counts."""
        self.calls, self._point, self._when, self._armed = [], point, when, True

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Wait until the tree is gone."""
        self._thread.join(JOIN_SECONDS)
        assert not self._thread.is_alive(), "processes with the filter are still there"
        os.close(self._listener)

    def _serve(self) -> None:
        while not self._hung_up():
            call = self._held.popleft() if self._held else self._receive(POLL_MILLISECONDS)
            if call is None or self.reached:  # from then on nothing is answered: the tree is dying
                continue
            if not self._counts(call):
                self._let(call)
                continue
            at_point = len(self.calls) == self._point
            if not at_point or self._when is When.AFTER:
                self._let(call)
                self._await_return(call)
            if at_point:
                self._killed.set()
                self._kill()

    def _hung_up(self) -> bool:
        """Tell whether no process has the filter any more."""
        return any(event & select.POLLHUP for _, event in self._poll.poll(0))

    def _receive(self, milliseconds: int) -> _Notification | None:
        if not any(event & select.POLLIN for _, event in self._poll.poll(milliseconds)):
            return None
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _NOTIF_RECV, buffer)
        except FileNotFoundError:  # the thread was killed meanwhile
            return None
        notification_id, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        return _Notification(number, thread, notification_id, arguments)

    def _let(self, call: _Notification) -> None:
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(self._listener, _NOTIF_SEND, _RESPONSE.pack(call.id, 0, 0, _CONTINUE))

    def _await_return(self, call: _Notification) -> None:
        """Wait until the call is over: its thread is in another one, or asks for the next. Others are held meanwhile.

        Without this, a call could be counted and not have happened yet when the tree is killed at a later one.
        """
        state = Path(f"/proc/{call.thread}/syscall")
        for turn in itertools.count():
            following = self._receive(int(turn > SPINS))
            if following is not None:
                self._held.append(following)
                if following.thread == call.thread:
                    return
            try:
                now = state.read_text().split()[0]
            except OSError:  # killed, or at its end
                return
            if now not in {"running", str(call.number)}:
                return

    def _counts(self, call: _Notification) -> bool:
        if not self._armed:
            return False
        kind = _KINDS[call.number]
        try:
            target = _target(call, kind)
        except OSError:  # its thread was killed meanwhile
            return False
        if target != self._prefix[:-1] and not target.startswith(self._prefix):
            return False
        self.calls.append(f"{kind.name} {target.removeprefix(self._prefix)}")
        return True


def _target(call: _Notification, kind: _Kind) -> str:
    """Return the path that the call changes."""
    process = Path(f"/proc/{call.thread}")
    base = ""
    if kind.descriptor is not None:
        number = ctypes.c_int(call.arguments[kind.descriptor]).value
        base = str((process / ("cwd" if number == _AT_FDCWD else f"fd/{number}")).readlink())
    elif kind.path is not None:
        base = str((process / "cwd").readlink())
    if kind.path is None:
        return base
    return os.path.normpath(os.path.join(base, _text_at(process, call.arguments[kind.path])))  # noqa: PTH118 - text


def _text_at(process: Path, address: int) -> str:
    """Return the text at an address in the process, which ends with a NUL, a page at a time."""
    text = b""
    with (process / "mem").open("rb", buffering=0) as memory:
        while b"\0" not in text and len(text) < MAX_PATH_BYTES:
            memory.seek(address + len(text))
            text += memory.read(PAGE_BYTES - (address + len(text)) % PAGE_BYTES)
    return os.fsdecode(text.partition(b"\0")[0])
