"""Group commit: many functions, one transaction, one sync; each is answered as if it had been alone."""

import asyncio
import fcntl
import gc
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from pysqlite3 import dbapi2

from lading.metadata import schema
from lading.metadata.database import Database
from lading.oci.errors import NameUnknown, StorageFull
from tests.metadata.loop import run
from tests.metadata.writing import append

TOP = Path(__file__).parents[2]
SYNC_MICROSECONDS = 5000


def rows(path: Path) -> list[tuple[int, str]]:
    """Return number and actor of each row of the feed, as another connection sees them."""
    connection = dbapi2.connect(path)
    try:
        return list(connection.execute("SELECT seq, actor FROM feed ORDER BY seq"))
    finally:
        connection.close()


def add_and_fail(tx: sa.Connection, actor: str, error: Exception) -> None:
    append(tx, actor)
    append(tx, actor)
    raise error


class Gate:
    """A function that keeps the writer in a group until it is let go, so that the next ones form one group."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def __call__(self, _: sa.Connection) -> None:
        """Wait in the writer's thread."""
        self.entered.set()
        assert self.leave.wait(10)


async def held(database: Database) -> tuple[Gate, "asyncio.Task[None]"]:
    """Have the writer wait at a gate; what is written now is one group."""
    gate = Gate()
    waiting = asyncio.create_task(database.write(gate))
    await asyncio.to_thread(gate.entered.wait, 10)
    return gate, waiting


