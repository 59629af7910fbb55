"""The collector: what nothing keeps goes, bytes last; what anything keeps stays (storage, manifests, tags, indexes)."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lading.metadata import backlog, blobs, collection, schema
from lading.metadata.collection import Doomed, Removed
from lading.metadata.garbage import Retention
from lading.metadata.times import DAY_US, now_us
from lading.metadata.upgrade import migrate
from lading.oci import media_types
from lading.oci.digest import Digest
from lading.oci.errors import BlobUnknown, ManifestBlobUnknown, NameUnknown
from lading.oci.names import Tag
from lading.upkeep.collection import Collector, Policy, Report
from tests.metadata.test_history import APP, BIG, V1, V2, House, index

OTHER = "team/other"
SMALL = b"small"
AT_ONCE = Retention(lease_us=0, undo_us=0, delay_us=0)
QUEUES = (schema.gc_blob_queue, schema.gc_manifest_queue)
CONTENT = (
    *(schema.manifests, schema.manifest_blobs, schema.manifest_children, schema.tags, schema.tag_history),
    *(schema.blobs, schema.blob_extents, schema.blob_payloads, schema.repo_blobs, schema.repositories),
    *(schema.doomed_objects, *QUEUES),
)


class Shop(House):
    """A registry with its collector."""

    async def collect(self, *, delete_untagged: bool = False, search: bool = False) -> Report:
        """Collect all that is due."""
        store_id = (await self.rows(schema.stores, "id"))[0][0]
        policy = Policy(self.retention, delete_untagged=delete_untagged, rest=0)
        collector, report = Collector(self.database, self.store, policy, store_id=store_id), Report()
        if search:
            await collector.search(report)
        await collector.collect(report)
        return report

    async def image(self, *layers: bytes, tags: tuple[Tag, ...] = (), repository: str = APP, mark: str = "") -> Digest:
        """Push an image with a small config and these layers."""
        for content in (SMALL, *layers):
            await self.push_blob(content, repository=repository)
        payload = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": described(SMALL),
                "layers": [described(layer) for layer in layers],
                "annotations": {"mark": mark},
            }
        ).encode()
        accepted = await self.manifests.put(
            repository, payload, media_types.OCI_MANIFEST, digest=None, names=tags, actor="ann"
        )
        return accepted.digest

    def files(self) -> list[Path]:
        """Return the objects on disk."""
        return [path for path in (self.data / "objects").glob("??/*") if path.is_file()]

    async def run(self, statement: sa.Executable) -> None:
        """Change rows behind the registry's back."""
        await self.database.write(lambda tx: tx.execute(statement).close())


