"""Snapshots: each is whole, and none stops who writes meanwhile."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from pysqlite3 import dbapi2

from lading.metadata import schema
from lading.metadata.database import create_engine
from lading.metadata.snapshots import Kind, Stopped, contents, find, prune, take
from lading.oci.errors import DatabaseUnusable

TAKE = """
import sys, pathlib
from lading.metadata.database import create_engine
from lading.metadata.snapshots import Kind, take
from lading.oci.errors import StorageFull
with create_engine(pathlib.Path(sys.argv[1])).connect() as tx:
    try:
        take(tx, pathlib.Path(sys.argv[2]), "0002", Kind.REGULAR)
    except StorageFull:
        sys.exit(28)
"""


@pytest.fixture
def tx(path: Path) -> Iterator[sa.Connection]:
    """Open the database."""
    with create_engine(path).connect() as connection:
        yield connection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where snapshots go; it is made with the first."""
    return tmp_path / "snapshots"


def fill(tx: sa.Connection, repositories: int, *, start: int = 0) -> None:
    names = [{"name": f"team/app{number:06}"} for number in range(start, start + repositories)]
    tx.exec_driver_sql("BEGIN")
    tx.execute(sa.insert(schema.repositories).values(manifest_count=0, created_us=1), names)
    tx.exec_driver_sql("COMMIT")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names_in(path: Path) -> list[str]:
    connection = dbapi2.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT name FROM repositories ORDER BY name")]
    finally:
        connection.close()


def test_a_snapshot_is_a_whole_database(tx: sa.Connection, folder: Path) -> None:
    """It is opened when nothing else is left."""
    fill(tx, 1000)

    path = take(tx, folder, schema.REVISION, Kind.REGULAR)

    assert re.fullmatch(rf"\d{{8}}T\d{{6}}Z-{schema.REVISION}\.db", path.name)
    assert files(folder) == [path.name]
    assert len(names_in(path)) == 1000
    assert contents(path).revision == schema.REVISION


def test_looking_into_a_snapshot_leaves_nothing_beside_it(tx: sa.Connection, folder: Path) -> None:
    """A log that a look left behind would be taken for the snapshot's own."""
    path = take(tx, folder, schema.REVISION, Kind.REGULAR)
    before = path.read_bytes()

    contents(path)

    assert files(folder) == [path.name]
    assert path.read_bytes() == before


def test_writers_go_on_while_a_snapshot_is_taken_and_it_ends(path: Path, tx: sa.Connection, folder: Path) -> None:
    """A copy that begins anew at each commit never ends on a busy registry; a lock would stop every push."""
    tx.exec_driver_sql("CREATE TABLE ballast (data BLOB)")
    tx.exec_driver_sql("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 8000) "
                       "INSERT INTO ballast SELECT randomblob(4000) FROM n")  # fmt: skip
    times: list[tuple[float, float]] = []
    ended = threading.Event()

    def write() -> None:
        with create_engine(path).connect() as writer:
            number = 0
            while not ended.is_set():
                began = time.monotonic()
                fill(writer, 1, start=number)
                times.append((began, time.monotonic()))
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    began = time.monotonic()
    try:
        snapshot = take(tx, folder, schema.REVISION, Kind.REGULAR, stopped=lambda: time.monotonic() > began + 30)
    finally:
        taken = time.monotonic()
        ended.set()
        thread.join()

    meanwhile = [(start, end) for start, end in times if start >= began and end <= taken]
    assert len(meanwhile) > 3, "nothing was written meanwhile, so nothing is proved"
    copied = names_in(snapshot)
    assert copied == [f"team/app{number:06}" for number in range(len(copied))], "not a state that ever was"
    assert len(copied) < len(times)


def test_a_snapshot_that_is_stopped_leaves_nothing(tx: sa.Connection, folder: Path) -> None:
    """A server that is told to stop does not wait for gigabytes."""
    fill(tx, 100)

    with pytest.raises(Stopped):
        take(tx, folder, schema.REVISION, Kind.REGULAR, stopped=lambda: True)

    assert files(folder) == []


def test_a_snapshot_of_a_damaged_database_is_none(path: Path, tx: sa.Connection, folder: Path) -> None:
    """Seven copies of a damage push out the last copy that was good."""
    fill(tx, 5000)
    tx.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    page_bytes = tx.exec_driver_sql("PRAGMA page_size").scalar_one()
    root = tx.exec_driver_sql("SELECT rootpage FROM sqlite_master WHERE name = 'repositories'").scalar_one()
    with path.open("r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\0" * page_bytes)

    with create_engine(path).connect() as fresh, pytest.raises(DatabaseUnusable):
        take(fresh, folder, schema.REVISION, Kind.REGULAR)

    assert files(folder) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tx: sa.Connection, folder: Path) -> None:
    """Each kill would take the room of a whole database."""
    folder.mkdir()
    (folder / "20200101T000000Z-0001.db.partial").write_bytes(b"half")

    path = take(tx, folder, schema.REVISION, Kind.REGULAR)

    assert files(folder) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 2, 7])
def test_a_disk_that_is_full_keeps_the_older_snapshots(tx: sa.Connection, path: Path, folder: Path, write: int) -> None:
    """The day on which the disk is full is the day on which the older ones are needed."""
    fill(tx, 3000)
    older = take(tx, folder, "0001", Kind.REGULAR)
    content = older.read_bytes()
    inject = f"inject=pwrite64:error=ENOSPC:when={write}+"
    command = ("strace", "-f", "-e", "trace=pwrite64", "-e", inject, "-o", os.devnull)

    done = subprocess.run(
        [*command, sys.executable, "-c", TAKE, str(path), str(folder)], timeout=60, check=False, capture_output=True
    )

    assert done.returncode == 28, done.stderr.decode()
    assert files(folder) == [older.name]
    assert older.read_bytes() == content


def plant(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_the_newest_are_kept_of_each_kind(folder: Path) -> None:
    """A week of days must not push out the way back from an upgrade."""
    days = [f"2026010{day}T000000Z-0002.db" for day in range(1, 8)]
    upgrades = ["20250101T000000Z-0001-before-upgrade.db", "20250201T000000Z-0001-before-upgrade.db"]
    plant(folder, *days, *upgrades, "notes.txt", "my-own-copy.db")

    prune(folder, keep=3)

    assert files(folder) == sorted([*days[-3:], *upgrades, "notes.txt", "my-own-copy.db"])


def test_snapshots_are_found_the_newest_first(folder: Path) -> None:
    """Who restores without a name means the last good state."""
    plant(folder, "20260102T030405Z-0002.db", "20260103T000000Z-0003-before-upgrade.db", "20269999T000000Z-0002.db")

    found = find(folder)

    assert [(one.at, one.revision, one.kind) for one in found] == [
        (datetime(2026, 1, 3, tzinfo=UTC), "0003", Kind.BEFORE_UPGRADE),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "0002", Kind.REGULAR),
    ]
    assert datetime.now(UTC) - found[0].at > timedelta(0)


def test_a_folder_that_is_not_there_has_no_snapshots(folder: Path) -> None:
    """Before the first day is over."""
    assert find(folder) == []


@pytest.mark.parametrize("content", [b"", b"no database at all, and longer than a header" * 9])
def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    """Somebody put another file there."""
    path = tmp_path / "20260102T030405Z-0002.db"
    path.write_bytes(content)

    with pytest.raises(DatabaseUnusable, match="no database of a registry"):
        contents(path)
