"""What this server counts: 8-byte cells in memory that all its processes share, a row of them for each process.

A process writes its own row and no other, so nothing is locked between processes. The row of one that ended keeps its
counts, and its successor goes on with them: no total ever goes down while the server runs.
"""

import contextlib
import fcntl
import itertools
import mmap
import os
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

CELL_BYTES = 8
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid
MIN_ROWS = 32
OTHER = "other"
ROUTES = ("ping", "blob", "uploads", "upload", "manifest", "tags", "referrers", "tag-history", "catalog", OTHER)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OTHER)
STATUSES = (
    *(200, 201, 202, 204, 206, 304),
    *(400, 401, 403, 404, 405, 408, 413, 414, 416, 429, 431, 499),
    *(500, 503, 507),
)
_SECOND = 1_000_000
_MICROSECONDS = tuple(
    round(seconds * _SECOND)
    for seconds in (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
)


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts of one kind; `series` are the values of `labels`, each with a cell from `first` on."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    series: tuple[tuple[str, ...], ...]
    first: int

    @property
    def width(self) -> int:
        """The number of cells."""
        return len(self.series)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values were up to each of `bounds`; a series has a cell for each, one for more, and one for the sum.

    Cells hold whole numbers; `per_unit` of them are one of the unit that the name tells.
    """

    name: str
    meaning: str
    labels: tuple[str, ...]
    series: tuple[tuple[str, ...], ...]
    bounds: tuple[int, ...]
    per_unit: int
    first: int

    @property
    def cells_each(self) -> int:
        """The number of cells of one series."""
        return len(self.bounds) + 2

    @property
    def width(self) -> int:
        """The number of cells."""
        return len(self.series) * self.cells_each


@dataclass(frozen=True, slots=True)
class Gauge:
    """What is so at the moment; a process that begins has none of it."""

    name: str
    meaning: str
    first: int
    width: int = 1


Family = Counters | Histogram | Gauge

_NO_LABEL: tuple[tuple[str, ...], ...] = ((),)
_BY_ROUTE = tuple((route,) for route in ROUTES)

STARTS = Counters("lading_worker_starts_total", "Worker processes that began.", (), _NO_LABEL, 0)
WORKERS = Gauge("lading_workers", "Worker processes that live.", STARTS.first + STARTS.width)
REQUESTS = Counters(
    "lading_http_requests_total",
    "Requests that were answered, or whose client left (499).",
    ("route", "method", "status"),
    tuple(
        (route, method, status)
        for route, method, status in itertools.product(ROUTES, METHODS, (*map(str, STATUSES), OTHER))
    ),
    WORKERS.first + WORKERS.width,
)
RECEIVED = Counters(
    "lading_http_received_bytes_total",
    "Bytes of request bodies.",
    ("route",),
    _BY_ROUTE,
    REQUESTS.first + REQUESTS.width,
)
SENT = Counters(
    "lading_http_sent_bytes_total", "Bytes of reply bodies.", ("route",), _BY_ROUTE, RECEIVED.first + RECEIVED.width
)
DURATION = Histogram(
    "lading_http_request_duration_seconds",
    "From the head of a request to the end of its reply.",
    ("route",),
    _BY_ROUTE,
    _MICROSECONDS,
    _SECOND,
    SENT.first + SENT.width,
)
CONNECTIONS = Gauge("lading_http_connections", "Open connections.", DURATION.first + DURATION.width)
SYNC = Histogram(
    "lading_store_sync_seconds",
    "Time of one fsync of a file or a directory of the store.",
    (),
    _NO_LABEL,
    _MICROSECONDS,
    _SECOND,
    CONNECTIONS.first + CONNECTIONS.width,
)
STORE_ERRORS = Counters(
    "lading_store_errors_total",
    "Errors of the disk: no room, a failed fsync, anything else.",
    ("kind",),
    (("full",), ("sync",), (OTHER,)),
    SYNC.first + SYNC.width,
)
COMMIT = Histogram(
    "lading_database_commit_seconds",
    "Time of the transaction of one group of writes, with its fsync.",
    (),
    _NO_LABEL,
    _MICROSECONDS,
    _SECOND,
    STORE_ERRORS.first + STORE_ERRORS.width,
)
GROUP = Histogram(
    "lading_database_group_writes",
    "Writes that one transaction made durable together.",
    (),
    _NO_LABEL,
    (1, 2, 4, 8, 16, 32, 64, 128),
    1,
    COMMIT.first + COMMIT.width,
)
WAITING = Gauge("lading_database_waiting_writes", "Writes that wait for the next group.", GROUP.first + GROUP.width)
DATABASE_ERRORS = Counters(
    "lading_database_errors_total",
    "Errors of the database, also where it was asked again: held by another, no room, anything else.",
    ("kind",),
    (("busy",), ("full",), (OTHER,)),
    WAITING.first + WAITING.width,
)
COLLECTED = Counters(
    "lading_collected_total",
    "What the collector has removed.",
    ("what",),
    tuple((what,) for what in ("tag move", "untagged manifest", "manifest", "repository", "blob", "object")),
    DATABASE_ERRORS.first + DATABASE_ERRORS.width,
)
FREED_BYTES = Counters(
    "lading_collected_bytes_total",
    "Bytes of the files that the collector has deleted.",
    (),
    _NO_LABEL,
    COLLECTED.first + COLLECTED.width,
)
SCRUBBED = Counters(
    "lading_scrub_bytes_total",
    "Bytes that the server's own scrub has read again and hashed.",
    (),
    _NO_LABEL,
    FREED_BYTES.first + FREED_BYTES.width,
)
DAMAGED = Counters(
    "lading_scrub_damaged_total",
    "Blobs and manifests whose bytes the server's own scrub found wrong or gone.",
    ("kind",),
    (("blob",), ("manifest",)),
    SCRUBBED.first + SCRUBBED.width,
)
LOST_RECORDS = Counters(
    "lading_log_dropped_total",
    "Lines of the log that were lost: their reader, their file or the journal did not take them.",
    (),
    _NO_LABEL,
    DAMAGED.first + DAMAGED.width,
)
FAMILIES: tuple[Family, ...] = (
    *(STARTS, WORKERS, REQUESTS, RECEIVED, SENT, DURATION, CONNECTIONS),
    *(SYNC, STORE_ERRORS, COMMIT, GROUP, WAITING, DATABASE_ERRORS, COLLECTED, FREED_BYTES),
    *(SCRUBBED, DAMAGED, LOST_RECORDS),
)
GAUGES = tuple(family for family in FAMILIES if isinstance(family, Gauge))
CELLS = LOST_RECORDS.first + LOST_RECORDS.width

_ROUTE = {route: number for number, route in enumerate(ROUTES)}
_METHOD = {method: number * (len(STATUSES) + 1) for number, method in enumerate(METHODS)}
_STATUS = {status: number for number, status in enumerate(STATUSES)}
# What each request needs, looked up once.
_OTHER_ROUTE, _OTHER_METHOD, _OTHER_STATUS = _ROUTE[OTHER], _METHOD[OTHER], len(STATUSES)
_REQUESTS_EACH = len(METHODS) * (len(STATUSES) + 1)
_REQUESTS, _RECEIVED, _SENT = REQUESTS.first, RECEIVED.first, SENT.first
_DURATION, _DURATION_EACH, _DURATION_SUM = DURATION.first, DURATION.cells_each, DURATION.cells_each - 1


class Shared:
    """The memory of all processes of a server: made in the parent, claimed row by row after each fork."""

    def __init__(self, rows: int) -> None:
        self._descriptor = os.memfd_create("lading-metrics")
        os.ftruncate(self._descriptor, rows * CELLS * CELL_BYTES)
        self._cells = memoryview(mmap.mmap(self._descriptor, 0)).cast("Q")
        self._rows = rows
        self._own: int | None = None

    def claim(self) -> memoryview | None:
        """Return a row that no living process has, or None.

        The lock on it is the kernel's: it ends with this process, however that ends, and no fork inherits it.
        """
        for number in range(self._rows):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                continue
            self._own = number
            return self._row(number)
        return None

    def totals(self) -> list[int]:
        """Return the sum of all rows, cell by cell; of gauges only those of processes that live."""
        used = [number for number in range(self._rows) if self._row(number)[STARTS.first]]
        totals = [sum(cells) for cells in zip([0] * CELLS, *map(self._row, used), strict=True)]
        living = [self._row(number) for number in used if self._lives(number)]
        for gauge in GAUGES:
            totals[gauge.first] = sum(row[gauge.first] for row in living)
        return totals

    def _lives(self, number: int) -> bool:
        """Tell whether a process holds the lock on a row; this one's own is not in its way."""
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
        found: int = struct.unpack(_FLOCK, fcntl.fcntl(self._descriptor, fcntl.F_GETLK, wanted))[0]
        return number == self._own or found != fcntl.F_UNLCK

    def _row(self, number: int) -> memoryview:
        return self._cells[number * CELLS : (number + 1) * CELLS]


class Process:
    """The counts of this process; before it has claimed a row, and where there is none, in memory of its own."""

    def __init__(self) -> None:
        self._shared: Shared | None = None
        self._cells = memoryview(bytearray(CELLS * CELL_BYTES)).cast("Q")
        # Of the threads of this process: one of them alone could lose another's count.
        self._lock = threading.Lock()

    def share(self, workers: int) -> None:
        """Make the memory that this process's children will share. Room is for workers that leave beside new ones."""
        if self._shared is None:
            self._shared = Shared(max(MIN_ROWS, 4 * workers))

    def claim(self) -> bool:
        """Count in a row of the shared memory from now on; False if there is none, so that this process is not seen."""
        row = self._shared.claim() if self._shared is not None else None
        if row is not None:
            self._cells = row
        for gauge in GAUGES:
            self.set(gauge, 0)
        self.set(WORKERS, 1)
        self.add(STARTS)
        return row is not None

    def totals(self) -> list[int]:
        """Return what all processes have counted, cell by cell; of gauges the sum."""
        return self._shared.totals() if self._shared is not None else list(self._cells)

    def request(self, route: str | None, method: str, status: int, received: int, sent: int, duration_ns: int) -> None:
        """Count one request. On the event loop only: it takes no lock."""
        cells = self._cells
        number = _ROUTE.get(route, _OTHER_ROUTE)  # type: ignore[arg-type]
        place = number * _REQUESTS_EACH + _METHOD.get(method, _OTHER_METHOD) + _STATUS.get(status, _OTHER_STATUS)
        cells[_REQUESTS + place] += 1
        if received:
            cells[_RECEIVED + number] += received
        if sent:
            cells[_SENT + number] += sent
        microseconds = duration_ns // 1000
        first = _DURATION + number * _DURATION_EACH
        cells[first + bisect_left(_MICROSECONDS, microseconds)] += 1
        cells[first + _DURATION_SUM] += microseconds

    def add(self, counters: Counters, *labels: str, amount: int = 1) -> None:
        """Count more of `counters`."""
        cell = counters.first + counters.series.index(labels)
        with self._lock:
            self._cells[cell] += amount

    def observe(self, histogram: Histogram, value: int) -> None:
        """Count a value of a histogram that has no labels."""
        cell = histogram.first + bisect_left(histogram.bounds, value)
        with self._lock:
            self._cells[cell] += 1
            self._cells[histogram.first + histogram.cells_each - 1] += value

    @contextlib.contextmanager
    def timed(self, histogram: Histogram) -> Iterator[None]:
        """Count how long the block takes, also when it fails."""
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self.observe(histogram, (time.perf_counter_ns() - began) // 1000)

    def set(self, gauge: Gauge, value: int) -> None:
        """Say what is so now, in this process."""
        self._cells[gauge.first] = value


here = Process()
"""This process: what it counts is one thing, as its log is."""
