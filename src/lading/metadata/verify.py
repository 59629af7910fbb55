"""Looking at the database from outside: read-only, beside a server or without one, in short looks of one moment each.

Nothing is pinned while files are read: a look lasts as long as one statement, or one page.
"""

import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from pysqlite3 import dbapi2

from lading.metadata.database import refuse_unsafe_library
from lading.metadata.schema import (
    REVISION,
    blob_extents,
    blob_payloads,
    blobs,
    doomed_objects,
    manifests,
    repo_blobs,
    repositories,
    stores,
    tags,
    uploads,
)
from lading.oci.digest import Algorithm, Digest
from lading.oci.errors import LadingError, VerifyRefused

P = ParamSpec("P")
T = TypeVar("T")

ENTRIES = 256
"""How many rows a page has."""
MAX_FAULTS = 1000
"""How many faults of one kind a check tells of."""
_BUSY_SECONDS = 30.0
_CACHE_KIB = 32 * 1024
_STEPS_BETWEEN_INTERRUPTS = 100_000
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")
_HOLDERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """What a check has found: a code word, a clause that says what is wrong, and where."""

    code: str
    what: str
    repositories: tuple[str, ...] = ()
    tag: str | None = None
    digest: str | None = None
    path: str | None = None


class DatabaseDamaged(LadingError):  # noqa: N818 - a finding, not a refusal
    """SQLite cannot read the database, or part of it."""


