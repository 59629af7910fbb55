"""Snapshots: whole copies of the database, taken while it is being written to. Each is complete, or not there.

DATA/snapshots/20261124T101722Z-0002.db                   taken at that time (UTC), with that schema
DATA/snapshots/20261124T101722Z-0002-before-upgrade.db    likewise, before that schema was left
DATA/snapshots/<name>.partial                             one in the making, or what a killed process has left of it
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pysqlite3 import dbapi2

from lading.oci.errors import DatabaseUnusable, LadingError, StorageFull

FOLDER = "snapshots"
"""The name of their folder in a data directory."""
PARTIAL = ".partial"
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(?P<time>\d{8}T\d{6}Z)-(?P<revision>[0-9A-Za-z]+)(?P<before>-before-upgrade)?\.db")
_FULL = "database or disk is full"
_STEP_PAGES = 1024
_CHECK_INSTRUCTIONS = 100_000
# Without a log or a lock beside it.
_AS_IT_LIES = "mode=ro&immutable=1"


class Kind(StrEnum):
    """Why a snapshot was taken."""

    REGULAR = "regular"
    BEFORE_UPGRADE = "before-upgrade"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete copy, as its name tells."""

    path: Path
    at: datetime
    revision: str
    kind: Kind
    content_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database file says of itself: its schema, the last change in its feed, and its store's row, if any."""

    revision: str
    seq: int
    epoch: int
    pair: tuple[str, str] | None


class Stopped(LadingError):  # noqa: N818 - asked for by the caller, never answered to a client
    """The copy was given up because `stopped` said so; nothing is left of it."""


def take(
    tx: sa.Connection,
    folder: Path,
    revision: str,
    kind: Kind,
    *,
    stopped: Callable[[], bool] = lambda: False,
    has_room: Callable[[int], bool] = lambda _: True,
) -> Path:
    """Copy the database of `tx` into `folder`; return the copy's path once it is checked and durable.

    All steps of the copy read in one transaction. Writers go on, and do not make the copy begin anew: without it, each
    commit of another connection would (sqlite.org/backup.html), and a busy registry would never see the end.

    Raises:
        StorageFull: no room for it, or `has_room` says so of its bytes; nothing is left behind.
        Stopped: by `stopped`, which is asked between steps.
        DatabaseUnusable: the copy has a fault, so the database has.

    """
    folder.mkdir(exist_ok=True)
    _sweep(folder)
    suffix = "-before-upgrade" if kind is Kind.BEFORE_UPGRADE else ""
    target = folder / f"{datetime.now(UTC):{_TIME}}-{revision}{suffix}.db"
    partial = target.with_name(target.name + PARTIAL)
    try:
        _copy(tx, partial, stopped, has_room)
        _check(partial, stopped)
        sync(partial)
        partial.replace(target)
    except dbapi2.DatabaseError as error:
        raise _translated(error, partial) from error
    finally:
        partial.unlink(missing_ok=True)
    sync(folder)
    return target


def _copy(tx: sa.Connection, partial: Path, stopped: Callable[[], bool], has_room: Callable[[int], bool]) -> None:
    source: Any = tx.connection.dbapi_connection
    source.execute("BEGIN")
    try:
        pages = source.execute("PRAGMA page_count").fetchone()[0]
        page_bytes = source.execute("PRAGMA page_size").fetchone()[0]
        if not has_room(pages * page_bytes):
            raise StorageFull
        with contextlib.closing(dbapi2.connect(partial, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode=OFF")  # nobody reads it before it is whole, and then it is synced
            copy.execute("PRAGMA synchronous=OFF")
            source.backup(copy, pages=_STEP_PAGES, progress=lambda *_: _give_up_if(stopped))
    finally:
        source.execute("ROLLBACK")


def _give_up_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped


def _check(partial: Path, stopped: Callable[[], bool]) -> None:
    with _opened(partial) as copy:
        copy.set_progress_handler(stopped, _CHECK_INSTRUCTIONS)
        found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise DatabaseUnusable(f"the database has a fault, so no snapshot was taken: {found}", "lading verify")


def _translated(error: Exception, partial: Path) -> Exception:
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_INTERRUPT":
        return Stopped()
    if str(error) == _FULL:  # what comes out of a backup has no name
        return StorageFull()
    return DatabaseUnusable(f"no snapshot could be taken: {error}", f"is {partial.parent} writable?")


def find(folder: Path) -> list[Snapshot]:
    """Return the complete snapshots of a folder, the newest first; anything else in it is left alone."""
    found = []
    for path in folder.glob("*.db"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        with contextlib.suppress(FileNotFoundError, ValueError):
            at = datetime.strptime(name["time"], _TIME).replace(tzinfo=UTC)
            kind = Kind.BEFORE_UPGRADE if name["before"] else Kind.REGULAR
            found.append(Snapshot(path, at, name["revision"], kind, path.stat().st_size))
    return sorted(found, key=lambda snapshot: snapshot.path.name, reverse=True)


def prune(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` of each kind: a week of days does not take away the way back from an upgrade."""
    for kind in Kind:
        for snapshot in [snapshot for snapshot in find(folder) if snapshot.kind is kind][keep:]:
            snapshot.path.unlink(missing_ok=True)


def contents(path: Path, *, with_log: bool = False) -> Contents:
    """Look into a database file: a snapshot, as it lies there, or a database with its log.

    Raises:
        DatabaseUnusable: it is none of ours, or is damaged.

    """
    try:
        with _opened(path, "mode=rw" if with_log else _AS_IT_LIES) as database:
            revision = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
            seq = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'feed'").fetchone()
            names = {row[1] for row in database.execute("PRAGMA table_info(stores)")}
            epoch = "epoch" if "epoch" in names else "1"
            store = database.execute(f"SELECT store_uid, database_uid, {epoch} FROM stores ORDER BY id").fetchone()  # noqa: S608 - two constants
    except (dbapi2.Error, TypeError) as error:
        raise DatabaseUnusable(f"{path} is no database of a registry: {error}", "choose another") from error
    pair = None if store is None else (str(store[0]), str(store[1]))
    return Contents(str(revision), seq[0] if seq else 0, store[2] if store else 1, pair)


@contextlib.contextmanager
def _opened(path: Path, mode: str = _AS_IT_LIES) -> Iterator[Any]:
    uri = f"{path.absolute().as_uri()}?{mode}"
    with contextlib.closing(dbapi2.connect(uri, uri=True, isolation_level=None)) as connection:
        yield connection


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"*{PARTIAL}*"):
        path.unlink(missing_ok=True)
