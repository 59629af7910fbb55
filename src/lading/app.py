"""The composition root: it alone knows every class, builds them in order, and closes them in reverse."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from lading import metrics
from lading.auth import htpasswd
from lading.auth.htpasswd import Htpasswd
from lading.auth.passwords import Logins
from lading.auth.policy import OpenPolicy, Policy, UsersPolicy
from lading.logs import AccessLog, event_logger
from lading.metadata import stores, uploads
from lading.metadata.database import Database, create_engine
from lading.metadata.times import now_us
from lading.metadata.upgrade import upgrade
from lading.oci.errors import DatabaseUnusable, DataDirectoryUnusable, DiskFull, StoreMismatch
from lading.registry.blobs import Blobs
from lading.registry.manifests import Manifests
from lading.registry.referrers import Referrers
from lading.registry.registry import Registry
from lading.registry.repositories import Repositories
from lading.registry.tags import Tags
from lading.registry.uploads import UploadLimits, Uploads
from lading.settings import Settings
from lading.storage import identity, probe
from lading.storage.disk import DiskStore
from lading.storage.identity import Marker
from lading.storage.space import FULL, Space
from lading.upkeep import jobs
from lading.upkeep.expiry import Expiry
from lading.upkeep.jobs import Job
from lading.web import health
from lading.web.metrics import FREE_BYTES, OPEN_UPLOADS, Looks, MetricsPage, beside
from lading.web.middleware import Front
from lading.web.v2.application import V2

DATABASE = "lading.db"
SNAPSHOTS = "snapshots"
_EXPIRY_SECONDS = 3600.0
_SWEEP_SECONDS = 3600.0
_BALLAST_SECONDS = 5.0


def prepare(settings: Settings) -> None:
    """Make the data directory ready for workers: folders, schema, store identity. In the parent, before any fork.

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
        upgrade(data / DATABASE, data / SNAPSHOTS)
        with create_engine(data / DATABASE).connect() as connection:
            check_identity(connection, data)
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


def check_identity(connection: sa.Connection, data: Path) -> None:
    """Hold the marker in the data directory against the database's row; write both in a new directory (E1).

    Raises:
        StoreMismatch: they do not belong together.

    """
    marker = identity.read(data)
    store = stores.find(connection)
    if marker is None and store is not None:
        if stores.has_objects(connection, store.id):
            raise StoreMismatch(
                f"the database {data / DATABASE} speaks of objects in store {store.store_uid}, "
                f"but {identity.marker_path(data)} is not there: the objects were moved away or emptied",
                "put the right data directory back; to begin anew, move the database away as well",
            )
        identity.write(data, Marker(store.store_uid, store.database_uid))
    elif marker is not None and store is None:
        raise StoreMismatch(
            f"{identity.marker_path(data)} belongs to database {marker.database_uid} (store {marker.store_uid}), "
            f"but {data / DATABASE} is new: the database was lost or moved away",
            f"restore {DATABASE} from {data / SNAPSHOTS} or a backup; to begin anew, name an empty directory",
        )
    elif marker is None:
        marker = Marker(str(uuid.uuid4()), str(uuid.uuid4()))
        stores.create(connection, "disk", marker.store_uid, marker.database_uid, at_us=now_us())
        identity.write(data, marker)
    elif store is not None and (marker.store_uid, marker.database_uid) != (store.store_uid, store.database_uid):
        raise StoreMismatch(
            f"the database {data / DATABASE} is {store.database_uid} with store {store.store_uid}, but the objects "
            f"in {data} are store {marker.store_uid} of database {marker.database_uid}",
            "put the database and the objects of one and the same registry together, or name another data directory",
        )


@contextlib.asynccontextmanager
async def open_application(settings: Settings, policy: Policy | None = None) -> AsyncIterator[ASGIApp]:
    """Build the application in a worker, after the fork, and close it in reverse at the end."""
    async with contextlib.AsyncExitStack() as stack:
        store = DiskStore(settings.data, _space(settings), max_staged_bytes=settings.uploads.max_bytes)
        stack.callback(store.close)
        database = Database(settings.data / DATABASE, store.space)
        stack.callback(database.close)
        access_log = AccessLog(settings.log.format)
        stack.callback(access_log.close)
        known = await database.read(stores.find)
        if known is None:
            raise StoreMismatch("the database lost its store row after the start", "start the server again")
        registry = _registry(settings, database, store, known.id)
        await stack.enter_async_context(
            jobs.running(_jobs(settings, database, store, registry, known.id), settings.data / "upkeep.lock")
        )
        if not metrics.here.claim():
            event_logger().warning("this worker's requests are not in the metrics: too many workers live at once")
        policy = policy or _policy(settings, stack)
        v2 = V2(registry, policy, max_page_entries=settings.lists.max_page_entries)

        async def ready() -> None:
            await asyncio.gather(database.read(stores.find), database.scan(stores.find), database.write(stores.find))

        looks = _looks(database, store)
        pages = health.create(ready=ready, metrics=MetricsPage(looks, policy).answer)
        application: ASGIApp = Front(v2, pages, access_log)
        if settings.metrics.port is not None:
            alone = Starlette(routes=[Route("/metrics", MetricsPage(looks, None).answer)])
            application = beside(application, Front(alone, alone, access_log), settings.metrics.port)
        yield application


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


def _registry(settings: Settings, database: Database, store: DiskStore, store_id: int) -> Registry:
    limits = UploadLimits(
        ttl_seconds=settings.uploads.ttl_seconds,
        max_blob_bytes=settings.blobs.max_bytes,
        inline_max_bytes=settings.blobs.inline_max_bytes,
        max_sessions=settings.uploads.max_sessions,
    )
    deletes_enabled = settings.deletes.enabled
    return Registry(
        blobs=Blobs(database, store, deletes_enabled=deletes_enabled),
        uploads=Uploads(database, store, store_id=store_id, limits=limits),
        manifests=Manifests(database, store, sparse=settings.manifests.sparse_indexes, deletes_enabled=deletes_enabled),
        tags=Tags(database, deletes_enabled=deletes_enabled),
        referrers=Referrers(database),
        repositories=Repositories(database),
    )


def _jobs(
    settings: Settings, database: Database, store: DiskStore, registry: Registry, store_id: int
) -> tuple[Job, ...]:
    expiry = Expiry(database, store, registry.uploads, store_id=store_id)
    return (
        Job(
            "end expired sessions",
            min(_EXPIRY_SECONDS, max(1.0, settings.uploads.ttl_seconds / 4)),
            expiry.end_expired_sessions,
        ),
        Job("sweep staging files", _SWEEP_SECONDS, expiry.sweep_staging_files),
        Job("hold the ballast", _BALLAST_SECONDS, store.hold_ballast),
    )
