"""The feed as its readers get it: everything, once, in order, or a sentence that says what is not there."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from lading.metadata.database import FILE
from lading.metadata.feed import Change
from lading.metadata.snapshots import FOLDER
from lading.metadata.upgrade import upgrade
from lading.metadata.verify import ReadOnlyDatabase
from lading.oci.errors import CommandRefused
from lading.upkeep.feed import FeedReader

WRITERS, ROWS_EACH = 2, 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a database without a row."""
    upgrade(tmp_path / FILE, tmp_path / FOLDER)
    return tmp_path / FILE


@contextlib.contextmanager
def writing(path: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Have several processes write the feed at once."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.metadata.writing", str(path), f"actor-{number}", str(ROWS_EACH), "together"],
            stdout=subprocess.DEVNULL,
            env=os.environ,
        )
        for number in range(WRITERS)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def sql(path: Path, statement: str) -> None:
    with contextlib.closing(dbapi2.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute(statement)


def add(path: Path, count: int) -> None:
    for _ in range(count):
        sql(path, "INSERT INTO feed (at_us, kind, repository, actor) VALUES (1, 'tag.set', 'team/app', 'ann')")


def test_who_reads_while_two_workers_write_sees_every_number_once(path: Path) -> None:
    """A number that becomes visible after a later one would be passed by for ever."""
    reader = FeedReader(ReadOnlyDatabase(path), after=0)
    read: list[Change] = []
    ended = False
    looks = 0

    with writing(path) as processes:
        while not ended:
            ended = all(process.poll() is not None for process in processes)  # before the look: it sees all they wrote
            while page := reader.next_page():
                read += page
                looks += 1

    assert [process.returncode for process in processes] == [0] * WRITERS
    assert [change.seq for change in read] == list(range(1, WRITERS * ROWS_EACH + 1))
    assert {change.actor for change in read} == {f"actor-{number}" for number in range(WRITERS)}
    assert looks > 1, "nothing was written while it read"


def test_a_feed_that_goes_back_is_a_refusal(path: Path) -> None:
    """After a restore the next numbers are another history, and who read the old one would mix the two."""
    add(path, 5)
    reader = FeedReader(ReadOnlyDatabase(path), after=2)
    assert [change.seq for change in reader.next_page()] == [3, 4, 5]
    assert reader.next_page() == []
    sql(path, "DELETE FROM feed WHERE seq > 3")
    sql(path, "UPDATE sqlite_sequence SET seq = 3 WHERE name = 'feed'")

    with pytest.raises(CommandRefused, match="the last change is 3: there is no change 5") as refusal:
        reader.next_page()

    assert "--since 3" in refusal.value.hint


def test_changes_that_are_not_kept_are_a_refusal_and_not_a_gap(path: Path) -> None:
    """Who reads on from a number counts on getting the next one; who begins at the beginning takes what there is."""
    add(path, 9)
    sql(path, "DELETE FROM feed WHERE seq IN (1, 2, 3, 6, 9)")
    since_two = FeedReader(ReadOnlyDatabase(path), after=2)
    oldest = FeedReader(ReadOnlyDatabase(path), after=None)

    with pytest.raises(CommandRefused, match="the changes 3 to 3 are not kept"):
        since_two.next_page()
    assert [change.seq for change in oldest.next_page()] == [4, 5]
    with pytest.raises(CommandRefused, match="the changes 6 to 6 are not kept") as refusal:
        oldest.next_page()

    assert refusal.value.hint.endswith("--since 6")
    last = FeedReader(ReadOnlyDatabase(path), after=8)
    with pytest.raises(CommandRefused, match="the changes 9 to 9 are not kept"):
        last.next_page()
