"""The composition root: it alone knows every class, builds them in order, and closes them in reverse."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from lading import logs, metrics
from lading.auth import htpasswd
from lading.auth.gate import Gate
from lading.auth.htpasswd import Htpasswd
from lading.auth.passwords import Logins
from lading.auth.policy import OpenPolicy, Policy, UsersPolicy
from lading.logs import AccessLog, event_logger
from lading.metadata import restore, snapshots, stores, uploads
from lading.metadata.database import FILE, Database, create_engine
from lading.metadata.garbage import Retention
from lading.metadata.stores import Store
from lading.metadata.times import SECOND_US
from lading.metadata.upgrade import upgrade
from lading.metadata.verify import Fault
from lading.oci.errors import CommandRefused, DatabaseUnusable, DataDirectoryUnusable, DiskFull, StoreMismatch
from lading.registry.blobs import Blobs
from lading.registry.history import History
from lading.registry.manifests import Manifests
from lading.registry.pulls import Pulls
from lading.registry.referrers import Referrers
from lading.registry.registry import Registry
from lading.registry.repositories import Repositories
from lading.registry.tags import Tags
from lading.registry.uploads import UploadLimits, Uploads
from lading.settings import Settings
from lading.storage import probe
from lading.storage.disk import DiskStore
from lading.storage.identity import DatabaseFile, Watch
from lading.storage.space import FULL, Space
from lading.upkeep import adoption, identity, jobs, turns
from lading.upkeep.collection import BackgroundCollection, Collector
from lading.upkeep.collection import Policy as CollectionPolicy
from lading.upkeep.expiry import Expiry
from lading.upkeep.identity import StoreCheck
from lading.upkeep.jobs import Job
from lading.upkeep.scrub import Scrub, ScrubSchedule, empty_quarantine_of, log_damage
from lading.upkeep.snapshots import Snapshots
from lading.upkeep.verify import Progress
from lading.web import health
from lading.web.metrics import FREE_BYTES, OPEN_UPLOADS, Looks, MetricsPage, beside
from lading.web.middleware import Front
from lading.web.v2.application import V2

_EXPIRY_SECONDS = 3600.0
_SWEEP_SECONDS = 3600.0
_BALLAST_SECONDS = 5.0
_STORE_CHECK_SECONDS = 3600.0
_PULLS_SECONDS = 60.0
_SNAPSHOT_CHECK_SECONDS = 3600.0
_SCRUB_CHECK_SECONDS = 60.0
_QUARANTINE_SECONDS = 3600.0


def prepare(settings: Settings, *, alone: bool = True) -> None:
    """Make the data directory ready for workers: folders, schema, store identity. In the parent, before any fork.

    If not `alone`, another server is at work in it: nothing is done under its feet.

    Raises:
        StartRefused: what is there cannot be served; the sentence says why and what to do.

    """
    data = settings.data
    metrics.here.share(settings.http.workers)
    check_users(settings)
    space = _space(settings)
    store = DiskStore(data, space)
    try:
        if space.is_exhausted():
            space.give_up_ballast()
        probe.refuse_unfit(data)
        if alone:
            restore.finish(data / FILE)
        upgrade(data / FILE, data / snapshots.FOLDER, alone=alone)
        with create_engine(data / FILE).connect() as connection:
            identity.check(connection, data)
        store.prepare()
        space.hold_ballast()
    except (DatabaseUnusable, sa.exc.DBAPIError) as error:
        if space.is_exhausted():  # the database says many things when it finds no room for its log's index
            raise _disk_full(data) from error
        raise
    except OSError as error:
        if error.errno in FULL:
            raise _disk_full(data) from error
        raise DataDirectoryUnusable(f"{data} cannot be used: {error.strerror}", "name another with --data") from error
    finally:
        store.close()


def _space(settings: Settings) -> Space:
    return Space(settings.data, floor_bytes=settings.storage.min_free_bytes)


def _disk_full(data: Path) -> DiskFull:
    return DiskFull(f"the disk of {data} is full", "make some room on that disk and start again")


def check_users(settings: Settings) -> None:
    """Read the file of users, where there is one. At the start and at each reload, which are refused in time.

    Raises:
        UsersUnusable: no worker could tell who may come in.

    """
    if settings.auth.htpasswd is not None:
        htpasswd.load(settings.auth.htpasswd)


@contextlib.asynccontextmanager
async def open_application(settings: Settings, policy: Policy | None = None) -> AsyncIterator[ASGIApp]:
    """Build the application in a worker, after the fork, and close it in reverse at the end."""
    async with contextlib.AsyncExitStack() as stack:
        store = DiskStore(settings.data, _space(settings), max_staged_bytes=settings.uploads.max_bytes)
        stack.callback(store.close)
        file = DatabaseFile.at(settings.data / FILE)
        database = Database(settings.data / FILE, store.space)
        stack.callback(database.close)
        access_log = AccessLog(settings.log.format, file=settings.log.access_file or settings.log.file)
        stack.callback(access_log.close)
        stack.enter_context(logs.in_background(lambda lost: metrics.here.add(metrics.LOST_RECORDS, amount=lost)))
        known = await database.read(stores.find)
        if known is None:
            raise StoreMismatch("the database lost its store row after the start", "start the server again")
        watch = Watch(settings.data, identity.marker_of(known, 0), file)
        registry = _registry(settings, database, store, watch, known.id)
        upkeep = _jobs(settings, database, store, watch, known, registry)
        await stack.enter_async_context(jobs.running(upkeep, settings.data / "upkeep.lock"))
        own = Job("write the pulls", _PULLS_SECONDS, registry.pulls.write, at_stop=True)
        await stack.enter_async_context(jobs.running((own,)))
        if not metrics.here.claim():
            event_logger().warning("this worker's requests are not in the metrics: too many workers live at once")
        policy = Gate(policy or _policy(settings, stack), watch.confirm_writable)
        v2 = V2(registry, policy, max_page_entries=settings.lists.max_page_entries)

        async def ready() -> None:
            watch.confirm_there()
            await asyncio.gather(database.read(stores.find), database.scan(stores.find), database.write(stores.find))

        looks = _looks(database, store)
        pages = health.create(ready=ready, metrics=MetricsPage(looks, policy).answer)
        application: ASGIApp = Front(v2, pages, access_log)
        if settings.metrics.port is not None:
            alone = Starlette(routes=[Route("/metrics", MetricsPage(looks, None).answer)])
            application = beside(application, Front(alone, alone, access_log), settings.metrics.port)
        yield application


@contextlib.asynccontextmanager
async def open_collector(
    settings: Settings, policy: CollectionPolicy, *, copy: Path | None = None
) -> AsyncIterator[Collector]:
    """Open the collector for a command, beside a running server or without one.

    With a `copy` of the database it works on that one, and leaves the files: to see what would go.

    Raises:
        CommandRefused: nothing may be removed from the store now.

    """
    async with _opened_beside(settings) as (database, store, _, known):
        adoption.refuse_removal(await database.scan(adoption.standing, settings.data))
        if copy is None:
            yield Collector(database, store, policy, store_id=known.id)
            return
        with contextlib.closing(Database(copy, store.space)) as copied:
            yield Collector(copied, store, dataclasses.replace(policy, only_rows=True), store_id=known.id)


def retention(settings: Settings) -> Retention:
    """Return how long things are kept, in the unit of the database."""
    kept = settings.collection
    return Retention(
        lease_us=round(kept.lease_seconds * SECOND_US),
        undo_us=round(kept.undo_seconds * SECOND_US),
        delay_us=round(kept.delay_seconds * SECOND_US),
    )


@dataclass(frozen=True, slots=True)
class OpenRegistry:
    """The use cases for a command. Ask `confirm_writable` before each change: it raises while none may be made."""

    registry: Registry
    confirm_writable: Callable[[], None]


@contextlib.asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[OpenRegistry]:
    """Open the registry for a command of its operator, beside a running server or without one.

    What is switched off for clients (setting `deletes.enabled`) is not for the operator.

    Raises:
        CommandRefused: the next start of the server has something to do first.

    """
    operated = settings.model_copy(update={"deletes": settings.deletes.model_copy(update={"enabled": True})})
    async with _opened_beside(settings) as (database, store, watch, known):
        yield OpenRegistry(_registry(operated, database, store, watch, known.id), watch.confirm_writable)


@contextlib.asynccontextmanager
async def open_scrub(
    settings: Settings, *, tell: Callable[[Fault], None], progress: Progress | None = None
) -> AsyncIterator[Scrub]:
    """Open a scrub for a command, beside a running server or without one.

    Raises:
        CommandRefused: the next start of the server has something to do first.
        RegistryError: the store is not ours to write.

    """
    async with _opened_beside(settings) as (database, store, watch, known):
        watch.confirm_writable()
        yield _scrub(settings, database, store, watch, known, tell=tell, progress=progress)


@contextlib.asynccontextmanager
async def _opened_beside(settings: Settings) -> AsyncIterator[tuple[Database, DiskStore, Watch, Store]]:
    """Open what a command needs that changes something beside a running server or without one."""
    data = settings.data
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(turns.opened_beside(data))
        if restore.is_unfinished(data / FILE):
            raise CommandRefused("a restore of the database was cut short", "start the server, which finishes it")
        adoption.refuse_other_schema(data)
        store = DiskStore(data, _space(settings), max_staged_bytes=settings.uploads.max_bytes)
        stack.callback(store.close)
        file = DatabaseFile.at(data / FILE)
        try:
            database = Database(data / FILE, store.space)
        except (OSError, sa.exc.DBAPIError) as error:
            raise CommandRefused(
                f"the database {data / FILE} cannot be opened: {error}", "run it as the user whom the server runs as"
            ) from error
        stack.callback(database.close)
        known = await database.read(stores.find)
        if known is None:
            raise CommandRefused(f"the database {data / FILE} has no store yet", "start the server once")
        yield database, store, Watch(data, identity.marker_of(known, 0), file), known


def _looks(database: Database, store: DiskStore) -> Looks:
    return {
        OPEN_UPLOADS: lambda: database.scan(uploads.count),
        FREE_BYTES: store.free_bytes,
    }


def _policy(settings: Settings, stack: contextlib.AsyncExitStack) -> Policy:
    auth = settings.auth
    if auth.htpasswd is None:
        return OpenPolicy()
    # Of all cores but one, what falls to this worker: checks of passwords never take what requests need.
    threads = max(1, (len(os.sched_getaffinity(0)) - 1) // settings.http.workers)
    file = Htpasswd(auth.htpasswd)
    stack.callback(asyncio.create_task(file.watch(), name="watch the file of users").cancel)
    logins = Logins(file, threads=threads)
    stack.callback(logins.close)
    return UsersPolicy(logins, anonymous_pull=auth.anonymous_pull)


def _registry(settings: Settings, database: Database, store: DiskStore, watch: Watch, store_id: int) -> Registry:
    limits = UploadLimits(
        ttl_seconds=settings.uploads.ttl_seconds,
        max_blob_bytes=settings.blobs.max_bytes,
        inline_max_bytes=settings.blobs.inline_max_bytes,
        max_sessions=settings.uploads.max_sessions,
        max_sessions_per_user=_max_sessions_per_user(settings),
    )
    keep = retention(settings)
    deletes_enabled = settings.deletes.enabled
    return Registry(
        blobs=Blobs(database, store, watch, retention=keep, deletes_enabled=deletes_enabled),
        uploads=Uploads(database, store, watch, store_id=store_id, limits=limits, retention=keep),
        manifests=Manifests(
            database,
            store,
            retention=keep,
            sparse=settings.manifests.sparse_indexes,
            deletes_enabled=deletes_enabled,
            may_delete_children=settings.deletes.index_children,
        ),
        tags=Tags(database, retention=keep, deletes_enabled=deletes_enabled),
        pulls=Pulls(database, store.space),
        referrers=Referrers(database),
        repositories=Repositories(database, retention=keep),
        history=History(database, store, retention=keep),
    )


def _max_sessions_per_user(settings: Settings) -> int | None:
    """Return the cap; where nobody has a name there is none, since all would share one caller's part."""
    if settings.auth.htpasswd is None:
        return None
    return settings.uploads.max_sessions_per_user or max(1, settings.uploads.max_sessions // 5)


def _jobs(
    settings: Settings, database: Database, disk: DiskStore, watch: Watch, store: Store, registry: Registry
) -> tuple[Job, ...]:
    check = StoreCheck(database, disk, settings.data, watch, store)
    expiry = Expiry(database, disk, registry.uploads, store_id=store.id)
    collector = Collector(
        database,
        disk,
        CollectionPolicy(retention(settings), delete_untagged=settings.collection.delete_untagged),
        store_id=store.id,
    )
    background = BackgroundCollection(collector, settings.data)
    expiry_seconds = min(_EXPIRY_SECONDS, max(1.0, settings.uploads.ttl_seconds / 4))
    return (
        Job("check the store", _STORE_CHECK_SECONDS, check.look, at_stop=True),
        check.removing(Job("end expired sessions", expiry_seconds, expiry.end_expired_sessions)),
        check.removing(Job("sweep staging files", _SWEEP_SECONDS, expiry.sweep_staging_files)),
        check.removing(Job("collect", settings.collection.every_seconds, background.run)),
        Job("hold the ballast", _BALLAST_SECONDS, disk.hold_ballast),
        *_snapshot_jobs(settings, database, disk),
        check.removing(_quarantine_job(settings, disk)),
        *_scrub_jobs(settings, database, disk, watch, store),
    )


def _snapshot_jobs(settings: Settings, database: Database, disk: DiskStore) -> tuple[Job, ...]:
    every_seconds = settings.snapshots.every_seconds
    if not every_seconds:
        return ()
    copies = Snapshots(
        database,
        disk.space,
        settings.data / snapshots.FOLDER,
        every_seconds=every_seconds,
        keep=settings.snapshots.keep,
    )
    return (Job("take a snapshot", min(_SNAPSHOT_CHECK_SECONDS, max(1.0, every_seconds / 4)), copies.take_when_due),)


def _quarantine_job(settings: Settings, disk: DiskStore) -> Job:
    async def empty() -> None:
        await empty_quarantine_of(disk, settings.data, undo_us=retention(settings).undo_us)

    return Job("empty the quarantine", _QUARANTINE_SECONDS, empty)


def _scrub_jobs(settings: Settings, database: Database, disk: DiskStore, watch: Watch, store: Store) -> tuple[Job, ...]:
    every_seconds = settings.scrub.every_seconds
    if not every_seconds:
        return ()
    scrubber = _scrub(settings, database, disk, watch, store, tell=log_damage)
    schedule = ScrubSchedule(scrubber, settings.data, every_seconds=every_seconds)
    return (Job("scrub", min(_SCRUB_CHECK_SECONDS, max(1.0, every_seconds / 4)), schedule.go_on_when_due),)


def _scrub(  # noqa: PLR0913 - what a scrub reads, and who hears of it
    settings: Settings,
    database: Database,
    disk: DiskStore,
    watch: Watch,
    store: Store,
    *,
    tell: Callable[[Fault], None],
    progress: Progress | None = None,
) -> Scrub:
    return Scrub(
        database,
        disk,
        settings.data,
        watch,
        store_id=store.id,
        undo_us=retention(settings).undo_us,
        max_bytes_per_second=settings.scrub.max_bytes_per_second,
        tell=tell,
        progress=progress,
    )
