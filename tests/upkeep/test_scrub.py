"""A scrub from inside: when a pass is due, how far it goes, whom it lets be, and what makes it stop."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from lading.metadata import blobs, schema, stores
from lading.metadata import scrub as rows
from lading.metadata.blobs import CopyChanged, NewContent, SeenCopy
from lading.metadata.database import FILE, Database
from lading.metadata.garbage import Retention
from lading.metadata.snapshots import FOLDER
from lading.metadata.stores import Store
from lading.metadata.times import DAY_US, now_us
from lading.metadata.upgrade import upgrade
from lading.metadata.verify import Fault
from lading.oci.digest import Digest
from lading.oci.errors import ScrubStopped, StoreUnavailable
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import DatabaseFile, Watch
from lading.storage.scrub import QUARANTINE, empty_quarantine
from lading.upkeep.identity import marker_of
from lading.upkeep.scrub import Scrub, ScrubSchedule, scrubbing

STORE = Store(1, "store", "database", epoch=1, held_us=None, held_reason=None)
KEPT = Retention()
OBJECT_BYTES = 3_000
FAST = 10**9
OBJECTS = 8


class Scrubbed:
    """A store with some objects, and what scrubs of it have told."""

    def __init__(self, data: Path, database: Database, disk: DiskStore) -> None:
        self.data = data
        self.database = database
        self.disk = disk
        self.told: list[Fault] = []
        self.contents = [os.urandom(OBJECT_BYTES) for _ in range(OBJECTS)]
        self.paths: list[Path] = []

    async def fill(self, created_us: int) -> None:
        """Make the store and its objects."""
        await self.database.write(stores.create, "disk", STORE.store_uid, STORE.database_uid, at_us=created_us)
        self.disk.prepare()
        for content in self.contents:
            key = await self.record(content)
            self.paths.append(self.disk.object_path(key))

    async def record(self, content: bytes, seen: SeenCopy | None = None) -> str:
        """Push content as an object, having looked at what there is or found nothing; return the object's key."""
        digest = Digest.of(content)
        key = f"{digest.hex[:2]}/{digest.hex}.{uuid4()}"
        self.disk.object_path(key).write_bytes(content)
        new = NewContent(digest, len(content), STORE.id, object_key=key)
        await self.database.write(
            blobs.record, "team/app", new, seen or SeenCopy(None, whole=False), actor="ann", at_us=1, retention=KEPT
        )
        return key

    async def stored(self, number: int) -> blobs.Blob:
        """Return what a push of that content finds."""
        found = await self.database.read(blobs.stored, Digest.of(self.contents[number]))
        assert found is not None
        return found

    def scrub(self, rate: int = FAST) -> Scrub:
        """Return a scrubber as a process has one."""
        watch = Watch(self.data, marker_of(STORE, 0), DatabaseFile.at(self.data / FILE))
        return Scrub(
            self.database,
            self.disk,
            self.data,
            watch,
            store_id=STORE.id,
            undo_us=KEPT.undo_us,
            max_bytes_per_second=rate,
            tell=self.told.append,
        )

    def spoil(self, *numbers: int) -> None:
        """Change a byte of these objects."""
        for number in numbers:
            content = bytearray(self.contents[number])
            content[7] ^= 1
            self.paths[number].write_bytes(content)

    def digests(self, *numbers: int) -> list[str]:
        """Return the digests of these contents."""
        return [str(Digest.of(self.contents[number])) for number in numbers]

    def named(self) -> list[str | None]:
        """Return the digests of what was told."""
        return [fault.digest for fault in self.told]


def run(data: Path, function: Callable[[Scrubbed], Awaitable[None]], *, created_us: int = 1) -> None:
    """Run a function on a store that is made for it."""

    async def whole() -> None:
        with closing(Database(data / FILE)) as database, closing(DiskStore(data)) as disk:
            scrubbed = Scrubbed(data, database, disk)
            await scrubbed.fill(created_us)
            await function(scrubbed)

    upgrade(data / FILE, data / FOLDER)
    (data / "objects").mkdir()
    identity.write(data, marker_of(STORE, 0))
    asyncio.run(whole())


def test_a_pass_goes_on_where_another_process_stopped_it(tmp_path: Path) -> None:
    """Each object is read once in a pass, whoever reads it, and told of once."""

    async def in_slices(scrubbed: Scrubbed) -> None:
        scrubbed.spoil(1, 6)
        await scrubbed.scrub().begin()
        hashed = 0
        for _ in range(OBJECTS + 3):
            one = scrubbed.scrub()
            await one.go_on(seconds=0)
            hashed += one.hashed_bytes
            last = await one.last()
            assert last is not None
            if last.is_over:
                break

        assert last is not None
        assert last.is_over
        assert scrubbed.named() == scrubbed.digests(1, 6)
        assert hashed == (OBJECTS + 2) * OBJECT_BYTES, "each once, and twice before anything is condemned"

    run(tmp_path, in_slices)


def test_it_reads_no_faster_than_it_may(tmp_path: Path) -> None:
    """A disk that serves pulls has better things to do."""

    async def slowly(scrubbed: Scrubbed) -> None:
        one = scrubbed.scrub(rate=OBJECT_BYTES * OBJECTS * 2)
        await one.begin()
        began = time.monotonic()
        await one.go_on()

        assert time.monotonic() - began > 0.35, "half a second's worth, and a tenth to catch up"

    run(tmp_path, slowly)