def described(content: bytes) -> dict[str, Any]:
    """Return a descriptor of the content."""
    return {"mediaType": "application/octet-stream", "digest": str(Digest.of(content)), "size": len(content)}


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """Return the loop that a test's calls share."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def shop(tmp_path: Path, loop: asyncio.Runner) -> Iterator[Shop]:
    """Return an empty registry where nothing is kept longer than it is referred to."""
    with opened(tmp_path, loop, AT_ONCE) as shop:
        yield shop


@contextlib.contextmanager
def opened(folder: Path, loop: asyncio.Runner, retention: Retention) -> Iterator[Shop]:
    """Open a registry, and close it at the end."""
    migrate(folder / "lading.db")

    async def build() -> Shop:
        shop = Shop(folder, retention)
        await shop.open()
        return shop

    built = loop.run(build())
    yield built
    built.database.close()
    built.store.close()


def test_nothing_is_left_of_a_deleted_image(shop: Shop, loop: asyncio.Runner) -> None:
    """Every row and every byte: what stays behind each time fills the disk in the end."""
    digest = loop.run(shop.image(BIG, tags=(V1, V2)))
    loop.run(shop.collect())
    assert loop.run(shop.manifests.get(APP, V1)).digest == digest
    assert len(shop.files()) == 1

    loop.run(shop.manifests.delete(APP, digest, actor="ann"))
    report = loop.run(shop.collect())

    assert {table.name: loop.run(shop.rows(table, *table.c.keys())) for table in CONTENT} == {
        table.name: [] for table in CONTENT
    }
    assert shop.files() == []
    assert {what: count for (what, _), count in report.counts.items()} == {
        "tag move": 2,
        "manifest": 1,
        "repository": 1,
        "blob": 2,
        "object": 1,
    }
    assert report.content_bytes["object", "unreferenced"] == len(BIG)
    with pytest.raises(NameUnknown):
        loop.run(shop.tags.list(APP, last="", entries=1))
    told = [(kind, repository) for kind, repository, _, _, actor in loop.run(shop.feed()) if actor == "collector"]
    assert sorted(told) == [
        ("blob.collected", ""),
        ("blob.collected", ""),
        ("blob.unlinked", APP),
        ("blob.unlinked", APP),
        ("manifest.collected", APP),
        ("repository.collected", APP),
    ]


def test_a_shared_layer_stays_with_the_other_image_and_leaves_the_repository_without_one(
    shop: Shop, loop: asyncio.Runner
) -> None:
    """Two repositories with the same base: one is cleared, the other must notice nothing (I3, I4)."""
    loop.run(shop.image(BIG, tags=(V1,)))
    gone = loop.run(shop.image(BIG, tags=(V1,), repository=OTHER))

    loop.run(shop.manifests.delete(OTHER, gone, actor="ann"))
    loop.run(shop.collect())

    loop.run(shop.blobs.stat(APP, Digest.of(BIG), for_push=False))
    with pytest.raises(BlobUnknown):
        loop.run(shop.blobs.stat(OTHER, Digest.of(BIG), for_push=False))
    assert len(shop.files()) == 1


def test_an_index_keeps_its_children_and_they_go_after_it(shop: Shop, loop: asyncio.Runner) -> None:
    """A child that is deleted by itself is still a part of what the index promises."""
    child = loop.run(shop.image(BIG))
    listed = [{"mediaType": media_types.OCI_MANIFEST, "digest": str(child), "size": size(shop, loop, child)}]
    parent = loop.run(shop.put(index("a", manifests=listed), V1))

    loop.run(shop.manifests.delete(APP, child, actor="ann"))
    loop.run(shop.collect())
    assert set(loop.run(shop.ids())) == {child, parent}
    assert len(shop.files()) == 1

    loop.run(shop.manifests.delete(APP, parent, actor="ann"))
    loop.run(shop.collect())
    assert loop.run(shop.ids()) == {}
    assert shop.files() == []


def size(shop: Shop, loop: asyncio.Runner, digest: Digest) -> int:
    """Return the bytes of a manifest."""
    return len(loop.run(shop.manifests.get(APP, digest)).payload)


def test_untagged_manifests_stay_unless_the_policy_lets_them_go(shop: Shop, loop: asyncio.Runner) -> None:
    """A signature belongs to its subject, an index's child to its index; only what nothing names may go."""
    subject = loop.run(shop.put(index("subject"), V1))
    signature = loop.run(
        shop.put(
            index(
                "signature",
                subject={"mediaType": media_types.OCI_INDEX, "digest": str(subject), "size": len(index("subject"))},
            )
        )
    )
    child = loop.run(shop.put(index("child")))
    listed = [{"mediaType": media_types.OCI_INDEX, "digest": str(child), "size": len(index("child"))}]
    parent = loop.run(shop.put(index("parent", manifests=listed), V2))
    loose = loop.run(shop.put(index("loose")))

    loop.run(shop.collect(search=True))
    assert set(loop.run(shop.ids())) == {subject, signature, child, parent, loose}

    loop.run(shop.collect(delete_untagged=True, search=True))
    assert ("manifest.deleted", APP, None, loose, "collector") in loop.run(shop.feed())
    loop.run(shop.collect())
    assert set(loop.run(shop.ids())) == {subject, signature, child, parent}

    loop.run(shop.manifests.delete(APP, subject, actor="ann"))
    loop.run(shop.collect(delete_untagged=True, search=True))
    loop.run(shop.collect())
    assert set(loop.run(shop.ids())) == {child, parent}


def test_what_may_come_back_and_what_is_on_its_way_is_kept(tmp_path: Path, loop: asyncio.Runner) -> None:
    """The undo window for what was deleted, the lease for what was pushed, the delay for the file of what went."""
    with opened(tmp_path, loop, Retention()) as shop:
        overwritten = loop.run(shop.image(BIG, tags=(V1,)))
        deleted = loop.run(shop.image(BIG, tags=(V1,), mark="second"))
        loop.run(shop.manifests.delete(APP, deleted, actor="ann"))
        loop.run(shop.push_blob(b"a layer whose manifest is not pushed yet"))
        before = {table.name: loop.run(shop.rows(table, *table.c.keys())) for table in CONTENT}

        loop.run(shop.run(sa.update(schema.gc_manifest_queue).values(review_after_us=0)))
        loop.run(shop.run(sa.update(schema.gc_blob_queue).values(review_after_us=0)))
        report = loop.run(shop.collect(delete_untagged=True, search=True))

        assert not report
        after = {table.name: loop.run(shop.rows(table, *table.c.keys())) for table in CONTENT}
        for queue in QUEUES:
            del before[queue.name], after[queue.name]
        assert after == before
        assert set(loop.run(shop.ids())) == {overwritten, deleted}
        assert all(when > 0 for (when,) in loop.run(shop.rows(schema.gc_blob_queue, "review_after_us")))


