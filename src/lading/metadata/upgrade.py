"""Bringing the database to the present schema: once, in the parent, before any worker opens it."""

import os
import time
from pathlib import Path

import sqlalchemy as sa
import structlog
from pysqlite3 import dbapi2

from lading.metadata.database import FULL_ERROR, create_engine, refuse_unsafe_library
from lading.metadata.schema import REVISION
from lading.oci.errors import DatabaseUnusable, DiskFull, SchemaTooNew

log = structlog.get_logger(__name__)
_MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(path: Path, snapshots: Path) -> None:
    """Make the database, or migrate it after copying it into `snapshots`; do nothing when it is up to date.

    Raises:
        SchemaTooNew: a newer Lading wrote it.
        DatabaseUnusable: it is no SQLite database, is damaged, or the library is unsafe.
        DiskFull: no room.

    """
    refuse_unsafe_library()
    try:
        found = _revision(path)
        if found == REVISION:
            return
        if found is not None:
            _refuse_newer(path, found)
            _snapshot(path, snapshots, found)
        _migrate(path)
    except (dbapi2.Error, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if getattr(cause, "sqlite_errorname", "") == FULL_ERROR:
            raise DiskFull(
                f"no room for the database {path}", "free some space on that disk and start again"
            ) from error
        raise DatabaseUnusable(
            f"the database {path} cannot be opened: {cause}",
            f"restore it from {snapshots} or a backup, or name another data directory with --data",
        ) from error


def _revision(path: Path) -> str | None:
    """Return the schema's revision; None for a new database."""
    if not path.exists() or not path.stat().st_size:
        return None
    connection = dbapi2.connect(path)
    try:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if names and "alembic_version" not in names:
            raise DatabaseUnusable(
                f"the database {path} is some other program's", "move it away, or name another data directory"
            )
        row = names and connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    finally:
        connection.close()


def _refuse_newer(path: Path, found: str) -> None:
    if found > REVISION:
        raise SchemaTooNew(
            f"the database {path} has schema {found}, this Lading knows schemas up to {REVISION}",
            "start the newer Lading again, or restore the snapshot that it made before its upgrade",
        )


def _snapshot(path: Path, snapshots: Path, found: str) -> None:
    """Copy the database by the backup API, whole and synced, before anything changes it."""
    snapshots.mkdir(exist_ok=True)
    target = snapshots / f"before-upgrade-from-{found}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.db"
    source, copy = dbapi2.connect(path), dbapi2.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    for name in (target, snapshots):
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    log.info("database copied before its upgrade", copy=str(target))


def _migrate(path: Path) -> None:
    from alembic import command  # noqa: PLC0415 - 39 MiB and a third of a second, needed once per release
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with create_engine(path).connect() as connection:
        config.attributes["connection"] = connection
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            command.upgrade(config, REVISION)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            if connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
