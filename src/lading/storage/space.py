"""Free space: a floor under which nothing new is stored, and a ballast that deletes get when nothing is left.

    DATA/ballast/0 ... 7      files that hold space and inodes, and no content

The floor stops uploads while the database still has room for deletes. Other programs do not keep to it: when they fill
the disk, the ballast is given up, and since it is smaller than the floor, no upload can take what it frees. A quota
shows only when the kernel refuses something: then pushes wait until it would let the ballast be made again.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from lading.oci.errors import StorageFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the kernel says when there is no room: blocks, inodes, or a quota."""

_FLOOR_BYTES = 64 * 1024 * 1024
_SMALLEST_SHARE = 8
"""The floor is at most one eighth of the disk, unless a setting says otherwise."""
_FLOOR_INODES = 32
_BALLAST_SHARE = 4
_BALLAST_FILES = 8
_SILENT_SECONDS = 60.0
_QUOTA_SECONDS = 1.0
_SPARE_BYTES = 1024 * 1024
"""What a start needs at most: the shared memory of the database and a few small files."""

log = structlog.get_logger(__name__)


class Space:
    """The room on the disk of one data directory. `floor_bytes` None takes 64 MiB, or an eighth of a small disk."""

    def __init__(self, data: Path, *, floor_bytes: int | None = None) -> None:
        self._data = data
        self._ballast = data / "ballast"
        self._floor_bytes = floor_bytes
        self._silent_until = 0.0
        self._quota_asked_again = 0.0
        self._quota_refuses = False

    def refuse_if_scarce(self, more_bytes: int = 0) -> None:
        """Refuse to store `more_bytes`: two microseconds, so each piece of an upload is asked about.

        Raises:
            StorageFull: less than the floor would be left, or too few inodes, or a quota has run out.

        """
        status = os.statvfs(self._data)
        free_bytes, floor_bytes = _free_bytes(status), self._floor(status)
        if (
            free_bytes - more_bytes < floor_bytes
            or _lacks_inodes(status, _FLOOR_INODES)
            or self._is_short_of_quota(free_bytes, floor_bytes)
        ):
            self._tell_operator(more_bytes, free_bytes, floor_bytes, status.f_favail)
            raise StorageFull

    def _tell_operator(self, more_bytes: int, free_bytes: int, floor_bytes: int, free_inodes: int) -> None:
        now = time.monotonic()
        if now < self._silent_until:
            return
        self._silent_until = now + _SILENT_SECONDS
        log.error(
            "the disk is full: pushes are refused, pulls and deletes go on; make room",
            data=str(self._data),
            wanted_bytes=more_bytes,
            free_bytes=free_bytes,
            min_free_bytes=floor_bytes,
            free_inodes=free_inodes,
        )

    def is_scarce(self) -> bool:
        """Tell whether less than the floor is left."""
        return not self.has_room_for(0)

    def has_room_for(self, more_bytes: int) -> bool:
        """Tell whether the floor would be left if `more_bytes` were stored."""
        status = os.statvfs(self._data)
        return _free_bytes(status) - more_bytes >= self._floor(status)

    def is_exhausted(self) -> bool:
        """Tell whether not even a start is sure to find the little room that it needs, or a quota lets it have it."""
        status = os.statvfs(self._data)
        if _free_bytes(status) < _SPARE_BYTES or _lacks_inodes(status, _BALLAST_FILES):
            return True
        return self._is_refused(_SPARE_BYTES)

    def _is_short_of_quota(self, free_bytes: int, floor_bytes: int) -> bool:
        """Tell whether the ballast is gone, and refused although there seems to be room: it was a quota that took it.

        One stat while the ballast is there; else it is tried once a second.
        """
        ballast_bytes = floor_bytes // _BALLAST_SHARE
        if not ballast_bytes or free_bytes - ballast_bytes < floor_bytes or self._holds_ballast():
            return False
        now = time.monotonic()
        if now >= self._quota_asked_again:
            self._quota_asked_again = now + _QUOTA_SECONDS
            self._quota_refuses = self._is_refused(ballast_bytes)
        return self._quota_refuses

    def _holds_ballast(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return (self._ballast / str(_BALLAST_FILES - 1)).stat().st_size > 0
        return False

    def _is_refused(self, more_bytes: int) -> bool:
        try:
            with tempfile.TemporaryFile(dir=self._data) as file:
                os.posix_fallocate(file.fileno(), 0, more_bytes)
                os.fsync(file.fileno())  # some network file systems hear of a quota only now
        except OSError as error:
            return error.errno in FULL
        return False

    def give_up_ballast(self) -> bool:
        """Free the ballast's space, at once; False when there was none. Any process may, at any time."""
        if not self._ballast.is_dir():
            return False
        with self._alone() as folder:
            freed = sum(_unlink(folder, str(number)) for number in range(_BALLAST_FILES))
            os.fsync(folder)  # some file systems free the blocks only with this
        if freed:
            log.error("the disk is full: the ballast was given up, so that deletes go on", data=str(self._data))
        return freed > 0

    def hold_ballast(self) -> None:
        """Make what is missing of the ballast, while the floor stays free beside it."""
        try:
            self._ballast.mkdir(exist_ok=True)
            with self._alone() as folder:
                for number in range(_BALLAST_FILES):
                    self._hold(folder, str(number))
        except StorageFull:
            return
        except OSError as error:
            if error.errno not in FULL:
                raise

    def _hold(self, folder: int, name: str) -> None:
        """Make one file of the ballast.

        Raises:
            StorageFull: there is no room for it.

        """
        status = os.statvfs(self._data)
        floor_bytes = self._floor(status)
        size = floor_bytes // _BALLAST_SHARE // _BALLAST_FILES
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=folder).st_size >= size:
                return
        if _free_bytes(status) - size < floor_bytes or _lacks_inodes(status, _FLOOR_INODES):
            raise StorageFull
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            os.posix_fallocate(descriptor, 0, max(1, size))
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        """Open the ballast's folder, as the only process that changes it."""
        folder = os.open(self._ballast, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(folder)

    def _floor(self, status: os.statvfs_result) -> int:
        if self._floor_bytes is not None:
            return self._floor_bytes
        return min(_FLOOR_BYTES, status.f_blocks * status.f_frsize // _SMALLEST_SHARE)


def _free_bytes(status: os.statvfs_result) -> int:
    """Return what an ordinary user may still write; a file system that does not count (ramfs) has endless room."""
    return status.f_bavail * status.f_frsize if status.f_blocks else 2**63


def _lacks_inodes(status: os.statvfs_result, wanted: int) -> bool:
    return bool(status.f_files) and status.f_favail < wanted


def _unlink(folder: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