class ReadOnlyDatabase:
    """A database that is only read. No file is made or changed: a stopped server's database has no log beside it."""

    def __init__(self, path: Path) -> None:
        refuse_unsafe_library()
        self._path = path
        self._shared = _engine(path, "mode=ro")
        # Without a log nobody has the database open, and SQLite would make a log to read it, unless told not to.
        self._immutable = _engine(path, "mode=ro&immutable=1")

    def read(self, function: Callable[Concatenate[sa.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` on one moment of the database; again, if a server came up and wrote meanwhile.

        Raises:
            DatabaseDamaged: SQLite cannot make sense of it.
            VerifyRefused: it cannot be opened.

        """
        while True:
            before = _state(self._path)
            try:
                return_value = self._once(function, immutable=not before.has_log, args=args, kwargs=kwargs)
            except (DatabaseDamaged, VerifyRefused):
                if before.has_log or _state(self._path) == before:
                    raise
                continue
            if before.has_log or _state(self._path) == before:
                return return_value

    def _once(self, function: Callable[..., T], *, immutable: bool, args: Any, kwargs: Any) -> T:
        try:
            with (self._immutable if immutable else self._shared).connect() as connection:
                connection.exec_driver_sql("BEGIN")
                return function(connection, *args, **kwargs)
        except (dbapi2.Error, sa.exc.DBAPIError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> BaseException:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        name = getattr(cause, "sqlite_errorname", "") or ""
        if name == "SQLITE_INTERRUPT":
            return KeyboardInterrupt()
        if name.startswith(_DAMAGE):
            return DatabaseDamaged(str(cause))
        return VerifyRefused(
            f"the database {self._path} cannot be read: {cause}", "read it as the user whom the server runs as"
        )


@dataclass(frozen=True, slots=True)
class _State:
    """What tells whether anybody has written the database file."""

    has_log: bool
    inode: int = 0
    size_bytes: int = 0
    modified_ns: int = 0


def _state(path: Path) -> _State:
    has_log = path.with_name(path.name + "-wal").exists()
    try:
        status = path.stat()
    except OSError:
        return _State(has_log)
    return _State(has_log, status.st_ino, status.st_size, status.st_mtime_ns)


def _engine(path: Path, mode: str) -> sa.Engine:
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"
    return sa.create_engine(
        "sqlite+pysqlite://",
        creator=lambda: _connect(uri),
        module=dbapi2,
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )


def _connect(uri: str) -> Any:
    connection = dbapi2.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}").close()
    # A long statement goes through Python now and then: Ctrl-C raises there, and SQLite stops.
    connection.set_progress_handler(lambda: 0, _STEPS_BETWEEN_INTERRUPTS)
    return connection


def digest_text(alg: object, raw: object) -> str:
    """Return the digest that two columns hold, whatever they hold."""
    return str(digest_or_none(alg, raw) or f"no digest ({alg}, {raw.hex() if isinstance(raw, bytes) else raw})")


def digest_or_none(alg: object, raw: object) -> Digest | None:
    """Return the digest that two columns hold, or None when no digest looks so."""
    for algorithm in Algorithm:
        if algorithm == alg and isinstance(raw, bytes) and len(raw) == algorithm.digest_bytes:
            return Digest(algorithm, raw)
    return None


def revision(tx: sa.Connection) -> str | None:
    """Return the revision of the schema; None where there is no database of ours."""
    names = sa.inspect(tx).get_table_names()
    if "alembic_version" not in names:
        return None
    return str(tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())


def refuse_other_schema(found: str | None, path: Path) -> None:
    """Refuse a database that this version's checks do not fit.

    Raises:
        VerifyRefused: it is no database of ours, older or newer.

    """
    if found is None:
        raise VerifyRefused(f"{path} is no database of Lading", "name the registry's data directory with --data")
    if found != REVISION:
        raise VerifyRefused(
            f"the database {path} has schema {found}, this Lading reads schema {REVISION}",
            "use the version of Lading that last served this directory, or start this one once",
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is."""

    repositories: int = 0
    tags: int = 0
    manifests: int = 0
    blobs: int = 0
    objects: int = 0
    object_bytes: int = 0


def counts(tx: sa.Connection) -> Counts:
    """Count what there is to verify."""

    def count(table: sa.Table) -> int:
        return int(tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())

    return Counts(
        repositories=count(repositories),
        tags=count(tags),
        manifests=count(manifests),
        blobs=count(blobs),
        objects=count(blob_extents),
        object_bytes=tx.execute(sa.select(sa.func.coalesce(sa.func.sum(blob_extents.c.size), 0))).scalar_one(),
    )


def integrity_faults(tx: sa.Connection, *, quick: bool) -> list[Fault]:
    """Return what SQLite says of its own pages and indexes; `quick` leaves out that each index has all rows."""
    found = tx.exec_driver_sql("PRAGMA quick_check" if quick else "PRAGMA integrity_check")
    return [Fault("database-damaged", str(line)) for (line,) in found if line != "ok"]


# What is outside the tables


@dataclass(frozen=True, slots=True)
class Extent:
    """A blob's bytes in an object, as the rows have it."""

    blob_id: int
    store_id: int
    seq: int
    alg: int
    raw: bytes
    blob_bytes: int
    extent_bytes: int
    object_key: str

    @property
    def cursor(self) -> tuple[int, int, int]:
        """Where the next page begins."""
        return (self.blob_id, self.store_id, self.seq)


_EXTENTS = (
    sa.select(
        blob_extents.c.blob_id,
        blob_extents.c.store_id,
        blob_extents.c.seq,
        blobs.c.alg,
        blobs.c.digest,
        blobs.c.size,
        blob_extents.c.size,
        blob_extents.c.object_key,
    )
    .select_from(blob_extents.join(blobs, blobs.c.id == blob_extents.c.blob_id))
    .order_by(blob_extents.c.blob_id, blob_extents.c.store_id, blob_extents.c.seq)
)
_extent_key = sa.tuple_(blob_extents.c.blob_id, blob_extents.c.store_id, blob_extents.c.seq)


def extents(tx: sa.Connection, after: tuple[int, int, int]) -> list[Extent]:
    """Return a page of extents, in the order of their keys."""
    return [Extent(*row) for row in tx.execute(_EXTENTS.where(_extent_key > after).limit(ENTRIES))]


def holders(tx: sa.Connection, extent: Extent) -> tuple[str, ...] | None:
    """Return some repositories that show the blob; None when the extent is no longer what it was."""
    if Extent(*(tx.execute(_EXTENTS.where(_extent_key == extent.cursor)).first() or (0,) * 8)) != extent:
        return None
    return holders_of(tx, extent.blob_id)


def holders_of(tx: sa.Connection, blob_id: int) -> tuple[str, ...]:
    """Return some repositories that show the blob."""
    found = tx.execute(
        sa.select(repositories.c.name)
        .join(repo_blobs, repo_blobs.c.repo_id == repositories.c.id)
        .where(repo_blobs.c.blob_id == blob_id, repo_blobs.c.hidden_us.is_(None))
        .order_by(repositories.c.name)
        .limit(_HOLDERS_NAMED)
    )
    return tuple(found.scalars())


def unaccounted(tx: sa.Connection, object_keys: Sequence[str]) -> set[str]:
    """Return those of the objects that neither a blob has nor the list of the doomed."""
    left: set[str] = set()
    for page in _pages(object_keys):
        named = sa.select(blob_extents.c.object_key).where(
            blob_extents.c.store_id.in_(sa.select(stores.c.id)), blob_extents.c.object_key.in_(page)
        )
        left |= {*page} - {*tx.execute(named).scalars()}
    for page in _pages(list(left)):  # the doomed list has no index on keys, and few keys come so far
        doomed = sa.select(doomed_objects.c.object_key).where(doomed_objects.c.object_key.in_(page))
        left -= {*tx.execute(doomed).scalars()}
    return left


def without_session(tx: sa.Connection, upload_ids: Sequence[str]) -> list[str]:
    """Return those ids that no session has."""
    known: set[str] = set()
    for page in _pages(upload_ids):
        known.update(tx.execute(sa.select(uploads.c.id).where(uploads.c.id.in_(page))).scalars())
    return [upload_id for upload_id in upload_ids if upload_id not in known]


def _pages(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + ENTRIES] for start in range(0, len(items), ENTRIES))


@dataclass(frozen=True, slots=True)
class Session:
    """An upload session, and the digest of its first `digest_offset` bytes, if this boot has remembered one."""

    id: str
    repository: str
    expires_us: int
    digest_offset: int
    digest: Digest | None


def sessions(tx: sa.Connection, after: str, *, boot_id: str) -> list[Session]:
    """Return a page of upload sessions, in the order of their ids."""
    found = tx.execute(_SESSIONS.where(uploads.c.id > after).order_by(uploads.c.id).limit(ENTRIES))
    return [_session(row, boot_id) for row in found]


def session(tx: sa.Connection, upload_id: str, *, boot_id: str) -> Session | None:
    """Return one session, as `sessions` does."""
    row = tx.execute(_SESSIONS.where(uploads.c.id == upload_id)).first()
    return None if row is None else _session(row, boot_id)


_SESSIONS = sa.select(uploads)


def _session(row: sa.Row[Any], boot_id: str) -> Session:
    digest = digest_or_none(row.alg, row.digest) if row.boot_id == boot_id else None
    return Session(row.id, row.repository, row.expires_us, row.digest_offset or 0 if digest else 0, digest)


def payload_faults(tx: sa.Connection, after: int, *, quick: bool) -> tuple[list[Fault], int | None, int]:
    """Hold a page of the blobs in the database against their rows; return the faults, the next page, the bytes read.

    `quick` compares lengths only.
    """
    size = sa.func.length(blob_payloads.c.data)
    rows = tx.execute(
        sa.select(
            blobs.c.id, blobs.c.alg, blobs.c.digest, blobs.c.size, size, sa.null() if quick else blob_payloads.c.data
        )
        .select_from(blob_payloads.join(blobs, blobs.c.id == blob_payloads.c.blob_id))
        .where(blob_payloads.c.blob_id > after)
        .order_by(blob_payloads.c.blob_id)
        .limit(ENTRIES)
        .execution_options(yield_per=1)
    )
    faults: list[Fault] = []
    last, read_bytes, seen = after, 0, 0
    for blob_id, alg, raw, blob_bytes, payload_bytes, data in rows:
        last, read_bytes, seen = blob_id, read_bytes + payload_bytes, seen + 1
        digest = digest_or_none(alg, raw)
        if data is not None and (digest is None or Digest.of(data, digest.algorithm) != digest):
            code, what = "payload-wrong", "its bytes in the database are something else"
        elif payload_bytes != blob_bytes:
            code, what = "size-wrong", f"its row says {blob_bytes} bytes, the database has {payload_bytes}"
        else:
            continue
        faults.append(Fault(code, what, holders_of(tx, blob_id), digest=digest_text(alg, raw)))
    return faults, (last if seen == ENTRIES else None), read_bytes