def test_a_row_that_no_queue_remembers_is_found(shop: Shop, loop: asyncio.Runner) -> None:
    """Queues are written by many places, and one of them may be wrong one day; a hundred lost rows cost nothing."""
    for number in range(50):
        digest = loop.run(shop.image(BIG + b"%d" % number, tags=(V1,)))
        loop.run(shop.manifests.delete(APP, digest, actor="ann"))
    for table in (*QUEUES, schema.tag_history):
        loop.run(shop.run(sa.delete(table)))

    loop.run(shop.collect())
    assert len(shop.files()) == 50
    loop.run(shop.collect(search=True))

    assert shop.files() == []
    assert loop.run(shop.rows(schema.blobs, "id")) == []


def test_a_manifest_that_comes_too_late_is_refused_and_its_layer_can_be_pushed_again(
    shop: Shop, loop: asyncio.Runner
) -> None:
    """Without a lease the layer is gone when the manifest comes; never a manifest without its layer (S2)."""
    loop.run(shop.push_blob(BIG))
    loop.run(shop.collect())

    with pytest.raises(ManifestBlobUnknown):
        loop.run(manifest_of(shop, BIG))
    digest = loop.run(shop.image(BIG, tags=(V1,)))

    assert loop.run(shop.manifests.get(APP, V1)).digest == digest
    assert len(shop.files()) == 1


async def manifest_of(shop: Shop, layer: bytes) -> None:
    """Push a manifest, and not what it refers to."""
    payload = json.dumps({"schemaVersion": 2, "config": described(layer), "layers": []}).encode()
    await shop.manifests.put(APP, payload, media_types.OCI_MANIFEST, digest=None, names=(V1,), actor="ann")


def test_an_object_that_a_blob_names_is_never_deleted(shop: Shop, loop: asyncio.Runner) -> None:
    """Keys are never used twice, so this cannot be; were it so all the same, the bytes would be somebody's (S1)."""
    loop.run(shop.image(BIG, tags=(V1,)))
    ((store_id, object_key),) = loop.run(shop.rows(schema.blob_extents, "store_id", "object_key"))
    values = {"store_id": store_id, "object_key": object_key, "not_before_us": 0, "reason": "a bug"}
    loop.run(shop.run(sa.insert(schema.doomed_objects).values(values)))

    loop.run(shop.collect())

    assert len(shop.files()) == 1


def test_a_file_that_no_row_speaks_of_goes_when_it_has_settled(shop: Shop, loop: asyncio.Runner) -> None:
    """As after the restore of an older database; one whose commit is under way looks the same for a moment."""
    key = f"ab/ab{'0' * 62}.00000000-0000-0000-0000-000000000000"
    (shop.data / "objects" / key).write_bytes(BIG)

    assert loop.run(shop.store.settled_in(0xAB, before=0.0)) == (1, [])
    assert loop.run(shop.store.settled_in(0xAB, before=2.0**40)) == (1, [key])
    (shop.data / "uploads" / key.partition(".")[2]).touch()
    assert loop.run(shop.store.settled_in(0xAB, before=2.0**40)) == (1, [])
    assert loop.run(shop.collect(search=True)).counts == {}
    assert (shop.data / "objects" / key).exists()


def test_objects_whose_file_is_gone_already_are_forgotten(shop: Shop, loop: asyncio.Runner) -> None:
    """A collector that was killed after the file and before the row begins there again."""
    digest = loop.run(shop.image(BIG, tags=(V1,)))
    loop.run(shop.manifests.delete(APP, digest, actor="ann"))
    for path in shop.files():
        path.unlink()

    report = loop.run(shop.collect())

    assert report.counts["object", "unreferenced"] == 1
    assert loop.run(shop.rows(schema.doomed_objects, "id")) == []


def test_one_file_that_cannot_be_deleted_keeps_no_other_from_it(shop: Shop, loop: asyncio.Runner) -> None:
    """Something else lies in its place: its row waits for another time, and the rest is deleted."""
    for content in (BIG, BIG + b"2"):
        digest = loop.run(shop.image(content, tags=(V1,)))
        loop.run(shop.manifests.delete(APP, digest, actor="ann"))
    stuck, _ = shop.files()
    stuck.rename(shop.data / "aside")
    stuck.mkdir()

    report = loop.run(shop.collect())

    assert report.counts["object", "unreferenced"] == 1
    assert shop.files() == []
    ((not_before_us,),) = loop.run(shop.rows(schema.doomed_objects, "not_before_us"))
    assert not_before_us > now_us()
    stuck.rmdir()
    (shop.data / "aside").rename(stuck)
    loop.run(shop.run(sa.update(schema.doomed_objects).values(not_before_us=0)))
    loop.run(shop.collect())
    assert shop.files() == []
    assert loop.run(shop.rows(schema.doomed_objects, "id")) == []


