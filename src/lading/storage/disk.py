"""Objects on the local disk.

    DATA/uploads/<upload id>                  staging: an upload session's bytes; its size is the session's offset
    DATA/objects/<2 hex>/<hex>.<upload id>    objects: hard links made from synced staging files, never written again
    DATA/objects/registry-store.json          the store's identity (see `identity`)

An object's key is never reused (I2): upload ids are 128 random bits, and a session commits once. A staging file with a
second link is a commit that was cut short: the link's name ends in its id.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

import structlog

from lading import metrics
from lading.metrics import here
from lading.oci.digest import Algorithm, Digest, RunningDigest
from lading.oci.errors import Busy, Internal, StorageFull, StoreUnavailable, SyncFailed, UploadInvalid
from lading.storage import probe
from lading.storage.space import FULL, Space
from lading.storage.tally import StagedBytes

P = ParamSpec("P")
T = TypeVar("T")
Buffers = Sequence[bytes | memoryview]

log = structlog.get_logger(__name__)

_THREADS = 8
_INLINE_BYTES = 64 * 1024
_REHASH_BYTES = 1024 * 1024
_PROBED_BYTES = 256 * 1024
_MAX_VECTOR = 512
OBJECT_FOLDERS = 256
"""The folders that objects lie in: one for each first byte of a digest."""
OBJECT_NAME = re.compile(r"([0-9a-f]{2})[0-9a-f]{62}(?:[0-9a-f]{64})?\.([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
"""An object's file: the folder that it belongs into, and the upload session that made it."""
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn the disk's errors into ours, once, at this edge."""
    try:
        yield
    except OSError as error:
        raise _ours(error) from error


