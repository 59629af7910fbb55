"""Ways out of what the start-up table refuses: the operator says what is true, while no server runs.

Each begins a new epoch, so that whatever spoke for the store before is told from what does now. The row comes first
and the marker last: a command that was killed in between is refused at the next start, and simply given again.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from lading.metadata import feed, restore, stores
from lading.metadata.database import FILE, create_engine
from lading.metadata.schema import REVISION
from lading.metadata.snapshots import FOLDER, contents
from lading.metadata.stores import Store
from lading.metadata.times import now_us
from lading.metadata.upgrade import upgrade
from lading.oci.errors import CommandRefused, StoreMismatch
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import Marker
from lading.upkeep.identity import Verdict, judge

_ADOPTED = "the store was adopted, and has served another database or a later state of this one"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the marker and the database of a data directory say. `problem` is why the marker cannot be read."""

    verdict: Verdict | None
    marker: Marker | None
    store: Store | None
    seq: int
    objects: int
    problem: str | None = None


@contextlib.contextmanager
def opened(data: Path) -> Iterator[sa.Connection]:
    """Open the database of a directory that the caller has claimed, at the present schema; make it if it is lost."""
    restore.finish(data / FILE)
    upgrade(data / FILE, data / FOLDER)
    with create_engine(data / FILE).connect() as connection:
        yield connection


@contextlib.contextmanager
def looked_into(data: Path) -> Iterator[sa.Connection]:
    """Open the database to look at it, also beside a running server.

    Raises:
        CommandRefused: there is none, or not at the present schema.

    """
    refuse_other_schema(data)
    with create_engine(data / FILE).connect() as connection:
        yield connection


def refuse_other_schema(data: Path) -> None:
    """Return when the database is one that this version works on.

    Raises:
        CommandRefused: there is none, or not at the present schema.

    """
    revision = contents(data / FILE, with_log=True).revision
    if revision != REVISION:
        raise CommandRefused(
            f"the database {data / FILE} has schema {revision}, this Lading looks at schema {REVISION}",
            "the next start of the server upgrades it" if revision < REVISION else "use the newer Lading",
        )


def standing(connection: sa.Connection, data: Path) -> Standing:
    """Return how things stand; nothing is changed."""
    marker, problem = None, None
    try:
        marker = identity.read(data)
    except StoreMismatch as error:
        problem = error.message
    store, seq = stores.find(connection), feed.last_seq(connection)
    objects = 0 if store is None else stores.count_objects(connection, store.id)
    verdict = None if problem else judge(marker, store, has_objects=bool(objects), seq=seq)
    return Standing(verdict, marker, store, seq, objects, problem)


def count_missing(connection: sa.Connection, data: Path, store: Store, looked: Callable[[], None]) -> int:
    """Return how many objects of the database are not there with their length; `looked` is called for each."""
    disk = DiskStore(data)
    missing = 0
    for object_key, content_bytes in stores.objects(connection, store.id):
        missing += not disk.has(object_key, content_bytes)
        looked()
    disk.close()
    return missing


def refuse_needless_adoption(now: Standing) -> None:
    """Return when adopting would end a refusal.

    Raises:
        CommandRefused: there is none that this would end.

    """
    if now.verdict in {Verdict.OK, Verdict.NEW, Verdict.UNMARKED}:
        raise CommandRefused("the database and the objects belong together already", "start the server")
    if now.verdict is Verdict.ROLLED_BACK:
        raise CommandRefused(
            "the database and the objects belong together; the database was rolled back", "lading store acknowledge"
        )


def refuse_removal(now: Standing) -> None:
    """Return when what the database does not know may be removed from the store.

    Raises:
        CommandRefused: the store may hold what this database lacks.

    """
    if now.store is not None and now.store.held_reason is not None:
        raise CommandRefused(f"nothing is removed: {now.store.held_reason}", "lading store acknowledge ends that")
    if now.verdict is not Verdict.OK:
        raise CommandRefused(
            "it is not certain that the objects are this database's, so nothing is removed",
            "lading store status tells why",
        )


