"""What changes leave behind: feed rows, the tags' history, the collector's queues and the catalog's count."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.metadata import blobs, feed, manifests, repositories, schema, stores, tags
from lading.metadata.database import Database
from lading.metadata.feed import Kind
from lading.metadata.garbage import Retention
from lading.metadata.manifests import References
from lading.oci import media_types
from lading.oci.digest import Digest
from lading.oci.errors import LadingError, ManifestUnknown
from lading.oci.manifest import Manifest, parse
from lading.oci.names import Tag
from lading.registry.blobs import Blobs
from lading.registry.manifests import Manifests
from lading.registry.tags import Tags
from lading.registry.uploads import Part, UploadLimits, Uploads
from lading.storage import identity
from lading.storage.disk import DiskStore
from lading.storage.identity import DatabaseFile, Marker, Watch

APP = "team/app"
INLINE_BYTES = 16
RETENTION = Retention()
BIG = b"bytes that are too many for a row of the database"
V1, V2 = Tag("v1"), Tag("v2")


def index(mark: str, **more: object) -> bytes:
    """Return an index without children, another one for each mark."""
    return json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"mark": mark}, **more}).encode()


class House:
    """A database and a store with the use cases over them, and the rows as a reader sees them."""

    def __init__(self, data: Path, retention: Retention = RETENTION) -> None:
        self.retention = retention
        self.store = DiskStore(data)
        self.store.prepare()
        self.data = data
        self.database = Database(data / "lading.db")
        self.manifests = Manifests(
            self.database, self.store, retention=retention, sparse=False, deletes_enabled=True, may_delete_children=True
        )
        self.tags = Tags(self.database, retention=retention, deletes_enabled=True)
        marker = Marker("store", "database")
        identity.write(data, marker)
        self.watch = Watch(data, marker, DatabaseFile.at(data / "lading.db"))
        self.blobs = Blobs(self.database, self.store, self.watch, retention=retention, deletes_enabled=True)

    async def open(self) -> None:
        """Tie the store to the database."""
        if await self.database.read(stores.find) is None:
            await self.database.write(stores.create, "disk", "store", "database", at_us=1)
        store = await self.database.read(stores.find)
        assert store is not None
        limits = UploadLimits(
            ttl_seconds=60,
            max_blob_bytes=None,
            inline_max_bytes=INLINE_BYTES,
            max_sessions=1000,
            max_sessions_per_user=None,
        )
        self.uploads = Uploads(
            self.database, self.store, self.watch, store_id=store.id, limits=limits, retention=self.retention
        )

    async def put(self, payload: bytes, *names: Tag, actor: str = "ann", repository: str = APP) -> Digest:
        """Push a manifest."""
        accepted = await self.manifests.put(
            repository, payload, media_types.OCI_INDEX, digest=None, names=names, actor=actor
        )
        return accepted.digest

    async def push_blob(self, content: bytes, *, actor: str = "ann", repository: str = APP) -> Digest:
        """Push a blob."""

        async def pieces() -> AsyncIterator[Sequence[bytes]]:
            yield [content]

        digest = Digest.of(content)
        upload_id = await self.uploads.start(repository, actor=actor)
        await self.uploads.commit(repository, upload_id, digest, Part(pieces()), actor=actor)
        return digest

    async def rows(self, table: sa.Table, *columns: str) -> list[tuple[Any, ...]]:
        """Return columns of all rows of a table, in the order of its key."""
        query = sa.select(*(table.c[name] for name in columns)).order_by(*table.primary_key)
        return await self.database.scan(lambda tx: [tuple(row) for row in tx.execute(query)])

    async def feed(self) -> list[tuple[Any, ...]]:
        """Return kind, repository, tag, digest and actor of each feed row."""
        rows = await self.rows(schema.feed, "kind", "repository", "tag", "alg", "digest", "actor")
        return [
            (kind, repository, tag, alg and blobs.digest_of(alg, raw), actor)
            for kind, repository, tag, alg, raw, actor in rows
        ]

    async def ids(self) -> dict[Digest, int]:
        """Return the manifests' ids by their digests."""
        rows = await self.rows(schema.manifests, "alg", "digest", "id")
        return {blobs.digest_of(alg, raw): number for alg, raw, number in rows}


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """Return the loop that a test's calls share."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def house(path: Path, loop: asyncio.Runner) -> Iterator[House]:
    """Return an empty registry."""

    async def build() -> House:
        house = House(path.parent)
        await house.open()
        return house

    built = loop.run(build())
    yield built
    built.database.close()
    built.store.close()


# The feed


def test_a_push_writes_one_row_for_each_thing_it_made(house: House, loop: asyncio.Runner) -> None:
    """Webhooks, audit and the second site know what the feed tells, and nothing else (I6)."""
    digest = loop.run(house.put(index("a"), V1, V2))

    assert loop.run(house.feed()) == [
        (Kind.REPOSITORY_CREATED, APP, None, None, "ann"),
        (Kind.MANIFEST_PUT, APP, None, digest, "ann"),
        (Kind.TAG_SET, APP, "v1", digest, "ann"),
        (Kind.TAG_SET, APP, "v2", digest, "ann"),
    ]


def test_a_push_of_what_is_there_already_changes_nothing(house: House, loop: asyncio.Runner) -> None:
    """Builds push the same tag every hour, and a hook must not fire for it."""
    loop.run(house.put(index("a"), V1))
    before = loop.run(house.feed()), loop.run(house.rows(schema.tag_history, *schema.tag_history.c.keys()))

    loop.run(house.put(index("a"), V1, actor="bob"))

    assert (loop.run(house.feed()), loop.run(house.rows(schema.tag_history, *schema.tag_history.c.keys()))) == before


def test_a_tag_that_moves_and_a_tag_that_goes_have_their_rows(house: House, loop: asyncio.Runner) -> None:
    """Who follows the feed has to end with the same tags."""
    loop.run(house.put(index("a"), V1))
    second = loop.run(house.put(index("b"), V1, actor="bob"))
    loop.run(house.tags.delete(APP, V1, actor="cid"))

    assert loop.run(house.feed())[3:] == [
        (Kind.MANIFEST_PUT, APP, None, second, "bob"),
        (Kind.TAG_SET, APP, "v1", second, "bob"),
        (Kind.TAG_DELETED, APP, "v1", None, "cid"),
    ]


def test_a_deleted_manifest_tells_of_its_tags_first(house: House, loop: asyncio.Runner) -> None:
    """A follower that applied them the other way round would have tags of nothing."""
    digest = loop.run(house.put(index("a"), V1, V2))
    told = len(loop.run(house.feed()))

    loop.run(house.manifests.delete(APP, digest, actor="bob"))

    rows = loop.run(house.feed())[told:]
    assert sorted(rows[:-1]) == [
        (Kind.TAG_DELETED, APP, "v1", None, "bob"),
        (Kind.TAG_DELETED, APP, "v2", None, "bob"),
    ]
    assert rows[-1] == (Kind.MANIFEST_DELETED, APP, None, digest, "bob")


def test_a_blob_has_its_rows(house: House, loop: asyncio.Runner) -> None:
    """A second site copies a blob when it hears that one was linked."""
    digest = loop.run(house.push_blob(BIG))
    loop.run(house.blobs.mount("team/other", digest, source=APP, may_pull=lambda _: True, actor="bob"))
    loop.run(house.blobs.delete(APP, digest, actor="cid"))

    assert loop.run(house.feed()) == [
        (Kind.REPOSITORY_CREATED, APP, None, None, "ann"),
        (Kind.BLOB_LINKED, APP, None, digest, "ann"),
        (Kind.REPOSITORY_CREATED, "team/other", None, None, "bob"),
        (Kind.BLOB_LINKED, "team/other", None, digest, "bob"),
        (Kind.BLOB_DELETED, APP, None, digest, "cid"),
    ]


def parsed(payload: bytes) -> Manifest:
    return parse(payload, media_types.OCI_INDEX)


def put_and_tag(tx: sa.Connection, payload: bytes, tag: str) -> tuple[int, int]:
    """Store and tag a manifest; return the repository's id and the manifest's."""
    digest = Digest.of(payload)
    repo_id = repositories.ensure(tx, APP, actor="ann", at_us=5)
    number = manifests.put(tx, APP, repo_id, digest, parsed(payload), References(), actor="ann", at_us=5)
    tags.put(tx, APP, repo_id, tag, number, digest, actor="ann", at_us=5, retention=RETENTION)
    return repo_id, number


@pytest.mark.parametrize("change", ["push", "move", "delete a tag", "delete a manifest", "delete a blob"])
def test_a_change_that_is_undone_takes_its_rows_with_it(house: House, loop: asyncio.Runner, change: str) -> None:
    """A row of the feed without its change, or a change without its row, would part two sites for ever (I6)."""
    loop.run(house.push_blob(b"blob"))
    first = loop.run(house.put(index("a"), V1))
    everything = [(table, tuple(table.c.keys())) for table in schema.metadata.tables.values()]
    before = [loop.run(house.rows(table, *names)) for table, names in everything]

    def change_and_fail(tx: sa.Connection) -> None:
        fed = tx.execute(sa.select(sa.func.count()).select_from(schema.feed)).scalar_one()
        repo_id = repositories.find(tx, APP)
        assert repo_id is not None
        if change == "push":
            put_and_tag(tx, index("b"), "v2")
        elif change == "move":
            put_and_tag(tx, index("b"), "v1")
        elif change == "delete a tag":
            assert tags.delete(tx, APP, repo_id, "v1", actor="ann", at_us=9, retention=RETENTION)
        elif change == "delete a blob":
            linked = blobs.find(tx, APP, Digest.of(b"blob"))
            assert linked is not None
            blobs.hide(tx, linked, APP, actor="ann", at_us=9)
        else:
            live = manifests.find_live(tx, repo_id, first)
            assert live is not None
            assert tags.delete(tx, APP, repo_id, "v1", actor="ann", at_us=9, retention=RETENTION)
            manifests.hide(tx, APP, repo_id, live[0], first, actor="ann", at_us=9, retention=RETENTION)
        assert tx.execute(sa.select(sa.func.count()).select_from(schema.feed)).scalar_one() > fed
        raise ManifestUnknown

    with pytest.raises(ManifestUnknown):
        loop.run(house.database.write(change_and_fail))

    assert [loop.run(house.rows(table, *names)) for table, names in everything] == before


def test_the_feed_says_nothing_of_what_is_only_begun(house: House, loop: asyncio.Runner) -> None:
    """A session is no state of the registry: nobody can pull it."""
    loop.run(house.uploads.start(APP, actor="ann"))

    assert loop.run(house.feed()) == []
    assert loop.run(house.rows(schema.repositories, "name")) == []


# The history of a tag


def test_the_history_of_a_tag_keeps_who_when_from_and_to(house: House, loop: asyncio.Runner) -> None:
    """`What was in production last Friday` is answered by it, and a wrong push is undone by it."""

    def moves(tx: sa.Connection) -> None:
        repo_id = repositories.ensure(tx, APP, actor="ann", at_us=1)
        numbers = {}
        for mark in ("a", "b"):
            payload = index(mark)
            numbers[mark] = manifests.put(
                tx, APP, repo_id, Digest.of(payload), parsed(payload), References(), actor="ann", at_us=1
            )
        for mark, actor, at_us in (("a", "ann", 10), ("b", "bob", 20), ("b", "eve", 25), ("a", "cid", 30)):
            tags.put(
                tx,
                APP,
                repo_id,
                "v1",
                numbers[mark],
                Digest.of(index(mark)),
                actor=actor,
                at_us=at_us,
                retention=RETENTION,
            )
        assert tags.delete(tx, APP, repo_id, "v1", actor="dan", at_us=40, retention=RETENTION)
        assert not tags.delete(tx, APP, repo_id, "v1", actor="dan", at_us=45, retention=RETENTION)
        tags.put(
            tx, APP, repo_id, "v1", numbers["b"], Digest.of(index("b")), actor="eve", at_us=50, retention=RETENTION
        )

    loop.run(house.database.write(moves))

    ids = loop.run(house.ids())
    a, b = (ids[Digest.of(index(mark))] for mark in ("a", "b"))
    assert loop.run(house.rows(schema.tag_history, "name", "manifest_id", "from_us", "to_us", "actor")) == [
        ("v1", a, 10, 20, "ann"),
        ("v1", b, 20, 30, "bob"),
        ("v1", a, 30, 40, "cid"),
        ("v1", b, 50, None, "eve"),
    ]


def test_a_tag_that_went_has_no_open_row(house: House, loop: asyncio.Runner) -> None:
    """An open row says that the tag is there."""
    digest = loop.run(house.put(index("a"), V1, V2))
    loop.run(house.tags.delete(APP, V1, actor="bob"))
    loop.run(house.manifests.delete(APP, digest, actor="bob"))

    ends = loop.run(house.rows(schema.tag_history, "name", "to_us"))

    assert [name for name, _ in ends] == ["v1", "v2"]
    assert all(to_us is not None for _, to_us in ends)


# What the collector gets


def test_a_deleted_manifest_is_hidden_with_its_tags_and_can_come_back(house: House, loop: asyncio.Runner) -> None:
    """Deletes are undone more often than one thinks, so the row stays for the undo window."""
    digest = loop.run(house.put(index("a"), V1))

    loop.run(house.manifests.delete(APP, digest, actor="bob"))

    for gone in (digest, V1):
        with pytest.raises(ManifestUnknown):
            loop.run(house.manifests.get(APP, gone))
    assert loop.run(house.tags.list(APP, last="", entries=10)).names == []
    assert len(loop.run(house.ids())) == 1
    loop.run(house.put(index("a"), V1))
    assert loop.run(house.manifests.get(APP, V1)).payload == index("a")
    assert len(loop.run(house.ids())) == 1


def test_a_deleted_manifest_is_looked_at_after_the_undo_window(house: House, loop: asyncio.Runner) -> None:
    """A queue that misses it would keep its bytes for ever, and one that is early would make the undo a lie."""
    digest = loop.run(house.put(index("a"), V1))
    assert loop.run(house.rows(schema.gc_manifest_queue, "manifest_id")) == []

    loop.run(house.manifests.delete(APP, digest, actor="bob"))

    ((deleted_us,),) = loop.run(house.rows(schema.manifests, "deleted_us"))
    assert loop.run(house.rows(schema.gc_manifest_queue, "manifest_id", "review_after_us", "event")) == [
        (loop.run(house.ids())[digest], deleted_us + RETENTION.undo_us, "deleted")
    ]


@pytest.mark.parametrize("way", ["move", "delete"])
def test_a_manifest_that_lost_a_tag_is_looked_at_after_the_undo_window(
    house: House, loop: asyncio.Runner, way: str
) -> None:
    """It may have been the last one."""
    digest = loop.run(house.put(index("a"), V1))

    if way == "move":
        loop.run(house.put(index("b"), V1))
    else:
        loop.run(house.tags.delete(APP, V1, actor="bob"))

    (first, *_) = loop.run(house.rows(schema.tag_history, "to_us"))
    assert loop.run(house.rows(schema.gc_manifest_queue, "manifest_id", "review_after_us", "event")) == [
        (loop.run(house.ids())[digest], first[0] + RETENTION.undo_us, "untagged")
    ]


def test_a_pushed_blob_is_looked_at_when_its_lease_ends_and_a_deleted_one_no_earlier(
    house: House, loop: asyncio.Runner
) -> None:
    """Its manifest may be on the way, here or in another repository that links it."""
    loop.run(house.push_blob(BIG))
    ((keep_until_us,),) = loop.run(house.rows(schema.repo_blobs, "keep_until_us"))
    queued = loop.run(house.rows(schema.gc_blob_queue, "review_after_us", "event"))
    assert queued == [(keep_until_us, "linked")]

    loop.run(house.blobs.delete(APP, Digest.of(BIG), actor="bob"))

    assert loop.run(house.rows(schema.gc_blob_queue, "review_after_us", "event")) == [(keep_until_us, "deleted")]
    ((hidden_us,),) = loop.run(house.rows(schema.repo_blobs, "hidden_us"))
    assert hidden_us is not None


def test_a_push_over_lost_bytes_heals_and_dooms_the_old_object(house: House, loop: asyncio.Runner) -> None:
    """The new object has a name of its own, and the old one may still come back from a backup (E4, I2)."""
    loop.run(house.push_blob(BIG))
    ((old_key,),) = loop.run(house.rows(schema.blob_extents, "object_key"))
    (house.data / "objects" / old_key).unlink()

    digest = loop.run(house.push_blob(BIG, actor="bob"))

    ((new_key,),) = loop.run(house.rows(schema.blob_extents, "object_key"))
    assert new_key != old_key
    assert (house.data / "objects" / new_key).read_bytes() == BIG
    ((doomed, not_before_us, reason),) = loop.run(
        house.rows(schema.doomed_objects, "object_key", "not_before_us", "reason")
    )
    assert (doomed, reason) == (old_key, "replaced")
    ((keep_until_us,),) = loop.run(house.rows(schema.repo_blobs, "keep_until_us"))
    assert not_before_us == keep_until_us - RETENTION.lease_us + RETENTION.delay_us
    assert (Kind.BLOB_HEALED, APP, None, digest, "bob") in loop.run(house.feed())


def test_a_push_over_whole_bytes_keeps_them_and_dooms_nothing(house: House, loop: asyncio.Runner) -> None:
    """One copy is enough, and no row ever named the second one."""
    loop.run(house.push_blob(BIG))
    before = loop.run(house.rows(schema.blob_extents, "object_key"))

    loop.run(house.push_blob(BIG, repository="team/other"))

    assert loop.run(house.rows(schema.blob_extents, "object_key")) == before
    assert loop.run(house.rows(schema.doomed_objects, "id")) == []
    assert len([path for path in (house.data / "objects").glob("??/*") if path.is_file()]) == 1
    assert list((house.data / "uploads").iterdir()) == []


# The catalog's count


def test_the_catalog_lists_repositories_that_have_a_manifest(house: House, loop: asyncio.Runner) -> None:
    """A repository of blobs alone is a push that is not finished."""
    loop.run(house.push_blob(BIG, repository="blobs/only"))
    digest = loop.run(house.put(index("a")))

    def listed() -> list[str]:
        return loop.run(house.database.read(repositories.catalog, last="", entries=10))

    assert listed() == [APP]
    loop.run(house.manifests.delete(APP, digest, actor="ann"))
    assert listed() == []
    loop.run(house.put(index("a")))
    assert listed() == [APP]


names = itertools.count()
steps = st.lists(
    st.tuples(st.sampled_from(["put", "tag", "untag", "delete"]), st.sampled_from("abc"), st.sampled_from([V1, V2])),
    max_size=12,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=steps)
def test_the_count_of_manifests_is_that_of_a_recount(
    house: House, loop: asyncio.Runner, steps: list[tuple[str, str, Tag]]
) -> None:
    """A count that drifts hides a repository from the catalog, or shows an empty one, and no reader would notice."""
    repository = f"run/{next(names)}"

    async def walk() -> None:
        for verb, mark, tag in steps:
            try:
                if verb == "put":
                    await house.put(index(mark), repository=repository)
                elif verb == "tag":
                    await house.put(index(mark), tag, repository=repository)
                elif verb == "untag":
                    await house.tags.delete(repository, tag, actor="ann")
                else:
                    await house.manifests.delete(repository, Digest.of(index(mark)), actor="ann")
            except LadingError:
                continue

    def counts(tx: sa.Connection) -> tuple[int, int, int]:
        where = schema.repositories.c.name == repository
        joined = schema.repositories.join(schema.manifests)
        recount = sa.select(sa.func.count()).select_from(joined).where(where, schema.manifests.c.deleted_us.is_(None))
        dangling = (
            sa.select(sa.func.count())
            .select_from(joined.join(schema.tags, schema.tags.c.manifest_id == schema.manifests.c.id))
            .where(where, schema.manifests.c.deleted_us.is_not(None))
        )
        kept = tx.execute(sa.select(schema.repositories.c.manifest_count).where(where)).scalar()
        return kept or 0, tx.execute(recount).scalar_one(), tx.execute(dangling).scalar_one()

    loop.run(walk())
    kept, recounted, dangling = loop.run(house.database.scan(counts))

    assert kept == recounted
    assert dangling == 0


def test_kinds_of_the_feed_are_told_apart_by_what_they_are_of() -> None:
    """A follower switches on the part before the dot."""
    assert {kind.value.split(".")[0] for kind in feed.Kind} == {"repository", "blob", "manifest", "tag"}