@contextlib.contextmanager
def _there() -> Iterator[None]:
    """Tell of a folder that is gone as of a store that is: all were made before the first object."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreUnavailable from error


def _ours(error: OSError) -> StorageFull | Busy | Internal:
    if error.errno in FULL:
        here.add(metrics.STORE_ERRORS, "full")
        return StorageFull()
    if error.errno in _NO_DESCRIPTORS:
        log.warning("out of file descriptors", error=str(error))
        return Busy("the registry has too many files open; try again")
    here.add(metrics.STORE_ERRORS, metrics.OTHER)
    log.error("disk error", exc_info=error)
    return Internal()


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with here.timed(metrics.SYNC):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskStore:
    """The objects and staging files below one data directory."""

    def __init__(self, data: Path, space: Space | None = None, *, max_staged_bytes: int | None = None) -> None:
        self.space = space or Space(data)
        self.staged = StagedBytes(data / "uploads", most_bytes=max_staged_bytes)
        self._data = data
        self._objects = data / "objects"
        self._uploads = data / "uploads"
        self._threads = ThreadPoolExecutor(_THREADS, "lading-disk")

    def prepare(self) -> None:
        """Make and sync the folders, so that a commit needs one directory sync. In the parent, before the fork."""
        self._objects.mkdir(exist_ok=True)
        self._uploads.mkdir(exist_ok=True)
        for number in range(OBJECT_FOLDERS):
            (self._objects / f"{number:02x}").mkdir(exist_ok=True)
        sync_directory(self._objects)
        sync_directory(self._data)
        probe.refuse_unlinked(self._uploads, self._objects / "00")

    def close(self) -> None:
        """Wait for what is running."""
        self._threads.shutdown()

    # Objects

    def has(self, object_key: str, content_bytes: int) -> bool:
        """Tell whether the object is there with that length: one stat, so it is asked on the loop."""
        try:
            return (self._objects / object_key).stat().st_size == content_bytes
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("object cannot be read", object_key=object_key, error=str(error))
            return False

    async def has_all(self, objects: Sequence[tuple[str, int]]) -> list[bool]:
        """Answer `has` for many, in a thread."""
        return await self.in_thread(lambda: [self.has(*item) for item in objects])

    def open(self, object_key: str, content_bytes: int) -> "DiskObject | None":
        """Open an object for reading; None when it is gone or not whole, whatever the database says."""
        try:
            descriptor = os.open(self._objects / object_key, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("object cannot be opened", object_key=object_key, error=str(error))
            raise _ours(error) from error
        if os.fstat(descriptor).st_size != content_bytes:
            os.close(descriptor)
            return None
        return DiskObject(descriptor, self._threads)

    async def remove(self, object_key: str) -> None:
        """Delete an object that no row has ever named; it may be gone already."""
        await self.in_thread((self._objects / object_key).unlink, missing_ok=True)

    async def remove_all(self, object_keys: Sequence[str]) -> list[int | None]:
        """Delete objects that no row names any more, durably.

        Return the bytes that each had, 0 if it was gone, None if it cannot be deleted.

        Raises:
            StoreUnavailable: the store is not there, so nothing is known of what it has.
            Internal: what is deleted is not certain to stay so; it may be tried again.

        """

        def remove_all() -> list[int | None]:
            sizes = [self._unlink(key) for key in object_keys]
            with _translated(), _there():
                for folder in {(self._objects / key).parent for key in object_keys}:
                    sync_directory(folder)
            return sizes

        return await self.in_thread(remove_all)

    def _unlink(self, object_key: str) -> int | None:
        path = self._objects / object_key
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        except OSError as error:
            log.warning("object cannot be deleted; it will be tried again", object_key=object_key, error=str(error))
            here.add(metrics.STORE_ERRORS, metrics.OTHER)
            return None
        return size

    async def sizes(self, object_keys: Sequence[str]) -> list[int | None]:
        """Return the bytes of each object, 0 if it is gone."""

        def sizes() -> list[int | None]:
            with _translated():
                return [path.stat().st_size if path.exists() else 0 for path in map(self.object_path, object_keys)]

        return await self.in_thread(sizes)

    async def settled_in(self, folder: int, *, before: float) -> tuple[int, list[str]]:
        """Look through one of the folders for keys that no commit is at: made before that second, without a session.

        Return how many files it has, and those keys.

        A staging file is there until its session's row is gone, or its object has a row.

        Raises:
            StoreUnavailable: the store is not there.

        """
        name = f"{folder:02x}"

        def settled() -> tuple[int, list[str]]:
            with _translated(), _there(), os.scandir(self._objects / name) as opened:
                entries = list(opened)
                keys = [f"{name}/{entry.name}" for entry in entries if self._is_settled(entry, name, before)]
                return len(entries), keys

        return await self.in_thread(settled)

    def _is_settled(self, entry: os.DirEntry[str], folder: str, before: float) -> bool:
        parts = OBJECT_NAME.fullmatch(entry.name)
        if parts is None or parts[1] != folder or not entry.is_file(follow_symlinks=False):
            return False  # not ours to judge: `lading verify` tells of it
        with contextlib.suppress(FileNotFoundError):
            return entry.stat().st_ctime < before and not (self._uploads / parts[2]).exists()
        return False

    # Staging files

    def staged_bytes(self, upload_id: str) -> int:
        """Return the offset of a session: 0 before its first byte."""
        try:
            return (self._uploads / upload_id).stat().st_size
        except FileNotFoundError:
            return 0

    def stage(self, upload_id: str) -> "StagingFile | None":
        """Open a session's staging file as its only writer; None while another request writes it."""
        path = self._uploads / upload_id
        with _translated():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        status = os.fstat(descriptor)
        if not status.st_nlink:  # it ended between the open and the lock
            os.close(descriptor)
            return None
        staging = StagingFile(path, descriptor, status.st_size, self)
        staging.committing = status.st_nlink > 1
        return staging

    async def free_bytes(self) -> int:
        """Return the room that is left for unprivileged users on the disk."""

        def look() -> int:
            status = os.statvfs(self._data)
            return status.f_bavail * status.f_frsize

        return await self.in_thread(look)

    async def list_staged(self) -> list[str]:
        """Return the ids of all staging files."""
        return await self.in_thread(lambda: sorted(path.name for path in self._uploads.iterdir()))

    async def objects_of(self, upload_id: str) -> list[str]:
        """Return the keys that a session's commit has made: none, unless it was cut short. Looks into every folder."""

        def search() -> list[str]:
            try:
                if (self._uploads / upload_id).stat().st_nlink < 2:
                    return []
            except FileNotFoundError:
                return []
            return [f"{path.parent.name}/{path.name}" for path in self._objects.glob(f"*/*.{upload_id}")]

        return await self.in_thread(search)

    def object_path(self, object_key: str) -> Path:
        """Return where the object of that key is, or will be."""
        return self._objects / object_key

    async def refuse_upload(self, declared_bytes: int | None) -> None:
        """Refuse a body that has no room, before it is read; one of unknown length is watched as it comes.

        Raises:
            StorageFull: see `Space`.
            TooManyUploads: see `StagedBytes`.

        """
        if self.staged.is_due:
            await self.in_thread(self.staged.count)
        if declared_bytes is None:
            return
        self.space.refuse_if_scarce(declared_bytes)
        self.staged.refuse_if_crowded(declared_bytes)

    async def hold_ballast(self) -> None:
        """See `Space.hold_ballast`; in a thread."""
        await self.in_thread(self.space.hold_ballast)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function of this disk in one of its threads."""
        return await _run(self._threads, function, *args, **kwargs)


class DiskObject:
    """An open object. Reading never blocks the loop: what is not in the page cache is read in a thread."""

    def __init__(self, descriptor: int, threads: ThreadPoolExecutor) -> None:
        self._descriptor = descriptor
        self._threads = threads

    @property
    def descriptor(self) -> int:
        """The open file, for `sendfile`, after `load`; -1 once it is closed."""
        return self._descriptor

    async def load(self, offset: int, length: int) -> None:
        """Have a part of the content in the page cache, so that sending it does not wait for the disk."""
        if not all(map(self._is_cached, (*range(offset, offset + length, _PROBED_BYTES), offset + length - 1))):
            await _run(self._threads, self._load, offset, length)

    def _is_cached(self, offset: int) -> bool:
        try:
            os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # a file system without this flag: sending finds out
            return True
        return True

    def _load(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._descriptor, offset, 2 * length, os.POSIX_FADV_WILLNEED)  # the next part, too
        for start in range(offset, offset + length, _REHASH_BYTES):
            os.pread(self._descriptor, min(_REHASH_BYTES, offset + length - start), start)

    async def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes at `offset`; empty past the end."""
        try:
            buffer = bytearray(length)
            count = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
            if count == length:
                return bytes(buffer)
        except OSError:  # not cached, or a file system without this flag
            pass
        return await _run(self._threads, os.pread, self._descriptor, length, offset)

    def close(self) -> None:
        """Close it; may be called twice."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


class StagingFile:
    """A session's staging file, locked for this one writer until `close`. `offset` is where it ends."""

    def __init__(self, path: Path, descriptor: int, offset: int, store: DiskStore) -> None:
        self._path = path
        self._descriptor = descriptor
        self._store = store
        self.offset = offset
        self.committing = False
        """True once an object was made of it: a row may name the bytes any moment, so they stay as they are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the next writer in."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1

    async def append(self, buffers: Buffers, running: RunningDigest | None) -> None:
        """Hash and write at the end. Small pieces at once; large ones in a thread, where both let the loop run.

        Raises:
            StorageFull, TooManyUploads: no room; what was written before stays.
            UploadInvalid: a commit of this session was tried already.

        """
        if self.committing:
            raise UploadInvalid("this session is being committed; PUT it again without a body")
        if sum(map(len, buffers)) <= _INLINE_BYTES:
            self._append(buffers, running)
        else:
            await self._store.in_thread(self._append, buffers, running)

    def _append(self, buffers: Buffers, running: RunningDigest | None) -> None:
        more_bytes = sum(map(len, buffers))
        self._store.space.refuse_if_scarce(more_bytes)
        self._store.staged.refuse_if_crowded(more_bytes)
        with _translated():
            for start in range(0, len(buffers), _MAX_VECTOR):
                self._write_all([memoryview(buffer) for buffer in buffers[start : start + _MAX_VECTOR]])
        if running is not None:
            for buffer in buffers:
                running.update(buffer)

    def _write_all(self, views: list[memoryview]) -> None:
        while views:
            written = os.pwritev(self._descriptor, views, self.offset)
            self.offset += written
            self._store.staged.add(written)
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views and written:
                views[0] = views[0][written:]

    def truncate(self, offset: int) -> None:
        """Drop what is after `offset`: a chunk that was not what its headers said."""
        with _translated():
            os.ftruncate(self._descriptor, offset)
        self._store.staged.add(offset - self.offset)
        self.offset = offset

    def read_all(self) -> bytes:
        """Return the content of a small file."""
        with _translated():
            return os.pread(self._descriptor, self.offset, 0)

    async def rehash(self, algorithm: Algorithm) -> RunningDigest:
        """Hash the file from its beginning, in a thread: when no request has seen all of it pass by."""

        def rehash() -> RunningDigest:
            running = RunningDigest(algorithm)
            with _translated():
                while piece := os.pread(self._descriptor, _REHASH_BYTES, running.seen_bytes):
                    running.update(piece)
            return running

        return await self._store.in_thread(rehash)

    async def make_object(self, digest: Digest) -> str:
        """Make the content durable under a new key, and return the key: sync, link, sync the folder.

        Raises:
            SyncFailed: the kernel may have dropped the pages and forgotten it, and a later sync would not tell: the
                caller has to end the session.
            StorageFull, Internal: not done, and it may be tried again.

        """
        object_key = f"{digest.hex[:2]}/{digest.hex}.{self._path.name}"

        def sync_and_link() -> None:
            target = self._store.object_path(object_key)
            with _translated():
                folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _sync(self._descriptor)
                    with contextlib.suppress(FileExistsError):  # the same bytes, by an earlier try of this commit
                        os.link(self._path, target)
                    _sync(folder)
                finally:
                    os.close(folder)

        await self._store.in_thread(sync_and_link)
        self.committing = True
        return object_key

    def discard(self) -> None:
        """Remove the staging file; objects made from it stay."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            self._store.staged.add(-self.offset)


def _sync(descriptor: int) -> None:
    try:
        with here.timed(metrics.SYNC):
            os.fsync(descriptor)
    except OSError as error:
        here.add(metrics.STORE_ERRORS, "sync")
        log.exception("fsync failed")
        raise SyncFailed from error


async def _run(threads: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a thread, and return only when it has ended: it may hold a descriptor that is closed next."""
    future = asyncio.get_running_loop().run_in_executor(threads, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        raise
