"""The start table: which marker may go with which database, and what the operator is told when they do not (E1)."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from lading.metadata import feed, schema, stores
from lading.metadata.database import FILE, create_engine
from lading.metadata.feed import Kind
from lading.metadata.snapshots import FOLDER
from lading.metadata.stores import Store
from lading.metadata.upgrade import upgrade
from lading.oci.errors import StoreMismatch
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import Marker
from lading.upkeep.identity import Verdict, check, judge

OURS = Marker("store-of-ours", "database-of-ours")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a new database."""
    folder = tmp_path_factory.mktemp("migrated")
    upgrade(folder / FILE, folder / FOLDER)
    return (folder / FILE).read_bytes()


@pytest.fixture
def data(tmp_path: Path, migrated: bytes) -> Path:
    """Return a data directory with its folders and a new database, but without identity."""
    data = tmp_path / "data"
    data.mkdir()
    (data / FILE).write_bytes(migrated)
    store = DiskStore(data)
    store.prepare()
    store.close()
    return data


@pytest.fixture
def database(data: Path) -> Iterator[sa.Connection]:
    """Open the database."""
    with create_engine(data / FILE).connect() as connection:
        yield connection


def know(database: sa.Connection, marker: Marker = OURS, *, objects: bool = False) -> None:
    """Give the database its row of the store, and, if asked, an object there."""
    stores.create(database, "disk", marker.store_uid, marker.database_uid, at_us=1)
    if not objects:
        return
    store = stores.find(database)
    assert store is not None
    database.execute(sa.insert(schema.blobs).values(id=1, alg=1, digest=b"a" * 32, size=1, created_us=1))
    database.execute(
        sa.insert(schema.blob_extents).values(blob_id=1, store_id=store.id, seq=0, object_key="aa/a", size=1)
    )


def known(database: sa.Connection) -> Marker | None:
    store = stores.find(database)
    return None if store is None else Marker(store.store_uid, store.database_uid)


def files(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*registry-store*") if path.is_file()}


def refusal(database: sa.Connection, data: Path) -> StoreMismatch:
    """Return the refusal of a start, which must have changed nothing."""
    before = (files(data), known(database))

    with pytest.raises(StoreMismatch) as caught:
        check(database, data)

    assert (files(data), known(database)) == before
    assert caught.value.hint
    return caught.value


def test_a_new_directory_gets_an_identity_on_both_sides(database: sa.Connection, data: Path) -> None:
    """From now on these two belong together, and can tell."""
    check(database, data)

    marker = identity.read(data)
    assert marker is not None
    assert marker == known(database)
    assert marker.store_uid != marker.database_uid
    assert stores.find(database) is not None
    check(database, data)
    assert (identity.read(data), known(database)) == (marker, Marker(*marker.pair))


def test_two_registries_never_get_the_same_identity(database: sa.Connection, data: Path, tmp_path: Path) -> None:
    """A copy of a name would be taken for the thing."""
    other = tmp_path / "other"
    (other / "objects").mkdir(parents=True)
    (other / FILE).write_bytes((data / FILE).read_bytes())
    with create_engine(other / FILE).connect() as connection:
        check(connection, other)

    check(database, data)

    first, second = identity.read(data), identity.read(other)
    assert first is not None
    assert second is not None
    assert not {first.store_uid, first.database_uid} & {second.store_uid, second.database_uid}


@pytest.mark.parametrize("objects", [False, True])
def test_a_marker_that_equals_the_row_goes(database: sa.Connection, data: Path, *, objects: bool) -> None:
    """The ordinary start."""
    know(database, objects=objects)
    identity.write(data, OURS)
    before = files(data)

    check(database, data)

    assert (files(data), known(database)) == (before, OURS)


def test_a_missing_marker_is_written_while_the_database_speaks_of_no_object(
    database: sa.Connection, data: Path
) -> None:
    """The first start was cut short between the row and the marker; nothing can be lost yet."""
    know(database)

    check(database, data)

    assert identity.read(data) == known(database) == OURS


def test_a_missing_marker_is_refused_when_the_database_speaks_of_objects(database: sa.Connection, data: Path) -> None:
    """An empty disk mounted in the wrong place would answer every pull with 404, and every push with `exists`."""
    know(database, objects=True)

    told = refusal(database, data)

    assert str(data / FILE) in told.message
    assert OURS.store_uid in told.message
    assert f"{identity.MARKER} is not there" in told.message


def test_objects_of_another_store_are_refused(database: sa.Connection, data: Path) -> None:
    """The rows would name files that are not there, and the collector would delete files that it does not know."""
    know(database, objects=True)
    identity.write(data, Marker("another-store", OURS.database_uid))

    told = refusal(database, data)

    for side in (OURS.store_uid, OURS.database_uid, "another-store", str(data / FILE), str(data)):
        assert side in told.message


def test_objects_of_another_database_are_refused(database: sa.Connection, data: Path) -> None:
    """Two databases on one store delete each other's objects."""
    know(database, objects=True)
    identity.write(data, Marker(OURS.store_uid, "another-database"))

    told = refusal(database, data)

    for side in (OURS.store_uid, OURS.database_uid, "another-database", str(data / FILE), str(data)):
        assert side in told.message


@pytest.mark.parametrize("stranger", [Marker("another-store", "another-database"), OURS])
def test_a_new_database_beside_the_objects_of_another_is_refused(
    database: sa.Connection, data: Path, stranger: Marker
) -> None:
    """The database was lost, and a registry that starts empty over full disks hides that."""
    identity.write(data, stranger)

    told = refusal(database, data)

    for side in (stranger.store_uid, stranger.database_uid, identity.MARKER, str(data / FILE)):
        assert side in told.message
    assert FOLDER in told.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 1, "store_uid": "a"}',
        b'{"store_uid": "a", "database_uid": "b"}',
    ],
)
def test_a_marker_that_cannot_be_read_is_refused_and_kept(database: sa.Connection, data: Path, content: bytes) -> None:
    """It may be half of the truth, which whoever restores it wants to see."""
    know(database)
    identity.write(data, OURS)
    (path,) = [data / name for name in files(data)]
    path.write_bytes(content)

    told = refusal(database, data)

    assert str(path) in told.message
    assert path.read_bytes() == content


