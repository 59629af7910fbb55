"""Reading an object again: from the disk, and without taking the page cache from those who pull."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from lading.oci.digest import Digest
from lading.oci.errors import ScrubStopped
from lading.storage.scrub import examine
from lading.storage.verify import Condition, Look

MIB = 1024 * 1024


def cached(path: Path) -> list[bool]:
    """Tell for each page of a file whether the kernel has it in memory; looking changes nothing."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        done = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), pages
        )
        del first
    assert done == 0, os.strerror(ctypes.get_errno())
    return [bool(page & 1) for page in pages]


def look(path: Path, content: bytes) -> Look:
    *_, found = examine(path, len(content), Digest.of(content))
    assert isinstance(found, Look)
    return found


def test_it_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """A pass over everything would push out all that is pulled each day."""
    content = os.urandom(4 * MIB + 5)
    path = tmp_path / "object"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    before = cached(path)  # nothing, unless this file system is all memory

    assert look(path, content).condition is Condition.WHOLE

    assert cached(path) == before


def test_what_this_process_may_not_read_is_no_damage(tmp_path: Path) -> None:
    """An operator who gives the command as another user would empty the store."""
    path = tmp_path / ("x" * 300)

    with pytest.raises(ScrubStopped):
        look(path, b"content")


def test_a_pipe_in_the_place_of_an_object_is_not_waited_for(tmp_path: Path) -> None:
    """Whatever lies there, the next object is looked at."""
    os.mkfifo(tmp_path / "object")

    assert look(tmp_path / "object", b"content").condition is Condition.WRONG
