"""Scrubbing: read again what is stored, and take what is wrong out of the store, so that a push brings it back (E4).

A pass goes through all manifests and blobs, in small steps at a bounded rate. How far it is stands in the database:
whoever goes on, a server or a command, goes on from there. One process scrubs at a time.
"""

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
import structlog

from lading import metrics
from lading.metadata import passes, scrub, stores
from lading.metadata.database import Database
from lading.metadata.passes import Pass
from lading.metadata.scrub import ScrubbedBlob
from lading.metadata.times import SECOND_US, now_us
from lading.metadata.verify import Fault, holders_of
from lading.metrics import here
from lading.oci.errors import RegistryError, ScrubStopped, StorageFull
from lading.storage.disk import DiskStore
from lading.storage.identity import Watch
from lading.storage.scrub import empty_quarantine, examine, quarantine
from lading.storage.verify import Condition, Look
from lading.upkeep.turns import turn
from lading.upkeep.verify import EXTENT_WORDS, Progress

HEALS = "Push it again, or an image that has it: it is absent until then."
"""What is to be done about damage that a scrub has met, of whatever kind."""
_MANIFESTS, _BLOBS = "scrub manifests", "scrub blobs"
_SAVE_SECONDS = 2.0
_BEHIND_SECONDS = 0.1
"""How far it may fall behind its rate and still catch up."""
_MOST_UNREADABLE = 5
"""So many objects in a row are not damage here and there: the disk fails."""
_SLICE_SECONDS = 5.0
_PAUSE_SECONDS = 0.25
_STOPPED_SECONDS = 3600.0
"""After it stopped for a disk that fails; whoever looks after that wants more lines of the log than ours."""

log = structlog.get_logger(__name__)


