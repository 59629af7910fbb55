"""Small disks of a test's own, which can be filled and emptied as other programs do it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
FILLER = "filler"
_PIECES = (MIB, 4096, 1)


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system mounted at `place`."""

    place: Path

    def fill(self, most_bytes: int | None = None) -> None:
        """Take every block that is left, those that are kept for root as well, or some."""
        descriptor = os.open(self.place / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if most_bytes is not None:
                os.posix_fallocate(descriptor, 0, most_bytes)
                return
            for piece in _PIECES:
                with contextlib.suppress(OSError):
                    while True:
                        os.write(descriptor, b"\xff" * piece)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def fill_inodes(self) -> None:
        """Take every inode that is left."""
        folder = self.place / f"{FILLER}s"
        folder.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1_000_000):
                (folder / str(number)).touch()

    def free(self) -> None:
        """Give back what was taken."""
        (self.place / FILLER).unlink(missing_ok=True)
        if (folder := self.place / f"{FILLER}s").exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        _run("sync", "--file-system", str(self.place))  # some count it only then

    @property
    def free_bytes(self) -> int:
        """What an ordinary user may still write."""
        status = os.statvfs(self.place)
        return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def ext4(place: Path, *, mib: int = 64) -> Iterator[Disk]:
    """Mount a new ext4 in a file beside `place`."""
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    _run("mkfs.ext4", "-q", "-F", str(image))
    with _mounted(place, "-o", "loop", str(image)):
        yield Disk(place)
    image.unlink()


@contextlib.contextmanager
def xfs(place: Path) -> Iterator[Disk]:
    """Mount a new XFS in a file beside `place`; it makes none that is smaller."""
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    _run("mkfs.xfs", "-q", str(image))
    with _mounted(place, "-o", "loop", str(image)):
        yield Disk(place)
    image.unlink()


@contextlib.contextmanager
def btrfs(place: Path, *, quota_mib: int = 64) -> Iterator[Disk]:
    """Mount a new Btrfs in a file beside `place`, larger than the quota that all below `place` is held to.

    The index of the database's log lies outside: it is shared memory, and where a file system writes each page to a new
    place, a quota that has run out kills whoever touches it. Others give it its blocks when it is made.
    """
    image = place.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(8 * quota_mib * MIB)
    _run("mkfs.btrfs", "-q", str(image))
    with _mounted(place, "-o", "loop", str(image)):
        _run("btrfs", "quota", "enable", str(place))
        _run("btrfs", "quota", "rescan", "-w", str(place))
        _run("btrfs", "qgroup", "limit", f"{quota_mib}M", str(place))
        index, outside = place / "lading.db-shm", place.with_suffix(".shm")
        for path in (index, outside):
            path.touch()
        _run("mount", "--bind", str(outside), str(index))
        try:
            yield Disk(place)
        finally:
            _run("umount", "--lazy", str(index))
    image.unlink()


@contextlib.contextmanager
def overlay(place: Path) -> Iterator[Disk]:
    """Mount an overlay as containers have it, over folders of a tmpfs beside `place`."""
    with tmpfs(place.with_suffix(".layers")) as layers:
        lower, upper, work = (layers.place / name for name in ("lower", "upper", "work"))
        for folder in (lower, upper, work):
            folder.mkdir()
        with _mounted(place, "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay"):
            yield Disk(place)


@contextlib.contextmanager
def tmpfs(place: Path, *, mib: int = 64, inodes: int = 10_000) -> Iterator[Disk]:
    """Mount a new tmpfs at `place`."""
    with _mounted(place, "-t", "tmpfs", "-o", f"size={mib}m,nr_inodes={inodes}", "tmpfs"):
        yield Disk(place)


@contextlib.contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    place.mkdir(parents=True)
    _run("mount", *arguments, str(place))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(place))  # the processes of a server that was killed may take a moment to go


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