def test_a_function_that_fails_undoes_only_itself(path: Path) -> None:
    """One pusher's mistake must not undo what strangers pushed in the same moment."""
    error = NameUnknown()

    async def write(database: Database) -> list[int | BaseException | None]:
        gate, waiting = await held(database)
        group = asyncio.gather(
            database.write(append, "ann"),
            database.write(add_and_fail, "bob", error),
            database.write(append, "cid"),
            database.write(add_and_fail, "dan", ZeroDivisionError()),
            database.write(append, "eve"),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        gate.leave.set()
        await waiting
        return list(await group)

    first, failed, second, broken, third = run(path, write)

    assert (first, second, third) == (1, 2, 3)
    assert failed is error
    assert isinstance(broken, ZeroDivisionError)
    assert rows(path) == [(1, "ann"), (2, "cid"), (3, "eve")]


def test_a_refused_reference_undoes_only_its_own_function(path: Path) -> None:
    """An error of the database itself is caught like any other."""

    def refer(tx: sa.Connection) -> None:
        append(tx, "bob")
        tx.execute(sa.insert(schema.tags).values(repo_id=1, name="v1", manifest_id=1))

    async def write(database: Database) -> list[int | BaseException | None]:
        return list(
            await asyncio.gather(
                database.write(append, "ann"),
                database.write(refer),
                database.write(append, "cid"),
                return_exceptions=True,
            )
        )

    answers = run(path, write)

    assert isinstance(answers[1], Exception)
    assert rows(path) == [(1, "ann"), (2, "cid")]


def test_numbers_of_the_feed_have_no_gap_after_functions_that_failed(path: Path) -> None:
    """Who follows the feed takes a gap for a row that was lost (I6)."""

    async def write(database: Database) -> None:
        for _ in range(3):
            jobs = [
                database.write(add_and_fail, "bob", NameUnknown()) if number % 3 else database.write(append, "ann")
                for number in range(60)
            ]
            await asyncio.gather(*jobs, return_exceptions=True)

    run(path, write)

    assert [seq for seq, _ in rows(path)] == list(range(1, 61))


def test_nobody_is_answered_before_the_commit(path: Path) -> None:
    """An answer is a promise that the bytes are on disk (I1), and a stranger's connection sees what is committed."""
    seen: list[tuple[int, int]] = []

    async def write(database: Database) -> None:
        gate, waiting = await held(database)

        async def one() -> None:
            number = await database.write(append, "ann")
            seen.append((number, len(rows(path))))

        group = asyncio.gather(*(one() for _ in range(20)))
        await asyncio.sleep(0)
        gate.leave.set()
        await waiting
        await group

    run(path, write)

    assert seen == [(number, 20) for number in range(1, 21)]


def test_a_group_that_waits_is_not_seen_and_not_answered(path: Path) -> None:
    """What another function of the group still does may fail the commit for all."""

    async def write(database: Database) -> None:
        first, waiting = await held(database)
        early = asyncio.ensure_future(database.write(append, "ann"))
        second = Gate()
        late = asyncio.ensure_future(database.write(second))
        await asyncio.sleep(0)
        first.leave.set()
        await asyncio.to_thread(second.entered.wait, 10)
        await waiting

        assert not early.done()
        assert rows(path) == []

        second.leave.set()
        await asyncio.gather(early, late)
        assert rows(path) == [(1, "ann")]

    run(path, write)


def test_a_client_that_leaves_does_not_undo_its_function(path: Path) -> None:
    """Whether it saw the answer or not, it will ask again, and must find the same."""

    async def write(database: Database) -> None:
        gate, waiting = await held(database)
        leaving = asyncio.create_task(database.write(append, "ann"))
        staying = asyncio.create_task(database.write(append, "bob"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        gate.leave.set()
        await waiting
        assert await staying == 2
        assert leaving.cancelled()

    run(path, write)

    assert rows(path) == [(1, "ann"), (2, "bob")]


def test_what_is_queued_at_the_close_is_written(path: Path) -> None:
    """A stop is no reason to lose what was accepted."""

    async def write(database: Database) -> None:
        for _ in range(300):
            asyncio.ensure_future(database.write(append, "ann")).add_done_callback(lambda done: done.cancelled())
        await asyncio.sleep(0)

    run(path, write)

    assert len(rows(path)) == 300


def test_the_log_is_moved_into_the_database_at_the_close(path: Path) -> None:
    """A backup of the one file, taken while nothing runs, has everything."""

    async def write(database: Database) -> None:
        await database.write(append, "ann")

    run(path, write)
    gc.collect()
    log = path.with_name(path.name + "-wal")
    log.unlink(missing_ok=True)

    assert rows(path) == [(1, "ann")]


def test_a_full_disk_is_told_to_all_and_nothing_of_the_group_stays(path: Path) -> None:
    """SQLite ends the whole transaction by itself then, so there is no savepoint left to go back to."""

    async def write(database: Database) -> list[object]:
        pages = await database.write(lambda tx: tx.exec_driver_sql("PRAGMA page_count").scalar_one())
        await database.write(lambda tx: tx.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}").scalar_one())
        gate, waiting = await held(database)
        group = asyncio.gather(
            database.write(append, "ann"),
            database.write(append, "bob" * 100_000),
            database.write(append, "cid"),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        gate.leave.set()
        await waiting
        answers: list[object] = [type(answer) for answer in await group]
        answers.append(await database.write(append, "dan"))
        return answers

    answers = run(path, write)

    assert answers[1] is StorageFull
    assert answers[0] in {int, StorageFull}
    assert answers[2] in {int, StorageFull}
    kept = [name for name, answer in zip(("ann", "cid"), (answers[0], answers[2]), strict=True) if answer is int]
    assert rows(path) == [(seq, actor) for seq, actor in enumerate([*kept, "dan"], 1)]
    assert answers[3] == len(kept) + 1


def start(path: Path, actor: str, count: int, way: str, *before: str) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, "-m", "tests.metadata.writing", str(path), actor, str(count), way]
    return subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True)


def numbers_of(process: "subprocess.Popen[str]") -> list[int]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [int(number) for number in output.split()]


@pytest.mark.parametrize("way", ["together", "singly"])
def test_two_processes_that_write_at_once_lose_nothing(path: Path, way: str) -> None:
    """Any worker may take any push (I9), and the lock between them queues instead of failing."""
    count = 150
    processes = {actor: start(path, actor, count, way) for actor in ("ann", "bob")}

    answers = {actor: numbers_of(process) for actor, process in processes.items()}

    assert {actor: len(numbers) for actor, numbers in answers.items()} == {"ann": count, "bob": count}
    promised = {(number, actor) for actor, numbers in answers.items() for number in numbers}
    assert rows(path) == sorted(promised)
    assert [seq for seq, _ in rows(path)] == list(range(1, 2 * count + 1))


def test_the_lock_between_processes_is_held_while_a_group_is_written(path: Path) -> None:
    """SQLite's own waiting sleeps and starves: without the lock a busy worker keeps the others out for seconds."""

    def is_free(_: sa.Connection | None = None) -> bool:
        descriptor = os.open(path.with_name(path.name + ".write-lock"), os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    async def write(database: Database) -> tuple[bool, bool]:
        within = await database.write(is_free)
        return within, is_free()

    assert run(path, write) == (False, True)


def syncs(trace: Path) -> int:
    """Return how many syncs strace has seen."""
    return len(re.findall(r"\b(?:fsync|fdatasync)\(", trace.read_text()))


def slowly(trace: Path) -> tuple[str, ...]:
    """Return the command under which each sync takes as long as that of a hard disk."""
    calls = "fsync,fdatasync"
    return (
        "strace",
        "-f",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:delay_enter={SYNC_MICROSECONDS}",
        "-o",
        str(trace),
    )


@pytest.mark.slow
def test_a_thousand_writes_at_once_share_their_syncs(path: Path, tmp_path: Path) -> None:
    """On a disk of 5 ms a sync each would be 5 s, in which nobody else pushes.

    They are queued before the writer has finished its first group, so five groups of at most 256 would do; with the
    log's header, the checkpoint's two and a first group or two that are still small it stays below twenty.
    """
    trace = tmp_path / "trace"

    numbers = numbers_of(start(path, "ann", 1000, "together", *slowly(trace)))

    assert numbers == list(range(1, 1001))
    assert 1000 / 256 <= syncs(trace) <= 20


@pytest.mark.slow
def test_every_answer_has_a_sync_before_it(path: Path, tmp_path: Path) -> None:
    """Sharing ends where one waits for the other: fifty writes in a row are fifty promises."""
    trace = tmp_path / "trace"

    numbers = numbers_of(start(path, "ann", 50, "singly", *slowly(trace)))

    assert numbers == list(range(1, 51))
    assert 50 <= syncs(trace) <= 70
