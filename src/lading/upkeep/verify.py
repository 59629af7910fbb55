"""`lading verify`: what the database says, held against itself and against the bytes on disk (V1 to V10).

It changes nothing. A server may run: whatever a first look finds among files is looked at again before it is told,
first the rows, then the file, and what the server has done meanwhile is no finding.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol

import sqlalchemy as sa

from lading.metadata import stores
from lading.metadata.invariants import CHECKS
from lading.metadata.references import manifest_faults
from lading.metadata.times import HOUR_US, now_us
from lading.metadata.verify import (
    MAX_FAULTS,
    Counts,
    DatabaseDamaged,
    Extent,
    Fault,
    ReadOnlyDatabase,
    Session,
    counts,
    digest_or_none,
    digest_text,
    extents,
    holders,
    integrity_faults,
    payload_faults,
    refuse_other_schema,
    revision,
    session,
    sessions,
    unaccounted,
    without_session,
)
from lading.oci.errors import StoreMismatch, VerifyRefused
from lading.storage import identity
from lading.storage.verify import FOLDERS, Condition, Files, Look
from lading.upkeep.findings import KINDS, Severity

P = ParamSpec("P")

_SWEEP_SECONDS = 3600.0
_LATE_US = 2 * HOUR_US
_SETTLE_SECONDS = 1.0
EXTENT_WORDS = {
    Condition.MISSING: ("object-missing", "its object is not there"),
    Condition.SHORT: ("object-short", "its object has {file} bytes, its row says {row}"),
    Condition.LONG: ("object-long", "its object has {file} bytes, its row says {row}"),
    Condition.WRONG: ("object-wrong", "its object is something else"),
    Condition.UNREADABLE: ("object-unreadable", "its object cannot be read: {error}"),
}


_SESSION_WORDS = {
    "session-short": "it has fewer bytes than it remembers",
    "session-wrong": "its bytes are not those that it remembers",
    "session-expired": "its time was over hours ago",
}


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, stage: str, total: int | None, *, of_bytes: bool = False) -> None:
        """Begin a stage; `total` is what its steps add up to, or None when nobody knows."""

    def advance(self, amount: int) -> None:
        """Go on in the present stage; called from any thread."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, damage first: at most `MAX_FAULTS` of a kind are listed, `found` counts them all."""

    counts: Counts
    hashed_bytes: int
    seconds: float
    findings: Sequence[Fault]
    found: Counter[str]

    @property
    def damaged(self) -> bool:
        """Whether any finding is damage."""
        return any(KINDS[code].severity is Severity.DAMAGE for code in self.found)


@contextlib.contextmanager
def _refusing(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename or data} cannot be read: {error.strerror}"
        raise VerifyRefused(what, "run it as the user whom the server runs as") from error


def _listed(tx: sa.Connection, check: Callable[[sa.Connection], Iterator[Fault]]) -> list[Fault]:
    return list(check(tx))


