"""The claim on the data directory: one server per directory, and proof at start that it can be written."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lading.oci.errors import DataDirectoryInUse, DataDirectoryUnusable, DiskFull, StartRefused

LOCK_NAME = "lock"
PROBE_NAME = ".probe"
PROBE_BYTES = 4096
# The workers of a server that was killed go on for at most `worker.ORPHAN_SECONDS`, and hold the lock until then.
ORPHAN_WAIT_SECONDS = 6.0
ORPHAN_POLL_SECONDS = 0.05
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def claimed(data: Path) -> Iterator[None]:
    """Make `data` if it is missing, and hold its lock; processes forked meanwhile hold it until they end.

    Raises:
        DataDirectoryInUse: another server holds it.
        DataDirectoryUnusable: it cannot be made or written.
        DiskFull: there is no room in it.

    """
    place = data.absolute()
    lock = _open(place)
    try:
        _lock(place, lock)
        try:
            _probe(place)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _refusal(place, "written", error) from error
        yield
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


def _lock(place: Path, lock: int) -> None:
    end = time.monotonic() + ORPHAN_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(lock)
            if _lives(holder) or time.monotonic() > end:
                raise DataDirectoryInUse(
                    f"another Lading server is using the data directory {place} (process {holder or 'unknown'})",
                    "stop that one first, or give this one a directory of its own with --data",
                ) from error
            time.sleep(ORPHAN_POLL_SECONDS)
        except OSError as error:
            raise _refusal(place, "locked", error) from error
        else:
            return


def _holder(lock: int) -> int | None:
    text = os.pread(lock, 20, 0).strip()
    return int(text) if text.isdigit() else None


def _lives(pid: int | None) -> bool:
    """Tell whether the holder lives; one that did not write its id yet does."""
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _probe(place: Path) -> None:
    """Write a block and make it durable: what a full or read-only disk refuses is refused now, in a sentence."""
    path = place / PROBE_NAME
    probe = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(probe, b"\0" * PROBE_BYTES)
        os.fsync(probe)
    finally:
        os.close(probe)
        path.unlink()


def _refusal(place: Path, verb: str, error: OSError) -> StartRefused:
    if error.errno in _FULL:
        return DiskFull(f"the disk of the data directory {place} is full", "make room on it and start again")
    reason = (error.strerror or "unknown error").lower()
    return DataDirectoryUnusable(
        f"the data directory {place} cannot be {verb}: {reason}",
        "give another with --data, or let the user that runs Lading write there",
    )