def adopt(connection: sa.Connection, data: Path) -> Marker:
    """Make the objects that are there the store of this database, in a new epoch.

    Where they have served another database, or a later state of this one, nothing is removed from them until that is
    acknowledged.

    Raises:
        CommandRefused: as `refuse_needless_adoption`.

    """
    now = standing(connection, data)
    refuse_needless_adoption(now)
    database_uid = now.store.database_uid if now.store else str(uuid.uuid4())
    store_uid = now.marker.store_uid if now.marker else now.store.store_uid if now.store else str(uuid.uuid4())
    marker = Marker(store_uid, database_uid, _next_epoch(now), now.seq)
    with _transaction(connection):
        store_id = _write_row(connection, marker, now.store)
        if now.marker is not None or now.problem is not None:
            stores.hold(connection, store_id, _ADOPTED, at_us=now_us())
    _write_marker(data, marker, now)
    return marker


def refuse_needless_marking(now: Standing) -> None:
    """Return when the objects are without their marker.

    Raises:
        CommandRefused: they have one.

    """
    if now.verdict is not Verdict.OBJECTS_LOST:
        raise CommandRefused(
            "only objects that lost their marker can be marked: a single blob whose object is lost is absent without "
            "any command, and comes back when it is pushed again",
            "lading store status",
        )


def mark_missing(connection: sa.Connection, data: Path) -> Marker:
    """Go on without the objects: what lies in the directory becomes a new store, and absent blobs are pushed again.

    Rows stay: each answer looks for the object, so a lost one is absent until it is pushed again. The new store's id
    sees to it that the old objects, should they turn up, are not taken for these.

    Raises:
        CommandRefused: as `refuse_needless_marking`.

    """
    now = standing(connection, data)
    refuse_needless_marking(now)
    assert now.store is not None
    marker = Marker(str(uuid.uuid4()), now.store.database_uid, _next_epoch(now), now.seq)
    with _transaction(connection):
        _write_row(connection, marker, now.store)
    _write_marker(data, marker, now)
    return marker


def refuse_needless_acknowledgement(now: Standing) -> None:
    """Return when removals are held, and only that.

    Raises:
        CommandRefused: nothing is held, or more is wrong.

    """
    if now.verdict not in {Verdict.OK, Verdict.ROLLED_BACK}:
        raise CommandRefused("the database and the objects do not belong together", "lading store status")
    if now.verdict is Verdict.OK and (now.store is None or now.store.held_reason is None):
        raise CommandRefused("nothing is held: there is nothing to acknowledge")


def acknowledge(connection: sa.Connection, data: Path) -> Marker:
    """Accept that what only the store knows is no longer wanted: from now on it may be removed.

    Raises:
        CommandRefused: as `refuse_needless_acknowledgement`.

    """
    now = standing(connection, data)
    refuse_needless_acknowledgement(now)
    assert now.store is not None
    marker = Marker(now.store.store_uid, now.store.database_uid, _next_epoch(now), now.seq)
    with _transaction(connection):
        stores.release(connection, now.store.id, epoch=marker.epoch)
    _write_marker(data, marker, now)
    return marker


def _next_epoch(now: Standing) -> int:
    return max(now.marker.epoch if now.marker else 0, now.store.epoch if now.store else 0) + 1


def _write_row(connection: sa.Connection, marker: Marker, store: Store | None) -> int:
    if store is None:
        stores.create(connection, "disk", marker.store_uid, marker.database_uid, at_us=now_us(), epoch=marker.epoch)
    else:
        stores.take_over(
            connection, store.id, store_uid=marker.store_uid, database_uid=marker.database_uid, epoch=marker.epoch
        )
    written = stores.find(connection)
    assert written is not None
    return written.id


def _write_marker(data: Path, marker: Marker, now: Standing) -> None:
    """Write it; one that cannot be read is kept beside it, for whoever wants to know what it was."""
    path = identity.marker_path(data)
    if now.problem is not None and path.exists():
        path.replace(path.with_suffix(f".unreadable-{now_us()}"))
    identity.write(data, marker)


@contextlib.contextmanager
def _transaction(connection: sa.Connection) -> Iterator[None]:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
