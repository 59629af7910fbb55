"""Bringing the database to the present schema: once, in the parent, before any worker opens it."""

from pathlib import Path

import sqlalchemy as sa
import structlog
from pysqlite3 import dbapi2

from lading.metadata.database import FULL_ERROR, create_engine, refuse_unsafe_library
from lading.metadata.schema import REVISION
from lading.metadata.snapshots import Kind, take
from lading.oci.errors import DatabaseUnusable, DataDirectoryInUse, DiskFull, SchemaTooNew, StorageFull

log = structlog.get_logger(__name__)
_MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(path: Path, snapshots: Path, *, alone: bool = True) -> None:
    """Make the database, or migrate it after copying it into `snapshots`; do nothing when it is up to date.

    If not `alone`, another server has it open, and knows the schema that it has.

    Raises:
        SchemaTooNew: a newer Lading wrote it.
        DatabaseUnusable: it is no SQLite database, is damaged, or the library is unsafe.
        DiskFull: no room.
        DataDirectoryInUse: it would be migrated under the feet of another server.

    """
    refuse_unsafe_library()
    try:
        found = _revision(path)
        if found == REVISION:
            return
        if found is not None:
            refuse_newer(path, found)
        if not alone:
            raise DataDirectoryInUse(
                f"this version of Lading needs a newer schema of {path}, which the server beside it does not know",
                "stop the other one first, then start this one: clients wait meanwhile",
            )
        if found is not None:
            _copy(path, snapshots, found)
        migrate(path)
    except (dbapi2.Error, sa.exc.DBAPIError) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        if getattr(cause, "sqlite_errorname", "") == FULL_ERROR:
            raise DiskFull(
                f"no room for the database {path}", "free some space on that disk and start again"
            ) from error
        raise DatabaseUnusable(
            f"the database {path} cannot be opened: {cause}",
            f"restore a copy from {snapshots}: lading restore-snapshot; or name another data directory with --data",
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


def refuse_newer(path: Path, found: str) -> None:
    """Refuse a database that a newer Lading wrote.

    Raises:
        SchemaTooNew: with what to do.

    """
    if found > REVISION:
        raise SchemaTooNew(
            f"the database {path} has schema {found}, this Lading knows schemas up to {REVISION}",
            "start the newer Lading again, or bring back the copy from before its upgrade: lading restore-snapshot",
        )


def _copy(path: Path, snapshots: Path, found: str) -> None:
    """Take a snapshot before anything changes the database."""
    with create_engine(path).connect() as connection:
        try:
            copy = take(connection, snapshots, found, Kind.BEFORE_UPGRADE)
        except StorageFull as error:
            raise DiskFull(
                f"no room in {snapshots} for a copy of the database before its upgrade",
                "free some space on that disk, or remove old snapshots, and start again",
            ) from error
    log.info("database copied before its upgrade", copy=str(copy))


def migrate(path: Path) -> None:
    """Bring the database to the present schema; all of it or nothing."""
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
