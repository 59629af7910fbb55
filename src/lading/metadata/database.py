"""The SQLite database: reads on the event loop, one writer thread with group commit, and the hot statements' short cut.

Nothing else in Lading opens the database, enters a thread for it, or sees a driver's error.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

import sqlalchemy as sa
import structlog
from pysqlite3 import dbapi2
from sqlalchemy.dialects import sqlite

from lading import metrics
from lading.metrics import here
from lading.oci.errors import Busy, DatabaseUnusable, Internal, LadingError, StorageFull

FILE = "lading.db"
"""The name of the database in a data directory."""
FULL_ERROR = "SQLITE_FULL"
"""What SQLite says when a write finds no room."""

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]

OLDEST_SAFE_SQLITE = (3, 51, 3)
_READER_CACHE_KIB = 64 * 1024
_WRITER_CACHE_KIB = 8 * 1024
_BUSY_MILLISECONDS = 5000
_MAX_GROUP = 256
_LOG_FRAMES_BEFORE_CHECKPOINT = 2000
"""8 MiB: a full disk then has little to move, and the log's shared index stays within its first 32 KiB."""
_LOG_FRAMES_WHEN_SCARCE = 64
"""A log that took the last room could not be moved: the database file has to grow for it."""
_IDLE_SECONDS_BEFORE_CHECKPOINT = 1.0
_LOG_BYTES_KEPT = 16 * 1024 * 1024
_WRITE_SECONDS = 30.0
# A snapshot may keep one of them busy for minutes.
_SCAN_THREADS = 3

log = structlog.get_logger(__name__)


def refuse_unsafe_library() -> None:
    """Refuse a SQLite that can lose committed writes (the WAL-reset bug, 3.7.0 to 3.51.2).

    Raises:
        DatabaseUnusable: the library found is older.

    """
    if dbapi2.sqlite_version_info < OLDEST_SAFE_SQLITE:
        raise DatabaseUnusable(
            f"the SQLite library is {dbapi2.sqlite_version}; versions before 3.51.3 can lose committed writes",
            "install the pinned requirements again: make setup",
        )


def create_engine(
    path: Path,
    *,
    cache_kib: int = _WRITER_CACHE_KIB,
    busy_milliseconds: int = _BUSY_MILLISECONDS,
    pool: type[sa.Pool] = sa.NullPool,
) -> sa.Engine:
    """Return an engine whose connections are in autocommit, with foreign keys on (I3) and every commit synced."""
    engine = sa.create_engine(
        sa.URL.create("sqlite+pysqlite", database=str(path)),
        module=dbapi2,
        isolation_level="AUTOCOMMIT",
        poolclass=pool,
        connect_args={"check_same_thread": False, "timeout": _BUSY_MILLISECONDS / 1000, "cached_statements": 512},
    )

    def prepare(connection: Any, _record: object) -> None:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "wal_autocheckpoint=0",
            f"journal_size_limit={_LOG_BYTES_KEPT}",
            f"cache_size=-{cache_kib}",
            "temp_store=MEMORY",
            # Last: the first connection after a crash waits while another process recovers the log.
            f"busy_timeout={busy_milliseconds}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()
        if connection.execute("PRAGMA foreign_keys").fetchone() != (1,):
            raise DatabaseUnusable("this SQLite library cannot enforce foreign keys")

    sa.event.listen(engine, "connect", prepare)
    return engine


class Prepared:
    """A hot statement: written in Core, compiled once, run on the driver's cursor (a third of Core's time).

    Only plain integers, text and bytes may go in and out, since no processors run; the constructor checks it.
    """

    def __init__(self, statement: sa.Select[Any] | sa.Insert | sa.Update | sa.Delete) -> None:
        compiled = statement.compile(dialect=sqlite.dialect())
        if compiled._bind_processors or any(  # noqa: SLF001 - a test holds this to Core's own results
            entry.type.dialect_impl(compiled.dialect).result_processor(compiled.dialect, None)
            for entry in compiled._result_columns  # noqa: SLF001
        ):
            raise TypeError(f"this statement needs processors, so it cannot be prepared: {compiled}")
        self.statement = statement
        self.text = str(compiled)
        self._names: Sequence[str] = compiled.positiontup or ()
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}

    def one(self, tx: sa.Connection, **values: object) -> Row | None:
        """Return the first row, or None."""
        row: Row | None = self._execute(tx, values).fetchone()
        return row

    def all(self, tx: sa.Connection, **values: object) -> list[Row]:
        """Return all rows."""
        rows: list[Row] = self._execute(tx, values).fetchall()
        return rows

    def run(self, tx: sa.Connection, **values: object) -> int:
        """Change rows; return how many."""
        count: int = self._execute(tx, values).rowcount
        return count

    def insert(self, tx: sa.Connection, **values: object) -> int:
        """Insert one row; return its id."""
        new_id: int = self._execute(tx, values).lastrowid
        return new_id

    def _execute(self, tx: sa.Connection, values: dict[str, object]) -> Any:
        constants = self._constants
        parameters = [values[name] if name in values else constants[name] for name in self._names]
        return tx.connection.dbapi_connection.execute(self.text, parameters)  # type: ignore[union-attr]