class Scrub:
    """One scrubber of one data directory. `tell` hears of each damage, `progress` of each step, if anybody watches."""

    def __init__(  # noqa: PLR0913 - what it reads, and who is told
        self,
        database: Database,
        disk: DiskStore,
        data: Path,
        watch: Watch,
        *,
        store_id: int,
        undo_us: int,
        max_bytes_per_second: int,
        tell: Callable[[Fault], None],
        progress: Progress | None = None,
    ) -> None:
        self._database = database
        self._disk = disk
        self._data = data
        self._watch = watch
        self._store_id = store_id
        self._undo_us = undo_us
        self._pace = _Pace(max_bytes_per_second)
        self._tell = tell
        self._progress = progress
        self._saved_at = 0.0
        self._unreadable = 0
        self.hashed_bytes = 0

    async def last(self) -> Pass | None:
        """Return the last pass, or None before the first; it is over when both of its parts are."""
        manifests = await self._database.scan(passes.find, _MANIFESTS)
        return await self._database.scan(passes.find, _BLOBS) if manifests is None or manifests.is_over else manifests

    async def store_created_us(self) -> int:
        """Return when the store was made."""
        return await self._database.scan(stores.created_us, self._store_id)

    async def begin(self) -> None:
        """Begin a pass, wherever the last one was."""
        await self._database.write(_begin, at_us=now_us())

    async def go_on(self, seconds: float = math.inf) -> None:
        """Go on with the pass, to its end or for about `seconds`; a large object is not left in its middle for that.

        Raises:
            ScrubStopped: the disk fails, or this process cannot read it.
            RegistryError: the store is not ours, or the database cannot be written.

        """
        until = time.monotonic() + seconds
        for name, go_through in ((_MANIFESTS, self._manifests), (_BLOBS, self._blobs)):
            standing = await self._database.scan(passes.find, name)
            if standing is None or standing.is_over:
                continue
            if not await go_through(standing, until):
                return
            over = replace(standing, finished_us=max(now_us(), standing.started_us))
            await self._database.write(passes.save, name, over)

    async def _save(self, name: str, standing: Pass, position: int, until: float) -> bool:
        """Write down now and then how far it is; tell whether to go on."""
        now = time.monotonic()
        if now >= until or now >= self._saved_at + _SAVE_SECONDS:
            self._saved_at = now
            with contextlib.suppress(StorageFull):  # what is done is done again, which harms nobody
                await self._database.write(passes.save, name, replace(standing, position=position))
        return now < until

    async def _spend(self, hashed_bytes: int, *, shown: int) -> None:
        self.hashed_bytes += hashed_bytes
        here.add(metrics.SCRUBBED, amount=hashed_bytes)
        if self._progress:
            self._progress.advance(shown)
        await self._pace.spend(hashed_bytes)

    # Manifests

    async def _manifests(self, standing: Pass, until: float) -> bool:
        """Tell of wrong ones. Nothing else is done to them: none is ever served, and a push puts them right."""
        if self._progress:
            self._progress.begin("manifests", await self._database.scan(scrub.count_manifests, standing.position))
        position = standing.position
        while True:
            page = await self._database.scan(scrub.manifest_page, position)
            for wrong in page.wrong:
                here.add(metrics.DAMAGED, "manifest")
                repositories = () if wrong.repository is None else (wrong.repository,)
                self._tell(
                    Fault("manifest-wrong", "its bytes are something else", repositories, None, str(wrong.digest))
                )
            await self._spend(page.hashed_bytes, shown=page.seen)
            if page.last is None:
                return True
            position = page.last
            if not await self._save(_MANIFESTS, standing, position, until):
                return False

    # Blobs

    async def _blobs(self, standing: Pass, until: float) -> bool:
        if self._progress:
            left = await self._database.scan(scrub.remaining_bytes, standing.position)
            self._progress.begin("blobs", left, of_bytes=True)
        position = standing.position
        while True:
            page = await self._database.scan(scrub.blob_page, position)
            await self._spend(page.hashed_bytes, shown=page.hashed_bytes)
            for blob in page.blobs:
                await self._blob(blob)
                if not await self._save(_BLOBS, standing, blob.id, until):
                    return False
            if page.last is None:
                return True
            position = page.last
            if not await self._save(_BLOBS, standing, position, until):
                return False

    async def _blob(self, blob: ScrubbedBlob) -> None:
        if blob.object_key is None:
            await self._take_out(blob, "payload-wrong", "its bytes in the database are something else")
            return
        look = await self._examine(blob, blob.object_key)
        if look.condition is not Condition.WHOLE:
            first, look = look, await self._examine(blob, blob.object_key)
            if look.condition is Condition.WHOLE:
                what, key = first.condition.value, blob.object_key
                log.warning("an object was read well only the second time: look at memory and disk", was=what, key=key)
        if look.condition is Condition.WHOLE:
            self._unreadable = 0
            return
        code, what = EXTENT_WORDS[look.condition]
        what = what.format(file=look.file_bytes, row=blob.content_bytes, error=look.error)
        if look.condition is Condition.MISSING:
            await self._miss(blob, code, what)
            return
        if look.condition is Condition.UNREADABLE:
            self._unreadable += 1
            if self._unreadable >= _MOST_UNREADABLE:
                raise ScrubStopped(
                    f"{self._unreadable} objects in a row cannot be read ({look.error}): the disk seems to fail",
                    "look for what ails it, and scrub again with: lading scrub --resume",
                )
        await self._take_out(blob, code, what)

    async def _examine(self, blob: ScrubbedBlob, object_key: str) -> Look:
        """Read the object, a piece at a time: other tasks of this process have the loop and the threads in between."""
        path = self._disk.object_path(object_key)
        with contextlib.closing(examine(path, blob.content_bytes, blob.digest)) as pieces:
            while True:
                found = await self._disk.in_thread(next, pieces)
                if isinstance(found, Look):
                    return found
                await self._spend(found, shown=found)

    async def _miss(self, blob: ScrubbedBlob, code: str, what: str) -> None:
        """Tell of an object that is not there. It may come back, so its row stays: to everybody the blob is absent."""
        self._watch.confirm_there()
        if await self._database.scan(scrub.is_current, blob):
            await self._tell_of(blob, code, what, f"objects/{blob.object_key}")

    async def _take_out(self, blob: ScrubbedBlob, code: str, what: str) -> None:
        """Have the blob be absent, first by its row, so that no push relies on it, then by moving the file away."""
        self._watch.confirm_writable()
        at_us = now_us()
        condemned = await self._database.release(
            scrub.condemn,
            blob,
            store_id=self._store_id,
            nowhere=f"{blob.digest.hex[:2]}/{blob.digest.hex}.{uuid.uuid4()}",
            at_us=at_us,
            doomed_until_us=at_us + self._undo_us,
        )
        if condemned:
            path = None if blob.object_key is None else await self._move_away(blob.object_key)
            await self._tell_of(blob, code, what, path)

    async def _move_away(self, object_key: str) -> str:
        """Put the file where even an older copy of the database would not find it; return where it is."""
        try:
            return await self._disk.in_thread(quarantine, self._data, object_key)
        except OSError as error:
            log.warning("a damaged object cannot be moved away", object_key=object_key, error=str(error))
            return f"objects/{object_key}"

    async def _tell_of(self, blob: ScrubbedBlob, code: str, what: str, path: str | None) -> None:
        here.add(metrics.DAMAGED, "blob")
        repositories = await self._database.scan(holders_of, blob.id)
        self._tell(Fault(code, what, repositories, None, str(blob.digest), path))


