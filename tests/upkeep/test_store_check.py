"""What a running server goes on doing about its store: the hourly look, the hold, the last word at a stop."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lading.metadata import feed, stores
from lading.metadata.database import FILE, Database
from lading.metadata.feed import Kind
from lading.metadata.snapshots import FOLDER, find
from lading.metadata.stores import Store
from lading.metadata.upgrade import upgrade
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import DatabaseFile, Watch
from lading.storage.space import Space
from lading.upkeep import jobs
from lading.upkeep.identity import StoreCheck, marker_of
from lading.upkeep.jobs import Job
from lading.upkeep.snapshots import Snapshots

STORE = Store(1, "store", "database", epoch=3, held_us=None, held_reason=None)
HELD = replace(STORE, held_us=1, held_reason="it was rolled back")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory whose feed has seven changes, of which the marker knows none."""
    upgrade(tmp_path / FILE, tmp_path / FOLDER)
    identity.write(tmp_path, marker_of(STORE, 0))

    async def change(database: Database) -> None:
        await database.write(stores.create, "disk", STORE.store_uid, STORE.database_uid, at_us=1, epoch=STORE.epoch)
        for _ in range(7):
            await database.write(feed.append, Kind.TAG_SET, repository="team/app", actor="ann", at_us=1)

    _run(tmp_path, lambda database, _: change(database))
    return tmp_path


def _run(data: Path, function: Callable[[Database, DiskStore], Awaitable[None]]) -> None:
    async def whole() -> None:
        with contextlib.closing(Database(data / FILE)) as database, contextlib.closing(DiskStore(data)) as disk:
            await function(database, disk)

    asyncio.run(whole())


def look(data: Path, store: Store = STORE) -> list[str]:
    """Run the hourly look, and return the levels of what it says."""

    async def once(database: Database, disk: DiskStore) -> None:
        await StoreCheck(
            database, disk, data, Watch(data, marker_of(store, 0), DatabaseFile.at(data / FILE)), store
        ).look()

    with capture_logs() as entries:
        _run(data, once)
    return [entry["log_level"] for entry in entries]


def test_the_hourly_look_tells_the_marker_how_far_the_database_is(data: Path) -> None:
    """A server that is killed has told it within the hour."""
    assert look(data) == []

    assert identity.read(data) == marker_of(STORE, 7)


def test_a_marker_that_has_seen_more_is_left_alone(data: Path) -> None:
    """While removals are held, the number that was seen is what the hold rests on."""
    identity.write(data, marker_of(STORE, 100))

    look(data)

    assert identity.read(data) == marker_of(STORE, 100)


def test_the_hourly_look_warns_as_long_as_something_is_held(data: Path) -> None:
    """The line at the start is days away when somebody wonders why the disk fills."""
    assert look(data, HELD) == ["warning"]


def test_the_hourly_look_says_that_the_store_is_not_there_and_makes_none(data: Path) -> None:
    """Nobody pushes at night, and a marker written into an empty mount would make it ours."""
    (data / "objects").rename(data / "moved")

    assert look(data) == ["error", "warning"]

    assert not (data / "objects").exists()


def ran(data: Path, store: Store) -> bool:
    """Tell whether a removing job of that store runs."""
    runs = []

    async def remove() -> None:
        runs.append(True)

    async def once(database: Database, disk: DiskStore) -> None:
        watch = Watch(data, marker_of(store, 0), DatabaseFile.at(data / FILE))
        await StoreCheck(database, disk, data, watch, store).removing(Job("sweep", 1.0, remove)).run()

    with capture_logs():
        _run(data, once)
    return bool(runs)


def test_nothing_is_removed_while_the_store_may_hold_what_the_database_lacks(data: Path) -> None:
    """What is removed cannot be asked for back."""
    assert ran(data, STORE)
    assert not ran(data, HELD)

    identity.write(data, replace(marker_of(STORE, 7), epoch=STORE.epoch + 1))
    assert not ran(data, STORE), "another database has taken over"

    (data / "objects").rename(data / "moved")
    assert not ran(data, STORE), "the objects are not there"


def test_a_job_that_has_a_last_word_gets_it_and_others_are_ended(tmp_path: Path) -> None:
    """The marker learns at a clean stop how far the database is."""
    said = []

    async def speak() -> None:
        said.append("at stop")

    async def hang() -> None:
        said.append("other")
        await asyncio.sleep(3600)

    async def whole() -> None:
        async with jobs.running((Job("a", 3600.0, speak, at_stop=True), Job("b", 3600.0, hang)), tmp_path / "lock"):
            await asyncio.sleep(0.01)

    asyncio.run(whole())

    assert said == ["at stop", "other", "at stop"]


def test_a_snapshot_is_taken_when_the_newest_is_old_enough(data: Path) -> None:
    """However often the server starts, and whatever else lies in the folder."""
    folder = data / FOLDER

    async def twice(database: Database, disk: DiskStore) -> None:
        copies = Snapshots(database, disk.space, folder, every_seconds=3600, keep=2)
        await copies.take_when_due()
        await copies.take_when_due()

    with capture_logs() as entries:
        _run(data, twice)
        assert len(find(folder)) == 1
        find(folder)[0].path.rename(folder / "20200101T000000Z-0002.db")
        _run(data, twice)

    assert len(find(folder)) == 2
    assert [entry["log_level"] for entry in entries] == ["info", "info"]


def test_a_snapshot_that_cannot_be_taken_is_a_line_in_the_log(data: Path) -> None:
    """The server goes on, and tries again within the hour."""
    (data / "taken").write_bytes(b"a file where the folder should be")

    async def once(database: Database, disk: DiskStore) -> None:
        await Snapshots(database, disk.space, data / "taken", every_seconds=3600, keep=2).take_when_due()

    with capture_logs() as entries:
        _run(data, once)

    assert [entry["log_level"] for entry in entries] == ["warning"]


def test_a_snapshot_leaves_the_room_that_uploads_leave(data: Path) -> None:
    """A copy that fills the disk stops the pushes, and then the deletes."""
    space = Space(data, floor_bytes=2**60)

    async def once(database: Database, _: DiskStore) -> None:
        await Snapshots(database, space, data / FOLDER, every_seconds=3600, keep=2).take_when_due()

    with capture_logs() as entries:
        _run(data, once)

    assert [entry["event"] for entry in entries] == ["no room for a snapshot of the database; the older ones stay"]
    assert list((data / FOLDER).iterdir()) == []
