"""The start table: which marker may go with which database, and what the operator is told when they do not (E1)."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from lading.app import DATABASE, SNAPSHOTS, check_identity
from lading.metadata import schema, stores
from lading.metadata.database import create_engine
from lading.metadata.upgrade import upgrade
from lading.oci.errors import StoreMismatch
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import Marker

OURS = Marker("store-of-ours", "database-of-ours")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a new database."""
    folder = tmp_path_factory.mktemp("migrated")
    upgrade(folder / DATABASE, folder / SNAPSHOTS)
    return (folder / DATABASE).read_bytes()


@pytest.fixture
def data(tmp_path: Path, migrated: bytes) -> Path:
    """Return a data directory with its folders and a new database, but without identity."""
    data = tmp_path / "data"
    data.mkdir()
    (data / DATABASE).write_bytes(migrated)
    store = DiskStore(data)
    store.prepare()
    store.close()
    return data


@pytest.fixture
def database(data: Path) -> Iterator[sa.Connection]:
    """Open the database."""
    with create_engine(data / DATABASE).connect() as connection:
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
        check_identity(database, data)

    assert (files(data), known(database)) == before
    assert caught.value.hint
    return caught.value


def test_a_new_directory_gets_an_identity_on_both_sides(database: sa.Connection, data: Path) -> None:
    """From now on these two belong together, and can tell."""
    check_identity(database, data)

    marker = identity.read(data)
    assert marker is not None
    assert marker == known(database)
    assert marker.store_uid != marker.database_uid
    assert stores.find(database) is not None
    check_identity(database, data)
    assert (identity.read(data), known(database)) == (marker, marker)


def test_two_registries_never_get_the_same_identity(database: sa.Connection, data: Path, tmp_path: Path) -> None:
    """A copy of a name would be taken for the thing."""
    other = tmp_path / "other"
    (other / "objects").mkdir(parents=True)
    (other / DATABASE).write_bytes((data / DATABASE).read_bytes())
    with create_engine(other / DATABASE).connect() as connection:
        check_identity(connection, other)

    check_identity(database, data)

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

    check_identity(database, data)

    assert (files(data), known(database)) == (before, OURS)


def test_a_missing_marker_is_written_while_the_database_speaks_of_no_object(
    database: sa.Connection, data: Path
) -> None:
    """The first start was cut short between the row and the marker; nothing can be lost yet."""
    know(database)

    check_identity(database, data)

    assert identity.read(data) == known(database) == OURS


def test_a_missing_marker_is_refused_when_the_database_speaks_of_objects(database: sa.Connection, data: Path) -> None:
    """An empty disk mounted in the wrong place would answer every pull with 404, and every push with `exists`."""
    know(database, objects=True)

    told = refusal(database, data)

    assert str(data / DATABASE) in told.message
    assert OURS.store_uid in told.message
    assert f"{identity.MARKER} is not there" in told.message


def test_objects_of_another_store_are_refused(database: sa.Connection, data: Path) -> None:
    """The rows would name files that are not there, and the collector would delete files that it does not know."""
    know(database, objects=True)
    identity.write(data, Marker("another-store", OURS.database_uid))

    told = refusal(database, data)

    for side in (OURS.store_uid, OURS.database_uid, "another-store", str(data / DATABASE), str(data)):
        assert side in told.message


def test_objects_of_another_database_are_refused(database: sa.Connection, data: Path) -> None:
    """Two databases on one store delete each other's objects."""
    know(database, objects=True)
    identity.write(data, Marker(OURS.store_uid, "another-database"))

    told = refusal(database, data)

    for side in (OURS.store_uid, OURS.database_uid, "another-database", str(data / DATABASE), str(data)):
        assert side in told.message


@pytest.mark.parametrize("stranger", [Marker("another-store", "another-database"), OURS])
def test_a_new_database_beside_the_objects_of_another_is_refused(
    database: sa.Connection, data: Path, stranger: Marker
) -> None:
    """The database was lost, and a registry that starts empty over full disks hides that."""
    identity.write(data, stranger)

    told = refusal(database, data)

    for side in (stranger.store_uid, stranger.database_uid, identity.MARKER, str(data / DATABASE)):
        assert side in told.message
    assert SNAPSHOTS in told.hint


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


def test_a_marker_is_written_whole_or_not_at_all(data: Path) -> None:
    """A power cut in the middle of writing it would refuse the next start."""
    identity.write(data, Marker("first", "first"))
    identity.write(data, OURS)

    assert identity.read(data) == OURS
    assert len(files(data)) == 1
