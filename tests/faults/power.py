"""A disk that loses its power: a file system in a loop image, shut down without flushing its log, and mounted again.

What the file system had not sent to the device by then is gone, as after a power cut. The machine itself does not boot
anew, so the server runs in a mount namespace where another file stands for the kernel's boot id.
"""

import contextlib
import fcntl
import os
import random
import shutil
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.capability.content import digest_of
from tests.capability.preloaded import Preloaded
from tests.capability.server import until
from tests.faults.load import Answer, Client, some_content
from tests.wire import Wire

SHUT_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same number
WITHOUT_LOG_FLUSH = 2
UNMOUNT_SECONDS = 60.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LARGE_SESSION_BYTES = (300_000, 700_000)  # above what a worker would simply read again


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How an image is made and mounted."""

    name: str
    mkfs: Sequence[str]
    options: str
    image_bytes: int


_EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")
_MIB = 1024 * 1024
FILE_SYSTEMS = (
    FileSystem("ext4-ordered", _EXT4, "data=ordered", 192 * _MIB),
    FileSystem("ext4-writeback", _EXT4, "data=writeback", 192 * _MIB),
    # Sizes become durable with the next commit of anybody, and the bytes much later: the worst that a PATCH can meet.
    FileSystem("ext4-writeback-nodelalloc", _EXT4, "data=writeback,nodelalloc", 192 * _MIB),
    FileSystem("xfs", ("mkfs.xfs", "-q", "-f"), "defaults", 320 * _MIB),
)


class Disk:
    """A mounted image. `folder` is where it is mounted, `boot_id` the file that stands for the kernel's."""

    def __init__(self, folder: Path, file_system: FileSystem) -> None:
        assert os.geteuid() == 0, "power cuts need root: they mount file systems; run this test as root"
        self.folder = folder / "disk"
        self.boot_id = folder / "boot_id"
        self._image = folder / "image"
        self._options = f"loop,{file_system.options}"
        self._root: int | None = None
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(file_system.image_bytes)
        _run(*file_system.mkfs, str(self._image))

    def __enter__(self) -> Self:
        # A mount point of its own, whose mounts also appear in the namespaces made below it.
        _run("mount", "--bind", str(self.folder), str(self.folder))
        _run("mount", "--make-shared", str(self.folder))
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        if self._root is not None:
            self.unmount()
        _run("umount", str(self.folder))

    def mount(self) -> None:
        """Mount the image, for a new boot: this is where the file system replays its log."""
        self.boot_id.write_text(f"{uuid.uuid4()}\n")
        _run("mount", "-o", self._options, str(self._image), str(self.folder))
        self._root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def cut(self) -> None:
        """Take the power away: from here on nothing reaches the image."""
        assert self._root is not None
        fcntl.ioctl(self._root, SHUT_DOWN, struct.pack("I", WITHOUT_LOG_FLUSH))

    def unmount(self) -> None:
        """Unmount, and wait until the file system is gone: what still holds it would get the dead one mounted again.

        Processes that were killed a moment ago do, and so does a mount namespace that anybody made meanwhile.
        """
        assert self._root is not None
        os.close(self._root)
        self._root = None
        assert until(
            lambda: subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode == 0,
            seconds=UNMOUNT_SECONDS,
        ), f"{self.folder} stays busy"
        assert until(self._is_released, seconds=UNMOUNT_SECONDS), f"{self._image} is held by another mount namespace"

    def _is_released(self) -> bool:
        listed = subprocess.run(["losetup", "-j", str(self._image)], capture_output=True, text=True, check=True)
        return not listed.stdout

    def preloaded(self, tree: Path | None = None) -> Preloaded:
        """Return a process whose commands see this disk, and its boot id for the kernel's."""
        script = f'mount --bind "$0" {BOOT_ID} && exec "$@"'
        prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, str(self.boot_id)]
        return Preloaded(tree=tree, prefix=prefix)


