"""What a data directory's file system must do, tried at each start: sync, link, replace, lock between processes.

One that only says that it did loses what was acknowledged, so it is refused before anything is written.
"""

import contextlib
import fcntl
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from lading.oci.errors import DataDirectoryUnusable
from lading.storage.space import FULL

_NAME = ".probe"
_CONTENT = b"probe"
_SECONDS = 30
_HINT = "keep the data directory on a local disk with ext4, XFS or btrfs, or name another with --data"
_NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)
"""Types that `/proc/self/mountinfo` names; those that start with `fuse.` are known by what follows."""
_FUSE_NETWORK = frozenset({"davfs", "glusterfs", "rclone", "s3fs", "sshfs"})

log = structlog.get_logger(__name__)


def refuse_unfit(data: Path) -> None:
    """Try what the database needs of the file system at `data`, and what objects need of theirs.

    A full disk cannot be tried; a directory that was served before is then taken as it is.

    Raises:
        DataDirectoryUnusable: the sentence names the file system and what it cannot do.

    """
    kind = file_system(data)
    try:
        for attempt in (_sync, _link, _replace, _lock):
            with _scratch(data) as path:
                _try(attempt, path, kind)
    except OSError as error:
        if error.errno not in FULL:
            raise
        log.warning("the disk is full: what its file system can do was not tried", data=str(data))
    if is_network(kind):
        log.warning(
            "the data directory is on a network file system: its answers and its locks are only as good as the network",
            data=str(data),
            file_system=kind,
        )


def refuse_unlinked(uploads: Path, objects: Path) -> None:
    """Refuse staging files and objects on different file systems: a commit is a link from one to the other.

    Raises:
        DataDirectoryUnusable: one cannot be linked to the other.

    """
    probe, link = uploads / _NAME, objects / _NAME
    try:
        probe.touch()
        link.unlink(missing_ok=True)
        link.hardlink_to(probe)
    except OSError as error:
        if error.errno in FULL:
            log.warning("the disk is full: whether objects are on the disk of uploads was not tried")
            return
        raise DataDirectoryUnusable(
            f"{objects.parent} cannot hold links to files in {uploads}: {(error.strerror or '').lower()}",
            "keep the whole data directory on one file system that has hard links",
        ) from error
    finally:
        link.unlink(missing_ok=True)
        probe.unlink(missing_ok=True)


def file_system(place: Path, mountinfo: str | None = None) -> str:
    """Return the type of the file system at `place`, as the kernel calls it in `/proc/self/mountinfo`, or `unknown`."""
    place = place.resolve()
    found, depth = "unknown", 0
    if mountinfo is None:
        mountinfo = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split(" ")[4]))
        if place.is_relative_to(point) and len(point.parts) >= depth:  # a later one covers an earlier one
            found, depth = rest.split(" ")[0], len(point.parts)
    return found


def is_network(kind: str) -> bool:
    """Tell whether a file system of that type is another machine's."""
    return kind in _NETWORK or kind.removeprefix("fuse.") in _FUSE_NETWORK


class _UnfitError(Exception):
    """The file system did something else than it was asked to."""


def _try(attempt: Callable[[Path, int], None], path: Path, kind: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, _CONTENT, 0)
        attempt(path, descriptor)
    except (OSError, _UnfitError, ValueError, subprocess.TimeoutExpired) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        reason = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
        wanted = (attempt.__doc__ or "").partition(".")[0].lower()
        raise DataDirectoryUnusable(
            f"the file system of {path.parent} ({kind}) cannot {wanted}: {reason}", _HINT
        ) from error
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _scratch(data: Path) -> Iterator[Path]:
    """Give a name that is free, and leave nothing behind; what a killed start left goes as well."""
    path = data / _NAME
    names = (path, _other(path))
    for name in names:
        name.unlink(missing_ok=True)
    try:
        yield path
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def _other(path: Path) -> Path:
    return path.with_name(f"{path.name}.other")


def _sync(path: Path, descriptor: int) -> None:
    """Sync files and folders."""
    os.fsync(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _link(path: Path, descriptor: int) -> None:
    """Make hard links."""
    os.link(path, _other(path))
    if os.fstat(descriptor).st_nlink != 2 or _other(path).read_bytes() != _CONTENT:
        raise _UnfitError("the link is another file")
    try:
        os.link(path, _other(path))
    except FileExistsError:
        return
    raise _UnfitError("a link took the place of a file")


def _replace(path: Path, descriptor: int) -> None:
    """Replace a file by another at once."""
    _other(path).write_bytes(b"old")
    path.replace(_other(path))
    if not os.path.samestat(_other(path).stat(), os.fstat(descriptor)):
        raise _UnfitError("the old file is still there")


def _lock(path: Path, descriptor: int) -> None:
    """Lock and share files between processes."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    with mmap.mmap(descriptor, len(_CONTENT)) as memory:
        command = [sys.executable, "-I", "-S", "-c", _OTHER_PROCESS, str(path)]
        other = subprocess.run(command, check=False, timeout=_SECONDS)  # noqa: S603 - our own words, our own path
        if other.returncode:
            raise _UnfitError(_FOUND_BY_OTHER.get(other.returncode, "another process cannot open them"))
        if memory[:] != _CONTENT.upper():
            raise _UnfitError("what one process writes another does not see")


_OTHER_PROCESS = """
import fcntl, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for code, lock in (3, fcntl.flock), (4, fcntl.lockf):
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        continue
    sys.exit(code)
with mmap.mmap(file, 0) as memory:
    memory[:] = memory[:].upper()
"""
_FOUND_BY_OTHER = {
    3: "two processes got the same lock of a file (flock)",
    4: "two processes got the same lock of a range (fcntl)",
}
