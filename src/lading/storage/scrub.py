"""Reading objects again from the disk, and taking wrong ones out of the store.

DATA/scrub.lock                     held by the one process that scrubs
DATA/quarantine/<hex>.<upload id>   objects that had other bytes than they should; nothing serves them
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Generator
from pathlib import Path

from lading.oci.digest import Digest, RunningDigest
from lading.oci.errors import ScrubStopped
from lading.storage.disk import sync_directory
from lading.storage.verify import Condition, Look

QUARANTINE = "quarantine"
_PIECE_BYTES = 1024 * 1024
# What disks and file systems say when content is lost. Anything else (no right to read, no descriptor) is our trouble.
_LOST = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.ELOOP})


def examine(path: Path, content_bytes: int, digest: Digest) -> Generator[int | Look, None, None]:
    """Hash an object as it is on the disk; yield the bytes of each piece that was read, and in the end what was found.

    Raises:
        ScrubStopped: this process cannot read it, which says nothing of the object.

    """
    try:
        # Not blocking: what lies there may be anything, a pipe that nobody writes, too.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield Look(Condition.MISSING)
        return
    except OSError as error:
        yield _lost(error, path)
        return
    try:
        yield from _examine(descriptor, content_bytes, digest)
    except OSError as error:
        yield _lost(error, path, content_bytes)
    finally:
        os.close(descriptor)


def _examine(descriptor: int, content_bytes: int, digest: Digest) -> Generator[int | Look, None, None]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        yield Look(Condition.WRONG, status.st_size)
        return
    if status.st_size != content_bytes:
        yield Look(Condition.SHORT if status.st_size < content_bytes else Condition.LONG, status.st_size)
        return
    # Nothing is read ahead, only to be dropped and read again.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    running = RunningDigest(digest.algorithm)
    while piece := _read(descriptor, running.seen_bytes):
        running.update(piece)
        yield len(piece)
    yield Look(Condition.WHOLE if running.digest() == digest else Condition.WRONG, content_bytes)


def _read(descriptor: int, offset: int) -> bytes:
    """Read a piece from the disk, not from memory, and leave nothing in memory: there is what pulls have put there.

    What was in memory goes as well, once in a pass: the next pull of it reads the disk once more.
    """
    os.posix_fadvise(descriptor, offset, _PIECE_BYTES, os.POSIX_FADV_DONTNEED)
    piece = os.pread(descriptor, _PIECE_BYTES, offset)
    os.posix_fadvise(descriptor, offset, _PIECE_BYTES, os.POSIX_FADV_DONTNEED)
    return piece


def _lost(error: OSError, path: Path, file_bytes: int = 0) -> Look:
    if error.errno not in _LOST:
        raise ScrubStopped(f"{path} cannot be read: {error.strerror}") from error
    return Look(Condition.UNREADABLE, file_bytes, error.strerror or str(error))


def quarantine(data: Path, object_key: str) -> str:
    """Move an object out of the store, durably; return where it is. No row names it any more.

    Raises:
        OSError: it stays where it is.

    """
    source = data / "objects" / object_key
    folder = data / QUARANTINE
    if not folder.is_dir():
        folder.mkdir(mode=0o750, exist_ok=True)
        sync_directory(data)
    target = folder / source.name
    with contextlib.suppress(FileNotFoundError):
        source.rename(target)
        os.utime(target, follow_symlinks=False)  # since when it is there
    sync_directory(folder)
    sync_directory(source.parent)
    return f"{QUARANTINE}/{source.name}"


def empty_quarantine(data: Path, *, kept_seconds: float) -> int:
    """Remove what was moved there longer ago; return how many files."""
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for path in (data / QUARANTINE).iterdir():
            if path.lstat().st_mtime < time.time() - kept_seconds and not path.is_dir():
                path.unlink()
                removed += 1
    return removed