@dataclass(slots=True)
class _Job:
    """One function waiting for its group, and then its outcome."""

    function: Callable[[sa.Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    frees_space: bool
    result: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        if self.future.done():  # the client left; what it asked for stands
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Room(Protocol):
    """What the writer asks of the disk that the database is on."""

    def is_scarce(self) -> bool:
        """Tell whether what is left is for deletes."""
        ...

    def is_exhausted(self) -> bool:
        """Tell whether the kernel refuses even a little."""
        ...

    def give_up_ballast(self) -> bool:
        """Free what is kept for a full disk; False when there is nothing."""
        ...


class Database:
    """One worker's door to the database. Open it after the fork, on the event loop that will use it."""

    def __init__(self, path: Path, room: Room | None = None) -> None:
        self._reader = create_engine(path, cache_kib=_READER_CACHE_KIB, busy_milliseconds=0).connect()
        self._patient = create_engine(path, pool=sa.QueuePool)
        self._threads = ThreadPoolExecutor(_SCAN_THREADS, "lading-scan")
        self._writer = _Writer(path, room)
        self._writer.start()

    async def read(
        self, function: Callable[Concatenate[sa.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that touches at most one page by one index, here and now.

        In the rare moment when another process holds the database (recovery), it waits its turn in a thread.
        """
        try:
            return function(self._reader, *args, **kwargs)
        except (dbapi2.Error, sa.exc.DBAPIError) as error:
            if not isinstance(translate(error), Busy):
                raise translate(error) from error
        return await self.scan(function, *args, **kwargs)

    async def scan(
        self, function: Callable[Concatenate[sa.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a longer reading function in a thread, on a connection of its own."""

        def call() -> T:
            try:
                with self._patient.connect() as connection:
                    return function(connection, *args, **kwargs)
            except (dbapi2.Error, sa.exc.DBAPIError) as error:
                raise translate(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def write(
        self, function: Callable[Concatenate[sa.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in the next group's transaction; return when that is on disk.

        `function` touches nothing but its connection and may be run again. What it raises undoes it alone.

        Raises:
            Busy: not committed within 30 s; it may still be, so what asks must bear repetition.
            StorageFull: no room; nothing was written.

        """
        return await self._write(lambda tx: function(tx, *args, **kwargs), frees_space=False)

    async def release(
        self, function: Callable[Concatenate[sa.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do what `write` does, for a function that ends or deletes something: on a full disk it gets the ballast."""
        return await self._write(lambda tx: function(tx, *args, **kwargs), frees_space=True)

    async def _write(self, function: Callable[[sa.Connection], T], *, frees_space: bool) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.jobs.put(_Job(function, loop, future, frees_space))
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                return await future
        except TimeoutError as error:
            raise Busy("the database did not commit in time; try again") from error

    def close(self) -> None:
        """Finish what is queued, move the log into the database file, and close."""
        self._writer.jobs.put(None)
        self._writer.join()
        self._threads.shutdown()
        self._patient.dispose()
        self._reader.close()


@dataclass
class _Writer(threading.Thread):
    """The one thread of this process that writes: its queue goes into one transaction, then all are answered."""

    path: Path
    room: Room | None
    jobs: "queue.SimpleQueue[_Job | None]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        super().__init__(name="lading-writer", daemon=True)
        self._engine = create_engine(self.path)
        self._connection: sa.Connection | None = self._engine.connect()
        self._lock = WriteLock(self.path)

    def run(self) -> None:
        """Serve the queue until it holds None. No fault of one group ends the thread: it fails that group."""
        with contextlib.closing(self._lock):
            in_log = False
            while True:
                group = self._next_group(wait=_IDLE_SECONDS_BEFORE_CHECKPOINT if in_log else None)
                if group:
                    in_log = True
                    self._commit(group)
                if not group or self._is_log_long():
                    self._checkpoint()
                    in_log = False
                if group is None:
                    self._drop_connection()
                    return

    def _commit(self, group: list[_Job]) -> None:
        try:
            with self._lock, here.timed(metrics.COMMIT):
                commit_group(self._connected(), group)
                if short := self._short_of_room(group):
                    self._commit_with_room(short)
        except Exception:
            log.exception("a group could not be committed")
            for job in group:
                job.result, job.error = None, Internal()
        if any(isinstance(job.error, Internal) for job in group):
            self._drop_connection()  # after an I/O error, what it has in memory is not built upon
        here.observe(metrics.GROUP, len(group))
        here.set(metrics.WAITING, self.jobs.qsize())
        _answer(group)

    def _commit_with_room(self, group: list[_Job]) -> None:
        """Try again with the log's room; then once more, for what frees space alone, with the ballast's."""
        _checkpoint(self._connected())
        commit_group(self._connected(), group)
        short = [job for job in self._short_of_room(group) if job.frees_space]
        if short and self.room and self.room.give_up_ballast():
            _checkpoint(self._connected())
            commit_group(self._connected(), short)
            self._short_of_room(short)

    def _short_of_room(self, group: Sequence[_Job]) -> list[_Job]:
        """Return the jobs that found no room. SQLite calls a quota that ran out an I/O error: the disk is asked."""
        failed = [job for job in group if isinstance(job.error, Internal)]
        if failed and self.room and self.room.is_exhausted():
            self._drop_connection()
            for job in failed:
                job.error = StorageFull()
        return [job for job in group if isinstance(job.error, StorageFull)]

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sa.exc.DBAPIError):
                self._connection.close()
            self._connection = None

    def _is_log_long(self) -> bool:
        try:
            _, frames, _ = self._connected().exec_driver_sql("PRAGMA wal_checkpoint(NOOP)").one()
        except (sa.exc.DBAPIError, LadingError):
            return True
        if frames < _LOG_FRAMES_WHEN_SCARCE:
            return False
        return bool(frames >= _LOG_FRAMES_BEFORE_CHECKPOINT or (self.room and self.room.is_scarce()))

    def _checkpoint(self) -> None:
        try:
            with self._lock:
                _checkpoint(self._connected())
        except (OSError, sa.exc.DBAPIError, LadingError) as error:
            log.warning("checkpoint failed; it will be tried again", error=str(error))

    def _next_group(self, wait: float | None) -> list[_Job] | None:
        """Return the jobs to do together; empty after `wait` idle seconds, None when asked to stop."""
        try:
            first = self.jobs.get(timeout=wait)
        except queue.Empty:
            return []
        if first is None:
            return None
        group = [first]
        while len(group) < _MAX_GROUP:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self.jobs.put(None)
                break
            group.append(job)
        return group

    __hash__ = threading.Thread.__hash__


class WriteLock:
    """The lock between processes: held around every write transaction and checkpoint; a crash gives it up.

    SQLite's own waiting sleeps and starves; `flock` queues. The descriptor must be opened after the fork.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".write-lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def commit_group(connection: sa.Connection, group: Sequence[_Job]) -> None:
    """Run the jobs in one transaction, each in a savepoint; at the end every job has a result or an error.

    Where a commit's sync fails, SQLite takes the transaction's frames back,
    and the next one writes all of its own in their place: no later sync can pass for the failed one.
    """
    raw: Any = connection.connection.dbapi_connection
    try:
        raw.execute("BEGIN IMMEDIATE")
        for job in group:
            raw.execute("SAVEPOINT job")
            try:
                job.result, job.error = job.function(connection), None
            except Exception as error:
                if not raw.in_transaction:  # a full disk makes SQLite undo all of it
                    raise
                job.result, job.error = None, translate(error)
                raw.execute("ROLLBACK TO job")
            raw.execute("RELEASE job")
        raw.execute("COMMIT")
    except Exception as error:  # noqa: BLE001 - likewise, for the whole group
        failure = translate(error)
        for job in group:
            job.result, job.error = None, failure
        if raw.in_transaction:
            raw.execute("ROLLBACK")


def _answer(group: Sequence[_Job]) -> None:
    def answer_all() -> None:
        for job in group:
            job.answer()

    try:
        group[0].loop.call_soon_threadsafe(answer_all)
    except RuntimeError:  # the loop is closed: nobody waits any more
        log.debug("answers dropped at stop", jobs=len(group))


def _checkpoint(connection: sa.Connection) -> None:
    """Move the log into the database file, under the write lock. What cannot be moved now stays in the log, safe."""
    try:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
    except sa.exc.DBAPIError as error:
        log.warning("checkpoint failed; it will be tried again", error=str(error))


def translate(error: BaseException) -> BaseException:
    """Return the error to raise in place of a database's; any other comes back as it is."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    if isinstance(error, LadingError) or not isinstance(cause, dbapi2.Error):
        return error
    name = getattr(cause, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        here.add(metrics.DATABASE_ERRORS, "busy")
        translated: LadingError = Busy()
    elif name == FULL_ERROR:
        here.add(metrics.DATABASE_ERRORS, "full")
        translated = StorageFull()
    else:
        here.add(metrics.DATABASE_ERRORS, metrics.OTHER)
        log.error("database error", error=str(cause), name=name)
        translated = Internal()
    translated.__cause__ = cause
    return translated
