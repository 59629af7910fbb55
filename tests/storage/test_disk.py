"""Staging files and objects: what is appended, who may write, and what is on disk when an answer is given."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.oci.digest import Algorithm, Digest, RunningDigest
from lading.oci.errors import UploadInvalid
from lading.storage.disk import DiskStore, StagingFile
from tests.storage.making import CONTENT

T = TypeVar("T")

TOP = Path(__file__).parents[2]
UPLOAD = "0b6f8f0e-58a5-4bb2-a4ba-64b7ee95b9d3"
OTHER = "f3c0e0b4-9d4b-4f0e-8a52-6f4f1c6b3a77"
BIG = bytes(range(256)) * 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    """Return the store of a new data directory."""
    store = DiskStore(tmp_path)
    store.prepare()
    yield store
    store.close()


def opened(store: DiskStore, upload_id: str = UPLOAD) -> StagingFile:
    staging = store.stage(upload_id)
    assert staging is not None
    return staging


def run(awaitable: Callable[[], Awaitable[T]]) -> T:
    async def whole() -> T:
        return await awaitable()

    return asyncio.run(whole())


def append(store: DiskStore, *buffers: bytes, upload_id: str = UPLOAD) -> None:
    with opened(store, upload_id) as staging:
        asyncio.run(staging.append(list(buffers), None))


def make_object(store: DiskStore, content: bytes, upload_id: str = UPLOAD) -> str:
    """Stage the content and make an object of it; the staging file stays."""
    append(store, content, upload_id=upload_id)
    with opened(store, upload_id) as staging:
        return asyncio.run(staging.make_object(Digest.of(content)))


def read(store: DiskStore, object_key: str, content_bytes: int) -> bytes | None:
    found = store.open(object_key, content_bytes)
    if found is None:
        return None
    try:
        return asyncio.run(found.read(0, content_bytes))
    finally:
        found.close()


# Staging


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(st.lists(st.binary(max_size=5) | st.just(BIG), max_size=4), max_size=4))
def test_parts_stand_in_the_file_one_after_the_other(store: DiskStore, parts: list[list[bytes]]) -> None:
    """Small parts are written at once and big ones in a thread, and the client must not see the difference."""
    upload_id = uuid.uuid4()
    content = b"".join(buffer for part in parts for buffer in part)
    running = RunningDigest(Algorithm.SHA256)
    offset = 0
    for part in parts:
        with opened(store, str(upload_id)) as staging:
            assert staging.offset == offset
            asyncio.run(staging.append(part, running))
            offset = staging.offset

    assert store.staged_bytes(str(upload_id)) == offset == len(content)
    with opened(store, str(upload_id)) as staging:
        assert staging.read_all() == content
        assert asyncio.run(staging.rehash(Algorithm.SHA512)).digest() == Digest.of(content, Algorithm.SHA512)
        assert running.digest() == asyncio.run(staging.rehash(Algorithm.SHA256)).digest() == Digest.of(content)


def test_more_buffers_than_one_call_of_the_kernel_takes_are_all_written(store: DiskStore) -> None:
    """Linux takes 1024 at a time; a client that sends single bytes fills a piece with many more."""
    buffers = [bytes([number % 256]) for number in range(5000)]

    append(store, *buffers)

    with opened(store) as staging:
        assert staging.read_all() == b"".join(buffers)


def test_a_session_without_a_byte_is_at_0(store: DiskStore) -> None:
    """Its file is made by its first part."""
    assert store.staged_bytes(UPLOAD) == 0
    with opened(store) as staging:
        assert (staging.offset, staging.read_all()) == (0, b"")


def test_what_is_cut_off_is_gone_and_the_next_part_stands_there(store: DiskStore) -> None:
    """A chunk that was not what its headers said must leave nothing behind."""
    append(store, b"kept")
    with opened(store) as staging:
        asyncio.run(staging.append([b"dropped, and longer"], None))

        staging.truncate(4)

        assert staging.offset == 4
        asyncio.run(staging.append([b"!"], None))
        assert staging.read_all() == b"kept!"
    assert store.staged_bytes(UPLOAD) == 5


def test_a_second_writer_gets_none_until_the_first_has_closed(store: DiskStore) -> None:
    """Two requests of one session would interleave their bytes."""
    first = opened(store)

    assert store.stage(UPLOAD) is None
    other = opened(store, OTHER)
    first.close()
    first.close()
    opened(store).close()
    other.close()


def test_a_writer_in_another_process_is_seen(store: DiskStore, tmp_path: Path) -> None:
    """Any worker may get the next request of a session (I9)."""
    code = (
        "import sys, pathlib; from lading.storage.disk import DiskStore;"
        "print(DiskStore(pathlib.Path(sys.argv[1])).stage(sys.argv[2]))"
    )

    with opened(store):
        shown = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), UPLOAD], capture_output=True, text=True, timeout=60, check=True
        )

    assert shown.stdout == "None\n"


def test_a_session_that_ended_while_its_file_was_opened_cannot_be_written(store: DiskStore, tmp_path: Path) -> None:
    """The name is gone, so the bytes would go into a file that nobody finds."""
    append(store, b"x")
    with opened(store) as staging:
        staging.discard()
        staging.discard()
        assert not (tmp_path / "uploads" / UPLOAD).exists()
    assert run(store.list_staged) == []


def test_staging_files_are_listed_by_their_sessions(store: DiskStore) -> None:
    """The sweep asks the database for each of them."""
    append(store, b"x")
    append(store, b"y", upload_id=OTHER)

    assert run(store.list_staged) == sorted([UPLOAD, OTHER])


# Objects


def test_an_object_is_named_by_its_digest_and_its_session(store: DiskStore, tmp_path: Path) -> None:
    """A name of the digest alone would come back with the next push, and a late delete would hit it (I2)."""
    digest = Digest.of(CONTENT)

    first, second = make_object(store, CONTENT), make_object(store, CONTENT, OTHER)

    assert first == f"{digest.hex[:2]}/{digest.hex}.{UPLOAD}"
    assert second == f"{digest.hex[:2]}/{digest.hex}.{OTHER}"
    assert read(store, first, len(CONTENT)) == read(store, second, len(CONTENT)) == CONTENT
    assert (tmp_path / "objects" / first).stat().st_nlink == 2


def test_an_object_outlives_its_staging_file(store: DiskStore) -> None:
    """The session ends with its commit, its content does not."""
    key = make_object(store, CONTENT)

    with opened(store) as staging:
        staging.discard()

    assert store.has(key, len(CONTENT))
    assert run(store.list_staged) == []


def test_a_commit_that_is_tried_again_makes_the_same_object(store: DiskStore) -> None:
    """The client that saw no answer repeats its PUT; the name is there already, and so are the bytes."""
    first = make_object(store, CONTENT)

    with opened(store) as staging:
        assert staging.committing
        second = asyncio.run(staging.make_object(Digest.of(CONTENT)))

    assert first == second
    assert read(store, second, len(CONTENT)) == CONTENT


def test_no_byte_is_added_once_an_object_was_made(store: DiskStore) -> None:
    """The object is the same file: what a row may name must stay as it is."""
    key = make_object(store, CONTENT)

    with opened(store) as staging, pytest.raises(UploadInvalid):
        asyncio.run(staging.append([b"more"], None))

    assert read(store, key, len(CONTENT)) == CONTENT


def test_an_object_of_another_length_is_treated_as_gone(store: DiskStore, tmp_path: Path) -> None:
    """A file that was cut by a repair of the disk must heal by a push, not be served (E4)."""
    key = make_object(store, CONTENT)
    size = len(CONTENT)
    assert store.has(key, size)

    os.truncate(tmp_path / "objects" / key, size - 1)

    assert not store.has(key, size)
    assert store.open(key, size) is None
    assert run(lambda: store.has_all([(key, size), (key, size - 1)])) == [False, True]


def test_an_object_that_is_not_there_is_gone(store: DiskStore) -> None:
    """Absence is an ordinary answer, not a fault."""
    key = make_object(store, CONTENT)

    run(lambda: store.remove(key))
    run(lambda: store.remove(key))

    assert not store.has(key, len(CONTENT))
    assert store.open(key, len(CONTENT)) is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(offset=st.integers(0, len(BIG) + 10), length=st.integers(0, len(BIG) + 10))
def test_an_object_is_read_from_anywhere(store: DiskStore, offset: int, length: int) -> None:
    """A range, a resumed pull and a slow reader all come to the same bytes."""
    key = make_object(store, BIG) if not store.staged_bytes(UPLOAD) else f"{Digest.of(BIG).hex[:2]}/{name(BIG)}"
    found = store.open(key, len(BIG))
    assert found is not None

    piece = asyncio.run(found.read(offset, length))
    found.close()
    found.close()

    assert piece == BIG[offset : offset + length]


def name(content: bytes) -> str:
    return f"{Digest.of(content).hex}.{UPLOAD}"


def test_the_objects_of_a_session_are_those_that_its_own_commit_made(store: DiskStore) -> None:
    """A commit cut short leaves a link that only the session's id leads to."""
    assert run(lambda: store.objects_of(UPLOAD)) == []
    append(store, CONTENT)
    assert run(lambda: store.objects_of(UPLOAD)) == []

    with opened(store) as staging:
        key = asyncio.run(staging.make_object(Digest.of(CONTENT)))
    make_object(store, CONTENT, OTHER)

    assert run(lambda: store.objects_of(UPLOAD)) == [key]
    with opened(store) as staging:
        staging.discard()
    assert run(lambda: store.objects_of(UPLOAD)) == []


