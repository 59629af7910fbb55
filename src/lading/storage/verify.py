"""Looking at the files below one data directory, without changing any: what is there, how long, and what it hashes to.

It runs in a process of its own, without an event loop: plain functions, and a few threads that hash.
"""

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from lading.oci.digest import Algorithm, Digest, RunningDigest
from lading.storage.disk import OBJECT_NAME
from lading.storage.identity import MARKER

T = TypeVar("T")

FOLDERS = 257
"""How many folders a listing has: that of the objects, and those in it."""
THREADS = min(4, len(os.sched_getaffinity(0)))
_READ_BYTES = 1024 * 1024
_AHEAD = 4 * THREADS
_FOLDER = re.compile(r"[0-9a-f]{2}")
_NEW_MARKER = Path(MARKER).with_suffix(".new").name
# A start tries with files of that name whether the disk can link, and may have been killed at it.
_PROBE = ".probe"


class Condition(Enum):
    """How an object's file is."""

    WHOLE = "whole"
    MISSING = "missing"
    SHORT = "short"
    LONG = "long"
    WRONG = "wrong"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file found; `file_bytes` is its length, `error` the system's word when it cannot be read."""

    condition: Condition
    file_bytes: int = 0
    error: str = ""


class Files:
    """The files of one data directory. `advance` is told of every piece that was hashed, from the threads."""

    def __init__(self, data: Path, *, advance: Callable[[int], None]) -> None:
        self._objects = data / "objects"
        self._uploads = data / "uploads"
        self._advance = advance
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS, "lading-verify")

    def stop(self) -> None:
        """Have every look end in a KeyboardInterrupt, within a piece of a file; called in a signal's handler."""
        self._stopping.set()

    def go_on(self) -> None:
        """Raise KeyboardInterrupt once it is to stop."""
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def close(self) -> None:
        """Stop the threads within a piece of a file."""
        self.stop()
        self._threads.shutdown(cancel_futures=True)

    # Objects

    def object(self, object_key: str, lengths: frozenset[int], digest: Digest | None) -> Look:
        """Look at an object that should have one of the `lengths` and hash to `digest` (None: not hashed)."""
        return self._look(self._objects / object_key, lengths, digest)

    def all(self, items: Iterable[T], look: Callable[[T], Look]) -> Iterator[tuple[T, Look]]:
        """Look at many in the threads; yield them in their order, a few being looked at ahead."""
        ahead: deque[_Pending[T]] = deque()
        for item in items:
            ahead.append(_Pending(item, self._threads.submit(look, item)))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().done()
        while ahead:
            yield ahead.popleft().done()

    def listing(self) -> Iterator[tuple[dict[str, str], list[str]]]:
        """Yield, a folder at a time, the objects, key to upload id, and the paths of what is none."""
        names = _names(self._objects)
        folders = [name for name in names if _FOLDER.fullmatch(name) and (self._objects / name).is_dir()]
        yield {}, [f"objects/{name}" for name in names if name not in {*folders, MARKER, _NEW_MARKER}]
        for folder in folders:
            objects, strays = {}, []
            for name in _names(self._objects / folder):
                match = OBJECT_NAME.fullmatch(name)
                if match and match[1] == folder:
                    objects[f"{folder}/{name}"] = match[2]
                elif name != _PROBE:
                    strays.append(f"objects/{folder}/{name}")
            yield objects, strays

    # Staging files

    def staged(self) -> list[str]:
        """Return the names of all staging files."""
        return [name for name in _names(self._uploads) if name != _PROBE]

    def staging_age_seconds(self, name: str, now: float) -> float | None:
        """Return how long ago the staging file was last written, or None when it is not there."""
        try:
            return now - (self._uploads / name).stat().st_mtime
        except OSError:
            return None

    def staging(self, name: str, first_bytes: int, digest: Digest | None) -> Look:
        """Look whether the first bytes of a staging file hash to `digest` (None: whether they are there)."""
        path = self._uploads / name
        try:
            length = path.stat().st_size
        except FileNotFoundError:
            return Look(Condition.WHOLE if not first_bytes else Condition.MISSING)
        if length < first_bytes:
            return Look(Condition.SHORT, length)
        return self._hash(path, first_bytes, digest)

    # Any file

    def there(self, path: str) -> bool:
        """Tell whether a path below the data directory is there."""
        return os.path.lexists(self._objects.parent / path)

    def _look(self, path: Path, lengths: frozenset[int], digest: Digest | None) -> Look:
        try:
            length = path.stat().st_size
        except FileNotFoundError:
            return Look(Condition.MISSING)
        except OSError as error:
            return Look(Condition.UNREADABLE, error=error.strerror or str(error))
        if not path.is_file():
            return Look(Condition.WRONG, length)
        if length not in lengths:
            return Look(Condition.SHORT if length < max(lengths) else Condition.LONG, length)
        return self._hash(path, length, digest)

    def _hash(self, path: Path, first_bytes: int, digest: Digest | None) -> Look:
        if digest is None:
            return Look(Condition.WHOLE, first_bytes)
        try:
            found = self._digest(path, first_bytes, digest.algorithm)
        except FileNotFoundError:
            return Look(Condition.MISSING)
        except OSError as error:
            return Look(Condition.UNREADABLE, first_bytes, error.strerror or str(error))
        return Look(Condition.WHOLE if found == digest else Condition.WRONG, first_bytes)

    def _digest(self, path: Path, first_bytes: int, algorithm: Algorithm) -> Digest:
        running = RunningDigest(algorithm)
        buffer = memoryview(bytearray(min(_READ_BYTES, max(first_bytes, 1))))
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while not self._stopping.is_set() and running.seen_bytes < first_bytes:
                count = file.readinto(buffer[: first_bytes - running.seen_bytes])
                if not count:
                    break
                running.update(buffer[:count])
                self._advance(count)
        self.go_on()
        return running.digest()


@dataclass(frozen=True, slots=True)
class _Pending(Generic[T]):
    """An item, and the look at it that a thread is taking."""

    item: T
    future: "Future[Look]"

    def done(self) -> tuple[T, Look]:
        return self.item, self.future.result()


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path.name for path in folder.iterdir())
    return []