@contextlib.contextmanager
def mounted(folder: Path, file_system: FileSystem) -> Iterator[Disk]:
    """Make, mount and in the end remove a disk below `folder`."""
    try:
        with Disk(folder, file_system) as disk:
            yield disk
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # where it is still mounted, that is the error to be told


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


class Outage:
    """One power cut, right after the N-th acknowledged request of a kind."""

    def __init__(self, cut: Callable[[], None], *, after: int, methods: Sequence[str]) -> None:
        self.out = threading.Event()
        self.done = threading.Event()
        self._cut = cut
        self._left = after
        self._methods = methods
        self._lock = threading.Lock()

    def acknowledged(self, method: str) -> None:
        """Take note of a request that was answered as it should; this may be where the power goes."""
        if method not in self._methods:
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self.out.set()
        self._cut()
        self.done.set()


class CutClient(Client):
    """A client whose server may lose its disk. From that moment on it believes nothing.

    An fsync that overlaps the shutdown can return success for what the device never had, on ext4 and on XFS: seen once
    in fifty cuts, with nothing but pwrite and fsync. Where a plug is pulled, nobody is there to hear it.
    """

    def __init__(self, wire: Wire, repository: str, *, seed: str, shared: Sequence[bytes], outage: Outage) -> None:
        super().__init__(wire, repository, seed=seed, shared=shared)
        self.taken = 0
        self.refused = 0
        self._outage: Outage | None = outage

    def _ask(self, method: str, path: str, body: Any = None, *, expect: Sequence[int]) -> Answer:
        if self._outage is None:
            return super()._ask(method, path, body, expect=expect)
        if self._outage.out.is_set():
            raise ConnectionAbortedError("the power is out")
        try:
            answer = super()._ask(method, path, body, expect=expect)
        except AssertionError as error:
            if self._outage.out.is_set():
                raise ConnectionAbortedError("the disk is gone") from error
            raise
        if self._outage.out.is_set():
            raise ConnectionAbortedError("answered when the power was out")
        self._outage.acknowledged(method)
        return answer

    def _content(self) -> bytes:
        if self._random.random() < 0.3:
            return self._random.randbytes(self._random.randint(*LARGE_SESSION_BYTES))
        return super()._content()

    def begin(self, content: bytes) -> None:
        """Send all of it, and leave the commit for later."""
        self._append(self._start(content), content)

    def power_is_back(self) -> None:
        """Go on: the server was started again."""
        self.disconnect()
        self._outage = None

    def finish(self) -> None:
        """Commit every open session; a 201 must be for the right bytes, and a refusal is allowed: a 202 is no promise.

        Half of them do not ask how much is there, as a client that has had its 202 for everything would not.
        """
        for location, session in list(self.sessions.items()):
            content, body = session.content, b""
            gone = (404,) if session.ending else ()
            if session.acknowledged < len(content) or self._random.random() < 0.5:
                answer = self._ask("GET", location, expect=(204, *gone))
                end = int(answer.range.rpartition("-")[2] or 0)
                body = content[end + 1 if end else 0 :]
            answer = self._ask("PUT", f"{location}?digest={digest_of(content)}", body, expect=(201, 400, *gone))
            del self.sessions[location]
            if answer.status == 404:
                continue
            if answer.status == 201:
                self.taken += 1
                self.state = self._with_blob(content)
            else:
                self.refused += 1
                self._push_whole(content)


def new_cut_clients(wire: Wire, count: int, *, prefix: str, seed: str, outage: Outage) -> list[CutClient]:
    """Return clients that share some contents, as `load.new_clients` does, for one outage."""
    source = random.Random(seed)
    shared = [some_content(source) for _ in range(4)]
    return [
        CutClient(wire, f"{prefix}/client{n}", seed=f"{seed} {n}", shared=shared, outage=outage) for n in range(count)
    ]


def await_cut(outage: Outage, *, seconds: float, linger: float) -> None:
    """Wait for the cut, and then a moment in which the server works without a disk."""
    assert outage.done.wait(seconds), f"{seconds} s of load, and the moment of the cut did not come"
    time.sleep(linger)