def test_the_folders_are_there_before_the_first_push(store: DiskStore, tmp_path: Path) -> None:
    """A commit then has one folder to sync, not two."""
    assert sorted(path.name for path in (tmp_path / "objects").iterdir()) == [f"{number:02x}" for number in range(256)]

    store.prepare()

    assert len(list((tmp_path / "objects").iterdir())) == 256


# What the kernel sees


def traced(data: Path, trace: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Make an object in a process of its own, and record its calls that change or sync the disk."""
    calls = "write,pwrite64,pwritev,pwritev2,?link,linkat,?unlink,unlinkat,?rename,renameat2,fsync,fdatasync"
    command = ["strace", "-f", "-y", "-e", f"trace={calls}", *options, "-o", str(trace)]
    return subprocess.run(
        [*command, sys.executable, "-B", "-m", "tests.storage.making", str(data), UPLOAD],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def between(trace: Path) -> list[str]:
    """Return the calls between `begin` and `returned`, without their threads and without what wakes the loop."""
    lines = [re.sub(r"^\d+ +", "", line) for line in trace.read_text().splitlines()]
    begin = next(number for number, line in enumerate(lines) if line.startswith("write(1") and "begin" in line)
    end = next(number for number, line in enumerate(lines) if line.startswith("write(1") and "returned" in line)
    return [line for line in lines[begin + 1 : end] if not line.startswith(("write(", "--- ", "+++ "))]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Return a data directory in which a server has started before."""
    data = tmp_path / "data"
    data.mkdir()
    store = DiskStore(data)
    store.prepare()
    store.space.hold_ballast()
    store.close()
    return data


@pytest.mark.slow
def test_the_bytes_are_synced_then_linked_then_the_folder_is_synced_then_it_returns(
    prepared: Path, tmp_path: Path
) -> None:
    """A name that survives a power cut must not name bytes that do not, and a row must not name a lost name (I1)."""
    done = traced(prepared, tmp_path / "trace")

    key = done.stdout.splitlines()[-1]
    file_synced, linked, folder_synced = between(tmp_path / "trace")
    staging, target = prepared / "uploads" / UPLOAD, prepared / "objects" / key
    assert re.fullmatch(rf"f(data)?sync\(\d+<{re.escape(str(staging))}>\) += 0", file_synced)
    assert re.match(r"link(at)?\(", linked)
    assert linked.index(f'"{staging}"') < linked.index(f'"{target}"')
    assert linked.endswith(" = 0")
    assert re.fullmatch(rf"fsync\(\d+<{re.escape(str(target.parent))}>\) += 0", folder_synced)
    assert target.read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("which", [1, 2], ids=["of the bytes", "of the folder"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_sync_that_fails_is_told_as_what_ends_the_session(
    prepared: Path, tmp_path: Path, which: int, error: str
) -> None:
    """The kernel tells of a failed write once and forgets it, so a second sync would be believed wrongly."""
    done = traced(prepared, tmp_path / "trace", "-e", f"inject=fsync:error={error}:when={which}")

    assert done.returncode == 1
    assert "returned" not in done.stdout
    assert "errors.SyncFailed" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("error", ["EDQUOT", "ENOSPC"])
def test_a_write_that_finds_no_room_is_told_as_such(prepared: Path, tmp_path: Path, error: str) -> None:
    """The client may wait and go on from the offset; a fault of ours it could only report."""
    done = traced(prepared, tmp_path / "trace", "-e", f"inject=pwritev,pwritev2:error={error}")

    assert done.returncode == 1
    assert "errors.StorageFull" in done.stderr.splitlines()[-1]