def _begin(tx: sa.Connection, *, at_us: int) -> None:
    for name in (_MANIFESTS, _BLOBS):
        last = passes.find(tx, name)
        finished_us = None if last is None else last.finished_us
        # Were the clock set back, a pass that begins would look like one that is over.
        started_us = at_us if finished_us is None else max(at_us, finished_us + 1)
        passes.save(tx, name, Pass(0, started_us, finished_us))


@contextlib.contextmanager
def scrubbing(data: Path) -> Iterator[bool]:
    """Tell whether this process may scrub: the only one, for the length of the block."""
    with turn(data / "scrub.lock") as ours:
        yield ours


class _Pace:
    """A bound on bytes per second."""

    def __init__(self, max_bytes_per_second: int) -> None:
        self._rate = max_bytes_per_second
        self._paid_until = 0.0

    async def spend(self, number_bytes: int) -> None:
        """Return when so many bytes more are within the bound."""
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - _BEHIND_SECONDS) + number_bytes / self._rate
        await asyncio.sleep(max(0.0, self._paid_until - now))


class ScrubSchedule:
    """What a server does of it: a pass when the last one began long enough ago, in slices between which others may."""

    def __init__(self, scrubber: Scrub, data: Path, *, every_seconds: int) -> None:
        self._scrubber = scrubber
        self._data = data
        self._every_us = every_seconds * SECOND_US
        self._not_before = 0.0

    async def go_on_when_due(self) -> None:
        """Go on with the pass that is due, to its end, unless another process scrubs."""
        if time.monotonic() < self._not_before:
            return
        try:
            while True:
                with scrubbing(self._data) as is_ours:
                    if not is_ours or not await self._is_due():
                        return
                    await self._scrubber.go_on(_SLICE_SECONDS)
                await asyncio.sleep(_PAUSE_SECONDS)
        except (ScrubStopped, RegistryError) as error:
            self._not_before = time.monotonic() + _STOPPED_SECONDS
            log.error("the scrub stopped; it goes on in an hour", reason=str(error))  # noqa: TRY400 - it says it all

    async def _is_due(self) -> bool:
        """Tell whether a pass goes on, and begin the one that is due: in a new store after the first interval."""
        last = await self._scrubber.last()
        if last is not None and not last.is_over:
            return True
        since_us = await self._scrubber.store_created_us() if last is None else last.started_us
        if since_us + self._every_us > now_us():
            return False
        await self._scrubber.begin()
        return True


def log_damage(fault: Fault) -> None:
    """Tell of damage in the log, as nobody waits for a report."""
    log.error(
        "stored content is damaged, and is not served",
        kind=fault.code,
        what=fault.what,
        digest=fault.digest,
        repositories=list(fault.repositories),
        path=fault.path,
        hint=HEALS,
    )


async def empty_quarantine_of(disk: DiskStore, data: Path, *, undo_us: int) -> None:
    """Remove what has been in quarantine for the undo window."""
    removed = await disk.in_thread(empty_quarantine, data, kept_seconds=undo_us / SECOND_US)
    if removed:
        log.info("damaged objects were removed from quarantine", files=removed)