class Verification:
    """One verification of one data directory; `quick` reads no content but manifests."""

    def __init__(self, data: Path, database: Path, *, quick: bool, progress: Progress) -> None:
        """Prepare to look.

        Raises:
            VerifyRefused: there is nothing to look at.

        """
        if not os.path.isfile(database):  # noqa: PTH113 - false too where the folder may not be entered
            raise VerifyRefused(f"there is no database {database}", "name the registry's data directory with --data")
        self._data = data
        self._path = database
        self._opened = ReadOnlyDatabase(database)
        self._files = Files(data, advance=self._advance)
        self._quick = quick
        self._progress = progress
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._counts = Counts()
        self._hashed_bytes = 0
        self._lock = threading.Lock()

    def run(self) -> Report:
        """Look at everything, once.

        Raises:
            VerifyRefused: the database is none, of another version, or cannot be opened.

        """
        began = time.monotonic()
        found: Counter[str] = Counter()
        findings: list[Fault] = []
        with contextlib.closing(self._files), _refusing(self._data):
            for fault in self._faults():
                found[fault.code] += 1
                if found[fault.code] <= MAX_FAULTS:
                    findings.append(fault)
        findings.sort(key=lambda fault: KINDS[fault.code].severity)
        return Report(self._counts, self._hashed_bytes, time.monotonic() - began, findings, found)

    def stop(self) -> None:
        """End `run` in a KeyboardInterrupt, at its next look."""
        self._files.stop()

    @property
    def _database(self) -> ReadOnlyDatabase:
        """The database, as long as it is to go on."""
        self._files.go_on()
        return self._opened

    def _advance(self, read_bytes: int) -> None:
        with self._lock:
            self._hashed_bytes += read_bytes
        self._progress.advance(read_bytes)

    def _faults(self) -> Iterator[Fault]:
        try:
            refuse_other_schema(self._database.read(revision), self._path)
        except DatabaseDamaged as error:
            yield Fault("database-damaged", str(error))
            return
        for stage in (self._tables, self._manifests, self._payloads, self._objects, self._strays, self._sessions):
            try:
                yield from stage()
            except DatabaseDamaged as error:
                yield Fault("database-damaged", str(error))

    # The database

    def _tables(self) -> Iterator[Fault]:
        self._progress.begin("tables", len(CHECKS) + 1)
        yield from self._read(integrity_faults, quick=self._quick)
        self._progress.advance(1)
        yield from self._store_faults()
        for check in CHECKS:
            yield from self._read(_listed, check)
            self._progress.advance(1)
        self._counts = self._database.read(counts)

    def _read(
        self, function: Callable[Concatenate[sa.Connection, P], list[Fault]], *args: P.args, **kwargs: P.kwargs
    ) -> list[Fault]:
        """Run one check; where the database is so broken that it cannot be run, the others still are."""
        try:
            return self._database.read(function, *args, **kwargs)
        except DatabaseDamaged as error:
            return [Fault("database-damaged", str(error))]

    def _store_faults(self) -> list[Fault]:
        """Hold the marker among the objects against the database's row (E1); a server may just be writing them."""
        first = self._store_problem()
        return [Fault("store-mismatch", first)] if first and self._store_problem() == first else []

    def _store_problem(self) -> str | None:
        try:
            marker = identity.read(self._data)
        except (StoreMismatch, OSError) as error:
            return str(error)
        store = self._database.read(stores.find)
        if marker is None:
            objects = store is not None and self._database.read(stores.has_objects, store.id)
            return f"{identity.marker_path(self._data)} is not there" if objects else None
        if store is None:
            return f"{identity.marker_path(self._data)} belongs to another database"
        if (marker.store_uid, marker.database_uid) != (store.store_uid, store.database_uid):
            return f"the objects are store {marker.store_uid}, the database speaks of store {store.store_uid}"
        return None

    def _manifests(self) -> Iterator[Fault]:
        self._progress.begin("manifests", self._counts.manifests)
        after: int | None = 0
        while after is not None:
            faults, after, seen = self._database.read(manifest_faults, after)
            self._progress.advance(seen)
            yield from faults

    def _payloads(self) -> Iterator[Fault]:
        self._progress.begin("small blobs", None, of_bytes=True)
        after: int | None = 0
        while after is not None:
            faults, after, read_bytes = self._database.read(payload_faults, after, quick=self._quick)
            if not self._quick:
                self._advance(read_bytes)
            yield from faults

    # Objects

    def _objects(self) -> Iterator[Fault]:
        """Look for blobs whose bytes are missing, cut short or something else (V2, V5)."""
        of_bytes = not self._quick
        self._progress.begin(
            "objects", self._counts.object_bytes if of_bytes else self._counts.objects, of_bytes=of_bytes
        )
        for extent, look in self._files.all(self._extents(), self._look):
            if self._quick:
                self._progress.advance(1)
            if look.condition is not Condition.WHOLE or extent.blob_bytes != extent.extent_bytes:
                yield from self._extent_faults(extent)

    def _extents(self) -> Iterator[Extent]:
        after = (0, 0, -1)
        while page := self._database.read(extents, after):
            yield from page
            after = page[-1].cursor

    def _look(self, extent: Extent) -> Look:
        digest = digest_or_none(extent.alg, extent.raw)
        if digest is None:
            return Look(Condition.WRONG)
        lengths = frozenset({extent.blob_bytes, extent.extent_bytes})
        return self._files.object(extent.object_key, lengths, None if self._quick else digest)

    def _extent_faults(self, extent: Extent) -> Iterator[Fault]:
        """Look again: first whether the row still says so, then at the file."""
        repositories = self._database.read(holders, extent)
        if repositories is None:
            return
        look = self._look(extent)
        where = (repositories, None, digest_text(extent.alg, extent.raw), f"objects/{extent.object_key}")
        if look.condition is not Condition.WHOLE:
            code, what = EXTENT_WORDS[look.condition]
            yield Fault(code, what.format(file=look.file_bytes, row=extent.blob_bytes, error=look.error), *where)
        elif extent.blob_bytes != extent.extent_bytes:
            said = f"{extent.blob_bytes} and {extent.extent_bytes} bytes"
            yield Fault("size-wrong", f"its rows say {said}, its object has {look.file_bytes}", *where)

    def _strays(self) -> Iterator[Fault]:
        """Look for objects that nothing accounts for (V6), and for files that are none of ours."""
        self._progress.begin("unreferenced objects", FOLDERS)
        for objects, strays in self._files.listing():
            self._progress.advance(1)
            for path in filter(self._files.there, strays):
                yield Fault("file-stray", "neither a row nor an upload knows this file", path=path)
            suspects = self._unaccounted(objects)
            for object_key in self._unaccounted(suspects):  # a commit may have come between the row and the file
                yield Fault("object-unreferenced", "no blob has its bytes there", path=f"objects/{object_key}")

    def _unaccounted(self, objects: Mapping[str, str]) -> Mapping[str, str]:
        """Return those objects, with their upload ids, that neither a row nor a staging file leads to.

        What a commit on its way has made, or a killed one leaves, has its staging file: the sweep removes both.
        """
        if not objects:
            return {}
        keys = self._database.read(unaccounted, list(objects))
        return {
            key: objects[key]
            for key in sorted(keys)
            if not self._files.there(f"uploads/{objects[key]}") and self._files.there(f"objects/{key}")
        }

    # Upload sessions

    def _sessions(self) -> Iterator[Fault]:
        """Look for sessions that remember other bytes than they have, and for what uploads have left behind (V6)."""
        self._progress.begin("uploads", None, of_bytes=True)
        after = ""
        while page := self._database.read(sessions, after, boot_id=self._boot_id):
            for found in page:
                if (code := self._session_problem(found)) and self._session_problem(self._again(found)) == code:
                    yield Fault(code, _SESSION_WORDS[code], (found.repository,), path=f"uploads/{found.id}")
            after = page[-1].id
        if self._leftovers():
            time.sleep(_SETTLE_SECONDS)  # a commit ends its session's row first, and removes the file next
            for name in self._leftovers():
                yield Fault("staging-leftover", "its upload has ended", path=f"uploads/{name}")

    def _again(self, known: Session) -> Session | None:
        return self._database.read(session, known.id, boot_id=self._boot_id)

    def _session_problem(self, found: Session | None) -> str | None:
        if found is None:
            return None
        digest = None if self._quick else found.digest
        look = self._files.staging(found.id, found.digest_offset, digest)
        if look.condition in {Condition.MISSING, Condition.SHORT}:
            return "session-short"
        if look.condition is not Condition.WHOLE:
            return "session-wrong"
        return "session-expired" if found.expires_us < now_us() - _LATE_US else None

    def _leftovers(self) -> list[str]:
        """Return the staging files that no session has and that the hourly sweep should have removed."""
        now = time.time()
        ages = {name: self._files.staging_age_seconds(name, now) for name in self._files.staged()}
        old = [name for name, age in ages.items() if age is not None and age > _SWEEP_SECONDS]
        return self._database.read(without_session, old) if old else []
