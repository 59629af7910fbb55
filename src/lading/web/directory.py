"""The claim on the data directory: one server per directory, and proof at start that it can be written."""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lading.logs import event_logger
from lading.oci.errors import DataDirectoryInUse, DataDirectoryUnusable, DiskFull, StartRefused

LOCK_NAME = "lock"
PROBE_NAME = ".probe"
PROBE_BYTES = 4096
# The workers of a server that was killed go on for at most `worker.ORPHAN_SECONDS`, and hold the lock until then.
ORPHAN_WAIT_SECONDS = 6.0
POLL_SECONDS = 0.05
# On top of what a server that stops says it needs: it moves its database's log, and ends.
HANDOVER_SECONDS = 10.0
LOCK_TEXT_BYTES = 64
HOLDER = re.compile(
    rb"(?P<pid>\d{1,10})(?: on sockets (?P<sockets>[0-9a-f]{16}))?(?: stops within (?P<seconds>\d{1,6}) s)?\s*"
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Claim:
    """The lock that this server holds; what is written in the file is for those that want it next.

    `alone` tells whether no other server can be there yet. `sockets` names the listening sockets that a parent passed,
    and that another server may share.
    """

    lock: int
    alone: bool
    sockets: str | None

    def share(self) -> None:
        """Let servers on the same sockets come beside this one, now that the data directory is prepared.

        Raises:
            DataDirectoryInUse: in this very moment another has taken it.

        """
        if self.sockets is None or not self.alone:
            return
        try:
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataDirectoryInUse("another process has taken the data directory", "start it again") from error

    def ends_within(self, seconds: float) -> None:
        """Let a server that is started now wait for this one, which is stopping."""
        self.write(f" stops within {seconds:.0f} s")

    def write(self, more: str = "") -> None:
        """Say who holds the lock, in one write of always the same length: others read it meanwhile.

        Where a file system writes anew what changes, a full disk may refuse it; the lock is held all the same.
        """
        text = f"{os.getpid()}{f' on sockets {self.sockets}' if self.sockets else ''}{more}"
        try:
            os.pwrite(self.lock, f"{text:<{LOCK_TEXT_BYTES - 1}}\n".encode(), 0)
        except OSError as error:
            if error.errno not in _FULL:
                raise


@dataclass(frozen=True, slots=True)
class _Holder:
    """The server that holds the lock, as the lock's file tells; `stops_within` seconds, or not at all."""

    pid: int | None
    stops_within: float | None
    sockets: str | None

    @classmethod
    def read(cls, lock: int) -> "_Holder":
        said = HOLDER.fullmatch(os.pread(lock, LOCK_TEXT_BYTES, 0))
        if said is None:
            return cls(None, None, None)
        stops_within = float(said["seconds"]) + HANDOVER_SECONDS if said["seconds"] else None
        return cls(int(said["pid"]), stops_within, said["sockets"].decode() if said["sockets"] else None)

    @property
    def lives(self) -> bool:
        """Whether it lives; one that did not write its id yet does."""
        if self.pid is None:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


@contextlib.contextmanager
def claimed(data: Path, sockets: str | None = None) -> Iterator[Claim]:
    """Make `data` if it is missing, and hold its lock; processes forked meanwhile hold it until they end.

    A server that is stopping, or was killed, is waited for. One on the same `sockets` is meant to be there: their
    parent gave them to both, so that one can take the other's place.

    Raises:
        DataDirectoryInUse: another server holds it.
        DataDirectoryUnusable: it cannot be made or written.
        DiskFull: there is no room in it.

    """
    place = data.absolute()
    lock = _open(place)
    try:
        claim = Claim(lock, _lock(place, lock, sockets), sockets)
        try:
            _probe_unless_full(place, lock)
            claim.write()
        except OSError as error:
            raise _refusal(place, "written", error) from error
        yield claim
    finally:
        os.close(lock)


def _open(place: Path) -> int:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(place, "made", error) from error
    try:
        return os.open(place / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _refusal(place, "written", error) from error


def _lock(place: Path, lock: int, sockets: str | None) -> bool:
    """Wait for the lock, and tell whether nobody else has a share of it."""
    began, told = time.monotonic(), False
    while True:
        try:
            return _take(lock, sockets)
        except BlockingIOError as error:
            holder = _Holder.read(lock)
            if time.monotonic() - began > _patience_seconds(holder):
                raise DataDirectoryInUse(
                    f"another Lading server is using the data directory {place} (process {holder.pid or 'unknown'})",
                    "stop that one first, or give this one a directory of its own with --data",
                ) from error
            if holder.stops_within is not None and not told:
                event_logger().info("waiting for the server before this one to stop", pid=holder.pid)
                told = True
            time.sleep(POLL_SECONDS)
        except OSError as error:
            raise _refusal(place, "locked", error) from error


def _take(lock: int, sockets: str | None) -> bool:
    """Take all of the lock, or a share of it where those that have one are on the same sockets; tell which.

    Raises:
        BlockingIOError: neither can be had.

    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if sockets is None:
            raise
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if _Holder.read(lock).sockets != sockets:
            fcntl.flock(lock, fcntl.LOCK_UN)
            raise
        return False
    return True


def _patience_seconds(holder: _Holder) -> float:
    if holder.stops_within is not None:
        return holder.stops_within
    return 0.0 if holder.lives else ORPHAN_WAIT_SECONDS


def _probe_unless_full(place: Path, lock: int) -> None:
    """Let a directory that was served before be served from a full disk: pulls and deletes need no room."""
    try:
        _probe(place)
    except OSError as error:
        if error.errno not in _FULL or not os.fstat(lock).st_size:
            raise


def _probe(place: Path) -> None:
    """Write a block and make it durable: what a full or read-only disk refuses is refused now, in a sentence."""
    path = place / PROBE_NAME
    probe = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(probe, b"\0" * PROBE_BYTES)
        os.fsync(probe)
    finally:
        os.close(probe)
        path.unlink(missing_ok=True)


def _refusal(place: Path, verb: str, error: OSError) -> StartRefused:
    if error.errno in _FULL:
        return DiskFull(f"the disk of the data directory {place} is full", "make room on it and start again")
    reason = (error.strerror or "unknown error").lower()
    return DataDirectoryUnusable(
        f"the data directory {place} cannot be {verb}: {reason}",
        "give another with --data, or let the user that runs Lading write there",
    )