def test_a_marker_of_a_newer_format_is_refused(database: sa.Connection, data: Path) -> None:
    """It says something that this program does not understand."""
    know(database)
    identity.write(data, OURS)
    (path,) = [data / name for name in files(data)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": identity.FORMAT + 1}))

    told = refusal(database, data)

    assert str(path) in told.message
    assert str(identity.FORMAT + 1) in told.message


# How far the database is


def change(database: sa.Connection, times: int) -> None:
    """Let the database's feed grow."""
    for _ in range(times):
        feed.append(database, Kind.TAG_SET, repository="team/app", actor="ann", at_us=1)


def held(database: sa.Connection) -> str | None:
    store = stores.find(database)
    assert store is not None
    return store.held_reason


def test_a_start_tells_the_marker_how_far_the_database_is(database: sa.Connection, data: Path) -> None:
    """What it has not seen it cannot miss later."""
    check(database, data)
    change(database, 5)

    check(database, data)

    marker = identity.read(data)
    assert marker is not None
    assert (marker.epoch, marker.seq) == (1, 5)


def test_a_marker_of_before_goes_and_learns(database: sa.Connection, data: Path) -> None:
    """The registries of the first release start with the next one."""
    know(database, objects=True)
    change(database, 5)
    path = identity.marker_path(data)
    path.write_text(json.dumps({"format": 1, "store_uid": OURS.store_uid, "database_uid": OURS.database_uid}))

    check(database, data)

    assert identity.read(data) == Marker(OURS.store_uid, OURS.database_uid, epoch=1, seq=5)
    assert held(database) is None


def test_a_database_that_was_rolled_back_starts_and_holds_what_it_does_not_know(
    database: sa.Connection, data: Path
) -> None:
    """Somebody restored a backup; the files of what was pushed since are all that is left of it."""
    know(database, objects=True)
    change(database, 5)
    identity.write(data, replace(OURS, seq=8))

    with capture_logs() as entries:
        check(database, data)

    assert held(database) == "the database was rolled back: it knows 5 changes, its store has seen 8"
    assert identity.read(data) == replace(OURS, seq=8), "the marker forgot what it has seen"
    (warning,) = [entry for entry in entries if entry["log_level"] == "warning"]
    assert "lading store acknowledge" in warning["hint"]


def test_a_hold_outlives_the_growth_of_the_database(database: sa.Connection, data: Path) -> None:
    """New pushes catch up with the number that was seen, and nothing that was lost comes back by that."""
    know(database, objects=True)
    change(database, 5)
    identity.write(data, replace(OURS, seq=8))
    check(database, data)
    change(database, 20)

    with capture_logs() as entries:
        check(database, data)

    assert held(database) is not None
    assert [entry["log_level"] for entry in entries] == ["warning"]


def test_a_database_of_an_earlier_epoch_starts_and_changes_nothing(database: sa.Connection, data: Path) -> None:
    """It was replaced by another state of itself, which is in force; what it would write, that one would not know."""
    know(database, objects=True)
    change(database, 50)
    later = replace(OURS, epoch=2, seq=8)
    identity.write(data, later)

    with capture_logs() as entries:
        check(database, data)

    assert identity.read(data) == later
    assert held(database) is None
    assert [entry["log_level"] for entry in entries] == ["error"]
    assert "read-only" in entries[0]["event"]


def test_a_database_of_a_later_epoch_takes_the_store_over(database: sa.Connection, data: Path) -> None:
    """It was restored: its feed has fewer changes, and they count."""
    know(database, objects=True)
    store = stores.find(database)
    assert store is not None
    stores.take_over(database, store.id, store_uid=OURS.store_uid, database_uid=OURS.database_uid, epoch=3)
    change(database, 5)
    identity.write(data, replace(OURS, epoch=2, seq=8))

    check(database, data)

    assert identity.read(data) == replace(OURS, epoch=3, seq=5)


def test_a_full_disk_does_not_end_a_registry_that_knows_its_store(
    database: sa.Connection, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far the database is can be written later; pulls and deletes have to go on now."""
    know(database, objects=True)
    identity.write(data, OURS)
    change(database, 5)

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with capture_logs() as entries:
        check(database, data)

    assert identity.read(data) == OURS
    assert [entry["log_level"] for entry in entries] == ["warning"]


# Every row of the table

ROW = Store(1, OURS.store_uid, OURS.database_uid, epoch=2, held_us=None, held_reason=None)


@pytest.mark.parametrize(
    ("marker", "store", "has_objects", "seq", "verdict"),
    [
        (None, None, False, 0, Verdict.NEW),
        (None, ROW, False, 5, Verdict.UNMARKED),
        (None, ROW, True, 5, Verdict.OBJECTS_LOST),
        (replace(OURS, epoch=2, seq=5), None, False, 0, Verdict.DATABASE_LOST),
        (Marker("another", OURS.database_uid, 2, 5), ROW, True, 5, Verdict.STRANGERS),
        (Marker(OURS.store_uid, "another", 2, 5), ROW, True, 5, Verdict.STRANGERS),
        (Marker("another", "another", 9, 9), ROW, False, 5, Verdict.STRANGERS),
        (replace(OURS, epoch=2, seq=5), ROW, True, 5, Verdict.OK),
        (replace(OURS, epoch=2, seq=4), ROW, True, 5, Verdict.OK),
        (replace(OURS, epoch=1, seq=9), ROW, True, 5, Verdict.OK),
        (replace(OURS, epoch=2, seq=6), ROW, True, 5, Verdict.ROLLED_BACK),
        (replace(OURS, epoch=3, seq=1), ROW, True, 5, Verdict.SUPERSEDED),
        (replace(OURS, epoch=3, seq=9), ROW, False, 5, Verdict.SUPERSEDED),
    ],
)
def test_the_table_is_as_it_is_written(
    marker: Marker | None, store: Store | None, seq: int, verdict: Verdict, *, has_objects: bool
) -> None:
    """Each row decides whether somebody's images are served, refused or removed."""
    assert judge(marker, store, has_objects=has_objects, seq=seq) is verdict