def test_a_push_that_saw_the_wrong_copy_keeps_its_own_bytes(tmp_path: Path) -> None:
    """It was about to say 201 on the strength of a length that was right."""

    async def meanwhile(scrubbed: Scrubbed) -> None:
        scrubbed.spoil(0)
        seen = await scrubbed.stored(0)
        await _whole_pass(scrubbed)

        with pytest.raises(CopyChanged):
            await scrubbed.record(scrubbed.contents[0], SeenCopy(seen, whole=True))
        now = await scrubbed.stored(0)
        assert now.object_key is not None
        assert not scrubbed.disk.has(now.object_key, OBJECT_BYTES)
        await scrubbed.record(scrubbed.contents[0], SeenCopy(now, whole=False))
        await _whole_pass(scrubbed)
        assert scrubbed.named() == scrubbed.digests(0)

    run(tmp_path, meanwhile)


def test_a_copy_that_a_push_has_replaced_is_not_condemned(tmp_path: Path) -> None:
    """Between the look and the sentence the blob was healed."""

    async def meanwhile(scrubbed: Scrubbed) -> None:
        page = await scrubbed.database.scan(rows.blob_page, 0)
        seen = await scrubbed.stored(0)
        key = await scrubbed.record(scrubbed.contents[0], SeenCopy(seen, whole=False))

        condemned = await scrubbed.database.write(
            rows.condemn, page.blobs[0], store_id=STORE.id, nowhere="00/nowhere", at_us=1, doomed_until_us=2
        )

        assert not condemned
        assert (await scrubbed.stored(0)).object_key == key

    run(tmp_path, meanwhile)


def test_a_wrong_object_is_moved_where_no_copy_of_the_database_finds_it(tmp_path: Path) -> None:
    """An older copy that is restored still names it; it is kept for the undo window, for whoever wants to look."""

    async def moved(scrubbed: Scrubbed) -> None:
        scrubbed.spoil(2)
        path = scrubbed.paths[2]
        await _whole_pass(scrubbed)
        moved_to = tmp_path / QUARANTINE / path.name

        assert not path.exists()
        assert moved_to.read_bytes()[:7] == scrubbed.contents[2][:7]
        assert empty_quarantine(tmp_path, kept_seconds=60) == 0
        os.utime(moved_to, (time.time() - 61,) * 2)
        assert empty_quarantine(tmp_path, kept_seconds=60) == 1
        assert not moved_to.exists()

    run(tmp_path, moved)


def test_a_failing_disk_stops_it_before_it_has_emptied_the_store(tmp_path: Path) -> None:
    """Five in a row that cannot be read are the disk's trouble; four are theirs."""

    async def failing(scrubbed: Scrubbed) -> None:
        for path in scrubbed.paths[1:]:
            path.unlink()
            path.symlink_to(path)

        with pytest.raises(ScrubStopped, match="5 objects in a row"):
            await _whole_pass(scrubbed)

        assert scrubbed.named() == scrubbed.digests(1, 2, 3, 4)
        assert all(path.is_symlink() for path in scrubbed.paths[5:])

    run(tmp_path, failing)


def test_nothing_is_told_or_taken_out_of_a_store_that_is_not_ours(tmp_path: Path) -> None:
    """Another disk was mounted while it read: all objects are missing, and none is lost."""

    async def moved(scrubbed: Scrubbed) -> None:
        (tmp_path / "objects").rename(tmp_path / "elsewhere")

        with pytest.raises(StoreUnavailable):
            await _whole_pass(scrubbed)

        assert not scrubbed.told

    run(tmp_path, moved)


def test_a_server_begins_a_pass_when_the_last_one_is_old_enough(tmp_path: Path) -> None:
    """A new registry is not read at once, one that was never read is, and a pass that was cut short goes on."""

    async def due(scrubbed: Scrubbed) -> None:
        scrubbed.spoil(0)
        one = scrubbed.scrub()
        await ScrubSchedule(one, tmp_path, every_seconds=3600).go_on_when_due()
        assert await one.last() is None, "the store is new"

        await scrubbed.database.write(_age, now_us() - DAY_US)
        with scrubbing(tmp_path) as is_ours:
            assert is_ours
            await ScrubSchedule(one, tmp_path, every_seconds=3600).go_on_when_due()
        assert await one.last() is None, "another process scrubs"
        await ScrubSchedule(one, tmp_path, every_seconds=3600).go_on_when_due()
        assert scrubbed.named() == scrubbed.digests(0)

        scrubbed.spoil(1)
        await ScrubSchedule(one, tmp_path, every_seconds=3600).go_on_when_due()
        assert scrubbed.named() == scrubbed.digests(0), "the last one is not an hour old"
        await one.begin()
        await ScrubSchedule(one, tmp_path, every_seconds=3600).go_on_when_due()
        assert scrubbed.digests(1)[0] in scrubbed.named(), "one was begun"

    run(tmp_path, due, created_us=now_us())


def _age(tx: sa.Connection, created_us: int) -> None:
    tx.execute(sa.update(schema.stores).values(created_us=created_us))


async def _whole_pass(scrubbed: Scrubbed) -> None:
    one = scrubbed.scrub()
    await one.begin()
    await one.go_on()