def test_a_collection_now_ends_while_clients_push(shop: Shop, loop: asyncio.Runner) -> None:
    """What comes while it hurries waits for a lease, too: going on for that would never end on a busy registry."""
    for number in range(3):
        loop.run(shop.push_blob(b"%d" % number))
    at_us = now_us() - 1_000_000

    async def hurry(entries: int) -> bool:
        return await shop.database.release(backlog.hurry, at_us=at_us, entries=entries)

    assert loop.run(hurry(2))
    assert not loop.run(hurry(2))
    loop.run(shop.push_blob(b"another one, meanwhile"))
    assert not loop.run(hurry(2))


def test_a_clock_that_is_set_back_does_not_make_a_review_go_round(tmp_path: Path, loop: asyncio.Runner) -> None:
    """What is to be kept until an hour that was over a moment ago is postponed beyond it, and the round ends."""
    with opened(tmp_path, loop, Retention()) as shop:
        digest = loop.run(shop.image(BIG, tags=(V1,)))
        loop.run(shop.manifests.delete(APP, digest, actor="ann"))
        loop.run(shop.push_blob(b"its manifest is on its way"))
        due_us = now_us() + 30 * DAY_US
        at_us = now_us()

        async def seen(review: Callable[..., tuple[int, list[Removed]]], **policy: bool) -> tuple[int, list[Removed]]:
            rules: dict[str, Any] = {"due_us": due_us, "at_us": at_us, "retention": shop.retention, "entries": 10}
            return await shop.database.release(lambda tx: review(tx, **rules, **policy))

        for review, policy, count in (
            (collection.review_manifests, {"delete_untagged": False}, 1),
            (collection.review_blobs, {}, 3),
        ):
            assert loop.run(seen(review, **policy)) == (count, [])
            assert loop.run(seen(review, **policy)) == (0, [])


def test_what_is_forgotten_late_is_not_what_has_the_number_now(shop: Shop, loop: asyncio.Runner) -> None:
    """A commit that took too long may come after the next round; numbers of rows come back, keys do not (I2)."""
    row = {"store_id": 1, "not_before_us": 0, "reason": "unreferenced"}
    loop.run(shop.run(sa.insert(schema.doomed_objects).values(id=1, object_key="aa/another", **row)))

    loop.run(shop.database.release(collection.forget_objects, [Doomed(1, "aa/late", "unreferenced")]))

    assert loop.run(shop.rows(schema.doomed_objects, "object_key")) == [("aa/another",)]


def test_an_untagged_manifest_goes_in_one_round_where_there_is_no_undo_window(shop: Shop, loop: asyncio.Runner) -> None:
    """`lading garbage-collect --now --delete-untagged` is to leave nothing for the next time."""
    loop.run(shop.image(BIG))

    report = loop.run(shop.collect(delete_untagged=True, search=True))

    assert {what for what, _ in report.counts} == {"untagged manifest", "manifest", "blob", "object", "repository"}
    assert shop.files() == []


def test_a_lease_is_not_given_to_who_has_the_number_of_a_repository_that_went(shop: Shop, loop: asyncio.Runner) -> None:
    """A look into the one and a lease for the other would say that a blob is there which is not (I4)."""
    digest = Digest.of(BIG)
    loop.run(shop.image(BIG, tags=(V1,), repository=OTHER))
    loop.run(shop.push_blob(BIG))
    ((gone_id, _),) = [row for row in loop.run(shop.rows(schema.repositories, "id", "name")) if row[1] == APP]
    loop.run(shop.collect())
    loop.run(shop.image(BIG, tags=(V1,), repository="team/newcomer"))
    assert (gone_id, "team/newcomer") in loop.run(shop.rows(schema.repositories, "id", "name"))

    async def extend(repository: str) -> bool:
        return await shop.database.write(
            blobs.extend_lease, repository, digest, at_us=now_us(), retention=shop.retention
        )

    assert not loop.run(extend(APP))
    assert loop.run(extend(OTHER))


def test_a_layer_that_many_repositories_had_in_common_goes_in_small_pieces(shop: Shop, loop: asyncio.Runner) -> None:
    """A push waits for a transaction, so none of them may be about thousands of repositories."""
    digest, count = Digest.of(BIG), 2 * collection.LINKS + 1
    loop.run(shop.push_blob(BIG))
    for number in range(1, count):
        loop.run(shop.blobs.mount(f"team/{number}", digest, source=APP, may_pull=lambda _: True, actor="ann"))
    at_us = now_us()

    async def review() -> tuple[int, list[Removed]]:
        return await shop.database.release(
            collection.review_blobs, due_us=at_us, at_us=at_us, retention=shop.retention, entries=1
        )

    seen = [Counter(removed.what for removed in loop.run(review())[1]) for _ in range(4)]

    assert seen == [
        {"repository": collection.LINKS},
        {"repository": collection.LINKS},
        {"repository": 1, "blob": 1},
        {},
    ]
