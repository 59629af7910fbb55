"""The collector: it gives back the space of what nothing refers to, while clients push (decision 0015).

What it does follows the queues, so its cost follows what died and not what is stored. The net, which goes through
everything page by page, catches what a queue may have missed, and files that no row speaks of.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from lading import metrics
from lading.metadata import backlog, collection, passes
from lading.metadata.backlog import Backlog, Due
from lading.metadata.collection import Removed
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.passes import Pass
from lading.metadata.times import DAY_US, HOUR_US, now_us
from lading.metrics import here
from lading.storage.disk import OBJECT_FOLDERS, DiskStore
from lading.upkeep.turns import turn

T = TypeVar("T")

_REVIEWS = 5
"""In one transaction: some milliseconds, for which a push may have to wait."""
_MOVES = 20
_OBJECTS = 50
_PAGE_ENTRIES = 1000
_HURRIED_ENTRIES = 1000
_NET_EVERY_US = DAY_US
_STRAY_SECONDS = 86400.0
"""A commit has linked its object some milliseconds before its row is there."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Report:
    """What a collection has removed, by noun and reason; `tell` hears of each thing, `begin` and `step` of the work."""

    tell: Callable[[Removed], None] = lambda _: None
    begin: Callable[[str, int], None] = lambda *_: None
    step: Callable[[int], None] = lambda _: None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    content_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, removed: list[Removed]) -> None:
        """Count what went."""
        for item in removed:
            key = item.what, item.reason
            self.counts[key] += 1
            self.content_bytes[key] += item.content_bytes
            self.tell(item)
            here.add(metrics.COLLECTED, item.what)
            if item.what == "object":
                here.add(metrics.FREED_BYTES, amount=item.content_bytes)

    def __bool__(self) -> bool:
        return bool(self.counts)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is collected, and how eagerly. `rest` is how long the collector pauses for each second that it works."""

    retention: Retention
    delete_untagged: bool = False
    rest: float = 3.0
    only_rows: bool = False
    """Leave the files: of a copy of the database, to see what would go."""


class Collector:
    """Collects from one store. Whoever calls it has the turn (`turns`), so that only one does at a time."""

    def __init__(self, database: Database, disk: DiskStore, policy: Policy, *, store_id: int) -> None:
        self._database = database
        self._disk = disk
        self._policy = policy
        self._store_id = store_id

    async def collect(self, report: Report) -> None:
        """Remove all whose time has come; one stage makes work for the next."""
        await self._trim_history(report)
        report.begin("review manifests", (await self._due()).manifests)
        await self._review(self._review_manifests, report)
        report.begin("review blobs", (await self._due()).blobs)
        await self._review(self._review_blobs, report)
        report.begin("delete files", (await self._due()).objects)
        await self._delete_objects(report)

    async def backlog(self) -> Backlog:
        """Count what there is, and what is to come."""
        return await self._database.scan(backlog.backlog, at_us=now_us())

    async def hurry(self) -> None:
        """Have all that waits for its time come now."""
        while await self._gently(self._database.release(backlog.hurry, at_us=now_us(), entries=_HURRIED_ENTRIES)):
            pass

    async def search(self, report: Report) -> None:
        """Go through everything once, for what the queues have missed."""
        there = await self.backlog()
        for walk, total in zip(self._walks(), (there.manifests, there.blobs, OBJECT_FOLDERS), strict=True):
            report.begin(walk.name, total)
            position: int | None = 0
            while position is not None:
                before = position
                position = await self._gently(walk.page(position))
                report.step(walk.entries or (OBJECT_FOLDERS if position is None else position) - before)

    async def search_a_little(self) -> None:
        """Look at the next page of everything; begin anew when the last time is a day ago."""
        for walk in self._walks():
            state = await self._database.scan(passes.find, walk.name)
            at_us = now_us()
            if state is None or (state.position == 0 and at_us >= state.started_us + _NET_EVERY_US):
                state = Pass(0, at_us, None if state is None else state.finished_us)
            elif state.position == 0:
                continue
            following = await self._gently(walk.page(state.position))
            finished_us = at_us if following is None else state.finished_us
            state = Pass(following or 0, state.started_us, finished_us)
            await self._database.release(passes.save, walk.name, state)

    async def _due(self) -> Due:
        return await self._database.scan(backlog.due, at_us=now_us())

    # The stages

    # Each ends with what was due at its beginning: else a busy registry would keep the collector from the next one.

    async def _trim_history(self, report: Report) -> None:
        at_us = now_us()
        while True:
            trimmed = await self._gently(
                self._database.release(
                    collection.trim_history, at_us=at_us, retention=self._policy.retention, entries=_MOVES
                )
            )
            report.add([Removed("tag move", "its undo window is over")] * trimmed)
            if trimmed < _MOVES:
                return

    async def _review(self, review: Callable[[int], Awaitable[tuple[int, list[Removed]]]], report: Report) -> None:
        due_us = now_us()
        while True:
            seen, removed = await self._gently(review(due_us))
            report.add(removed)
            report.step(seen)
            if not seen:
                return

    def _review_manifests(self, due_us: int) -> Awaitable[tuple[int, list[Removed]]]:
        return self._database.release(
            collection.review_manifests,
            due_us=due_us,
            at_us=now_us(),
            retention=self._policy.retention,
            delete_untagged=self._policy.delete_untagged,
            entries=_REVIEWS,
        )

    def _review_blobs(self, due_us: int) -> Awaitable[tuple[int, list[Removed]]]:
        return self._database.release(
            collection.review_blobs, due_us=due_us, at_us=now_us(), retention=self._policy.retention, entries=_REVIEWS
        )

    async def _delete_objects(self, report: Report) -> None:
        at_us = now_us()
        while True:
            due = await self._database.scan(
                collection.due_objects, store_id=self._store_id, at_us=at_us, entries=_OBJECTS
            )
            if not due:
                return
            keys = [doomed.object_key for doomed in due]
            work = self._disk.sizes(keys) if self._policy.only_rows else self._disk.remove_all(keys)
            sizes = dict(zip(due, await self._gently(work), strict=True))
            gone = [doomed for doomed, size in sizes.items() if size is not None]
            await self._database.release(collection.forget_objects, gone)
            if len(gone) < len(due):
                left = [doomed for doomed, size in sizes.items() if size is None]
                await self._database.release(collection.postpone_objects, left, until_us=now_us() + HOUR_US)
            report.add([Removed("object", item.reason, sizes[item] or 0, object_key=item.object_key) for item in gone])
            report.step(len(due))

    # The net

    def _walks(self) -> "tuple[_Walk, ...]":
        return (
            _Walk("search manifests", _PAGE_ENTRIES, self._manifests_page),
            _Walk("search blobs", _PAGE_ENTRIES, self._blobs_page),
            _Walk("search files", None, self._files_page),
        )

    async def _manifests_page(self, after: int) -> int | None:
        found = await self._database.scan(
            backlog.manifests_to_review,
            after=after,
            delete_untagged=self._policy.delete_untagged,
            entries=_PAGE_ENTRIES,
        )
        if found.ids:
            await self._database.release(backlog.queue, manifest_ids=found.ids)
        return found.last

    async def _blobs_page(self, after: int) -> int | None:
        at_us = now_us()
        found = await self._database.scan(backlog.blobs_to_review, after=after, at_us=at_us, entries=_PAGE_ENTRIES)
        if found.ids:
            await self._database.release(backlog.queue, blob_ids=found.ids)
        return found.last

    async def _files_page(self, folder: int) -> int | None:
        seen = 0
        while folder < OBJECT_FOLDERS and seen < _PAGE_ENTRIES:
            files, keys = await self._disk.settled_in(folder, before=time.time() - _STRAY_SECONDS)
            if keys:
                await self._doom_strays(keys)
            seen += files
            folder += 1
        return folder if folder < OBJECT_FOLDERS else None

    async def _doom_strays(self, object_keys: list[str]) -> None:
        strays = await self._database.scan(collection.unnamed, object_keys, store_id=self._store_id)
        if strays:
            await self._database.release(
                collection.doom_strays,
                strays,
                store_id=self._store_id,
                at_us=now_us(),
                retention=self._policy.retention,
            )

    async def _gently(self, work: Awaitable[T]) -> T:
        """Do a piece of work, and then pause for a multiple of the time that it took: the busier, the longer."""
        began = time.monotonic()
        result = await work
        await asyncio.sleep((time.monotonic() - began) * self._policy.rest)
        return result


@dataclass(frozen=True, slots=True)
class _Walk:
    """One way through everything: `page` looks at the part that begins at a position, and returns the next one.

    A page has so many `entries`, where positions are ids; else each position is one.
    """

    name: str
    entries: int | None
    page: Callable[[int], Awaitable[int | None]]


class BackgroundCollection:
    """The collector as a job of the server."""

    def __init__(self, collector: Collector, data: Path) -> None:
        self._collector = collector
        self._data = data

    async def run(self) -> None:
        """Collect what is due, and look a little for the rest, unless an operator's collection is at it."""
        with collecting(self._data) as ours:
            if not ours:
                return
            report = Report()
            await self._collector.collect(report)
            await self._collector.search_a_little()
        for (what, reason), count in sorted(report.counts.items()):
            log.info("collected", what=what, reason=reason, count=count, bytes=report.content_bytes[what, reason])


@contextmanager
def collecting(data: Path) -> Iterator[bool]:
    """Tell whether this process may collect: the only one, for the length of the block."""
    with turn(data / "collection.lock") as ours:
        yield ours
