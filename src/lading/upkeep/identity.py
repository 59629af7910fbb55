"""The start-up table: may this database and these objects go together (E1)? Asked at the start, then every hour.

marker                          database               what happens
equal                           row of the store       go
absent                          no object in a row     write it
absent                          objects in rows        refuse: the wrong place, or emptied
there                           no row                 refuse: the database was lost
another store or database       row of the store       refuse
seq above the feed's            row of the store       go; nothing is removed until that is acknowledged
epoch above the row's           row of the store       go, read-only: another state of the database took over
"""

import uuid
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa
import structlog

from lading.metadata import feed, stores
from lading.metadata.database import FILE, Database
from lading.metadata.snapshots import FOLDER
from lading.metadata.stores import Store
from lading.metadata.times import now_us
from lading.oci.errors import RegistryError, StoreMismatch
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import Marker, Watch
from lading.upkeep.jobs import Job

TAKE_OVER = "stop the server, then: lading store adopt puts this database in force"

log = structlog.get_logger(__name__)


class Verdict(StrEnum):
    """What the table says of a marker and a database; the values are what `lading store status` shows."""

    OK = "ok"
    NEW = "new"
    UNMARKED = "unmarked"
    OBJECTS_LOST = "objects-lost"
    DATABASE_LOST = "database-lost"
    STRANGERS = "strangers"
    ROLLED_BACK = "rolled-back"
    SUPERSEDED = "superseded"


def judge(marker: Marker | None, store: Store | None, *, has_objects: bool, seq: int) -> Verdict:
    """Look into the table. `seq` is the last number of the database's feed."""
    if store is None:
        return Verdict.NEW if marker is None else Verdict.DATABASE_LOST
    if marker is None:
        return Verdict.OBJECTS_LOST if has_objects else Verdict.UNMARKED
    if marker.pair != (store.store_uid, store.database_uid):
        return Verdict.STRANGERS
    if marker.epoch > store.epoch:
        return Verdict.SUPERSEDED
    return Verdict.ROLLED_BACK if (marker.epoch, marker.seq) > (store.epoch, seq) else Verdict.OK


def check(connection: sa.Connection, data: Path) -> None:
    """Hold the marker in the data directory against the database's row, and write what a new directory lacks.

    Raises:
        StoreMismatch: they do not belong together.

    """
    marker, store, seq = identity.read(data), stores.find(connection), feed.last_seq(connection)
    has_objects = store is not None and stores.has_objects(connection, store.id)
    verdict = judge(marker, store, has_objects=has_objects, seq=seq)
    _refuse(verdict, data, marker, store)
    if store is None:
        store = _create(connection)
    if verdict is Verdict.SUPERSEDED:
        log.error("read-only: another state of the database has taken over the store", hint=TAKE_OVER)
    elif verdict is Verdict.ROLLED_BACK:
        assert marker is not None
        if store.held_reason is None:
            reason = f"the database was rolled back: it knows {seq} changes, its store has seen {marker.seq}"
            stores.hold(connection, store.id, reason, at_us=now_us())
            warn_of_hold(reason)
    elif marker is None:
        identity.write(data, marker_of(store, seq))
    elif marker != (ours := marker_of(store, seq)):
        _write_progress(data, ours)
    if store.held_reason is not None:
        warn_of_hold(store.held_reason)


def _write_progress(data: Path, ours: Marker) -> None:
    """Let the marker know how far the database is. A disk that is full does not end a registry that can still serve."""
    try:
        identity.write(data, ours)
    except OSError as error:
        log.warning("the marker could not be told how far the database is", reason=str(error))


def _refuse(verdict: Verdict, data: Path, marker: Marker | None, store: Store | None) -> None:
    if verdict is Verdict.DATABASE_LOST and marker is not None:
        raise StoreMismatch(
            f"{identity.marker_path(data)} belongs to database {marker.database_uid} (store {marker.store_uid}), "
            f"but {data / FILE} is new: the database was lost or moved away",
            f"bring back a copy from {data / FOLDER}: lading restore-snapshot; to begin anew, name an empty directory; "
            "to keep the objects without what was known of them: lading store adopt",
        )
    if verdict is Verdict.OBJECTS_LOST and store is not None:
        raise StoreMismatch(
            f"the database {data / FILE} speaks of objects in store {store.store_uid}, "
            f"but {identity.marker_path(data)} is not there: the objects were moved away or emptied",
            "put the right objects back; if these are the right ones: lading store adopt; if they are lost, and "
            "clients shall push them again: lading store mark-missing",
        )
    if verdict is Verdict.STRANGERS and marker is not None and store is not None:
        raise StoreMismatch(
            f"the database {data / FILE} is {store.database_uid} with store {store.store_uid}, but the objects "
            f"in {data} are store {marker.store_uid} of database {marker.database_uid}",
            "put the database and the objects of one and the same registry together, or name another data directory; "
            "to give these objects to this database: lading store adopt",
        )


def _create(connection: sa.Connection) -> Store:
    stores.create(connection, "disk", str(uuid.uuid4()), str(uuid.uuid4()), at_us=now_us())
    store = stores.find(connection)
    assert store is not None
    return store


def marker_of(store: Store, seq: int) -> Marker:
    """Return the marker that says of the store what the database does."""
    return Marker(store.store_uid, store.database_uid, store.epoch, seq)


def warn_of_hold(reason: str) -> None:
    """Tell that nothing is removed, why, and what ends that."""
    log.warning(
        "nothing is removed from the store until that is acknowledged",
        reason=reason,
        hint="stop the server, then: lading store acknowledge",
    )


class StoreCheck:
    """What goes on of the table while the server runs: the hourly look, and the word whether anything may be removed.

    A hold cannot begin or end meanwhile: the commands that change it refuse a running server.
    """

    def __init__(self, database: Database, disk: DiskStore, data: Path, watch: Watch, store: Store) -> None:
        self._database = database
        self._disk = disk
        self._data = data
        self._watch = watch
        self._store = store

    async def look(self) -> None:
        """Tell of what is wrong once more, and let the marker know how far the database is."""
        if self._store.held_reason is not None:
            warn_of_hold(self._store.held_reason)
        try:
            self._watch.confirm_writable()
        except RegistryError as error:
            log.warning("nothing is accepted, as before", reason=str(error))
            return
        ours = marker_of(self._store, await self._database.read(feed.last_seq))
        marker = identity.read(self._data)
        if marker is None or (marker.epoch, marker.seq) < (ours.epoch, ours.seq):
            await self._disk.in_thread(_write_progress, self._data, ours)

    def removing(self, job: Job) -> Job:
        """Return a job that removes something: it is skipped while the store may hold what the database lacks."""
        return Job(job.name, job.every_seconds, self._unless_held(job.run))

    def _unless_held(self, run: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def run_unless_held() -> None:
            if self._store.held_reason is not None:
                return
            try:
                self._watch.confirm_writable()
            except RegistryError:
                return
            await run()

        return run_unless_held
