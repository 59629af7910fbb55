"""Bringing back what was deleted or overwritten, by the rows: what comes, what the feed and the checks say of it."""

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lading.metadata import schema, times
from lading.metadata.garbage import Retention
from lading.metadata.history import Naming, choose
from lading.metadata.invariants import CHECKS
from lading.oci import media_types
from lading.oci.digest import Digest
from lading.oci.errors import BlobUnknown, CommandRefused, LadingError, ManifestInUse, ManifestUnknown, NameUnknown
from lading.oci.names import Tag
from lading.registry.history import History, Restored
from lading.registry.manifests import Manifests
from lading.registry.repositories import Repositories
from tests.faults.checker import Checker
from tests.metadata.test_history import APP, BIG, RETENTION, V1, V2
from tests.upkeep.test_collection import AT_ONCE, Shop

OTHER, THIRD = "team/other", "team/third"
LAST_ROWS_FAIL = """
    CREATE TRIGGER full BEFORE INSERT ON feed
    WHEN NEW.kind IN ('repository.deleted', 'repository.renamed', 'tag.set')
    BEGIN SELECT raise(FAIL, 'full'); END
"""
DAY = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"


class Past(Shop):
    """A registry with its past."""

    def __init__(self, data: Path, retention: Retention) -> None:
        super().__init__(data, retention)
        self.history = History(self.database, self.store, retention=retention)
        self.repositories = Repositories(self.database, retention=retention)

    async def undo(self, tag: Tag = V1, repository: str = APP, *, to: Digest | None = None) -> Digest:
        """Restore a tag."""
        digest = await self.history.find(repository, tag, at_us=None, digest=to)
        await self.history.restore_tag(repository, tag, digest, actor="dee")
        return digest

    async def bring_back(self, repository: str = APP, *, at_us: int | None = None) -> Restored:
        """Restore a repository."""
        plan = await self.history.plan(repository, at_us=at_us)
        return await self.history.restore_repository(plan, actor="dee", step=lambda _: None)

    async def index(self, *children: Digest, tags: Sequence[Tag] = ()) -> Digest:
        """Push an index of manifests that are there."""
        described = []
        for child in children:
            stored = await self.manifests.get(APP, child)
            described.append({"mediaType": stored.media_type, "digest": str(child), "size": len(stored.payload)})
        payload = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": described}).encode()
        return await self.put(payload, *tags)

    async def names(self, repository: str = APP) -> dict[str, Digest]:
        """Return the tags with what they name."""
        found = await self.tags.described(repository, last="", entries=1000)
        return {tag.name: tag.digest for tag in found}

    async def faults(self) -> list[object]:
        """Return what `lading verify` and the tests' own checker say of the tables."""
        found = await self.database.scan(lambda tx: [fault for check in CHECKS for fault in check(tx)])
        return [*found, *Checker(self.data).problems()]


@pytest.fixture
def past(path: Path) -> Iterator[tuple[asyncio.Runner, Past]]:
    """Return an empty registry in which everything can be undone, and its loop."""
    yield from opened(path.parent, RETENTION)


@pytest.fixture
def forgetful(path: Path) -> Iterator[tuple[asyncio.Runner, Past]]:
    """Return an empty registry whose undo window is over at once, and its loop."""
    yield from opened(path.parent, AT_ONCE)


def opened(folder: Path, retention: Retention) -> Iterator[tuple[asyncio.Runner, Past]]:
    async def build() -> Past:
        built = Past(folder, retention)
        await built.open()
        return built

    with asyncio.Runner() as loop:
        built = loop.run(build())
        yield loop, built
        built.database.close()
        built.store.close()


Opened = tuple[asyncio.Runner, Past]


# Tags and manifests


def test_a_tag_goes_back_and_forth(past: Opened) -> None:
    """Whoever undoes the wrong thing undoes the undo, and the history keeps both."""
    loop, house = past
    first = loop.run(house.image(BIG, tags=(V1,), mark="a"))
    second = loop.run(house.image(BIG, tags=(V1,), mark="b"))

    for expected in (first, second, first):
        assert loop.run(house.undo()) == expected
        assert loop.run(house.names()) == {"v1": expected}

    actors = [actor for _, actor in loop.run(house.rows(schema.tag_history, "id", "actor"))]
    assert actors == ["ann", "ann", "dee", "dee", "dee"]
    assert loop.run(house.faults()) == []


def test_what_a_tag_was_is_found_by_moment_by_digest_and_by_neither() -> None:
    """Each way of asking has its own mistake to make at the edges."""
    a, b, c = (Digest.of(mark) for mark in (b"a", b"b", b"c"))
    moved = [Naming(b, 20, None), Naming(a, 10, 20)]
    again = [Naming(a, 50, None), Naming(a, 30, 40), Naming(b, 10, 30)]
    gone = [Naming(a, 10, 20)]

    def digest(past: list[Naming], *, at_us: int | None = None, to: Digest | None = None) -> Digest | None:
        found = choose(past, at_us=at_us, digest=to)
        return None if found is None else found.digest

    assert [digest(moved, at_us=at_us) for at_us in (9, 10, 19, 20, 99)] == [None, a, a, b, b]
    assert [digest(gone, at_us=at_us) for at_us in (19, 20)] == [a, None]
    assert [digest(past) for past in (moved, again, gone, [Naming(a, 10, None)], [])] == [a, b, a, None, None]
    assert [digest(moved, to=to) for to in (a, b, c)] == [a, b, None]


def test_an_index_comes_back_with_all_below_it(past: Opened) -> None:
    """An image of many platforms of which one is missing pulls on some machines, and not on others."""
    loop, house = past
    leaves = [loop.run(house.image(BIG, mark=mark)) for mark in "ab"]
    inner = loop.run(house.index(*leaves))
    outer = loop.run(house.index(inner, tags=(V1, V2)))
    for digest in (outer, leaves[0], inner, leaves[1]):
        loop.run(house.manifests.delete(APP, digest, actor="bob"))
    for blob in (BIG, b"small"):
        loop.run(house.blobs.delete(APP, Digest.of(blob), actor="bob"))

    loop.run(house.undo())

    for digest in (outer, inner, *leaves):
        assert loop.run(house.manifests.get(APP, digest)).digest == digest
    assert loop.run(house.blobs.stat(APP, Digest.of(BIG), for_push=False)) == len(BIG)
    assert loop.run(house.names()) == {"v1": outer}
    assert loop.run(house.faults()) == []
    kinds = [row[0] for row in loop.run(house.feed())]
    assert kinds[-7:] == ["blob.linked"] * 2 + ["manifest.restored"] * 4 + ["tag.set"]


def test_an_image_whose_bytes_are_lost_is_not_restored(past: Opened) -> None:
    """A tag of what cannot be pulled is worse than none; the sentence says what to push."""
    loop, house = past
    loop.run(house.image(BIG, tags=(V1,)))
    loop.run(house.tags.delete(APP, V1, actor="bob"))
    (file,) = house.files()
    file.rename(file.with_suffix(".lost"))
    before = loop.run(house.feed())

    with pytest.raises(BlobUnknown, match=rf"{Digest.of(BIG)} are lost; push"):
        loop.run(house.undo())

    assert loop.run(house.feed()) == before
    file.with_suffix(".lost").rename(file)
    loop.run(house.undo())


def test_a_child_of_an_index_is_deleted_or_not_by_setting(past: Opened) -> None:
    """Some want to withdraw one platform, others to be kept from it; the answer names what holds it."""
    loop, house = past
    child = loop.run(house.image(BIG))
    parents = [loop.run(house.index(child, tags=(tag,))) for tag in (V1,)]
    strict = Manifests(
        house.database, house.store, retention=RETENTION, sparse=False, deletes_enabled=True, may_delete_children=False
    )

    with pytest.raises(ManifestInUse) as refused:
        loop.run(strict.delete(APP, child, actor="bob"))
    assert refused.value.detail == [{"manifest": str(parent)} for parent in parents]
    for digest in (*parents, child):
        loop.run(strict.delete(APP, digest, actor="bob"))


# Repositories


def test_a_repository_comes_back_as_it_was(past: Opened) -> None:
    """Tags, and manifests without a tag: all that the delete took, and nothing that was gone before."""
    loop, house = past
    tagged = loop.run(house.image(BIG, tags=(V1, V2), mark="a"))
    untagged = loop.run(house.image(BIG, mark="b"))
    gone = loop.run(house.image(BIG, tags=(Tag("old"),), mark="c"))
    loop.run(house.manifests.delete(APP, gone, actor="bob"))
    loop.run(house.repositories.delete(APP, actor="bob"))

    assert loop.run(house.repositories.page(after="", entries=10, deleted=False)) == []
    for digest in (tagged, untagged):
        with pytest.raises(NameUnknown):
            loop.run(house.manifests.get(APP, digest))
    with pytest.raises(BlobUnknown):
        loop.run(house.blobs.stat(APP, Digest.of(BIG), for_push=False))
    assert loop.run(house.faults()) == []
    done = loop.run(house.bring_back())

    assert (done.tags, done.manifests, done.failed) == (2, 2, [])
    assert loop.run(house.names()) == {"v1": tagged, "v2": tagged}
    assert loop.run(house.manifests.get(APP, untagged)).digest == untagged
    with pytest.raises(ManifestUnknown):
        loop.run(house.manifests.get(APP, gone))
    assert loop.run(house.repositories.contents(APP)).manifests == 2
    assert loop.run(house.faults()) == []


def test_a_restoration_that_was_cut_short_is_begun_again(past: Opened) -> None:
    """It is done in pieces, so that pushes go on; a machine may stop between two of them."""
    loop, house = past
    many = [Tag(f"v{number}") for number in range(150)]
    digest = loop.run(house.image(BIG, tags=tuple(many)))
    loop.run(house.repositories.delete(APP, actor="bob"))
    plan = loop.run(house.history.plan(APP, at_us=None))

    def stop_at_the_second(amount: int) -> None:
        if amount:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run(house.history.restore_repository(plan, actor="dee", step=stop_at_the_second))
    assert loop.run(house.faults()) == []
    assert loop.run(house.manifests.get(APP, many[0])).digest == digest
    loop.run(house.bring_back())

    assert loop.run(house.names()) == {tag.name: digest for tag in many}
    assert loop.run(house.faults()) == []


def test_a_push_begins_a_deleted_repository_anew(past: Opened) -> None:
    """Whoever deletes a repository and pushes again wants a new one; what was before comes back when asked for."""
    loop, house = past
    old = loop.run(house.image(BIG, tags=(V1,), mark="a"))
    loop.run(house.repositories.delete(APP, actor="bob"))
    new = loop.run(house.image(BIG, tags=(V2,), mark="b"))

    assert loop.run(house.names()) == {"v2": new}
    with pytest.raises(CommandRefused, match="is not deleted; it was last on") as refused:
        loop.run(house.bring_back())
    loop.run(house.bring_back(at_us=times.parse(refused.value.hint.rpartition(" ")[2])))

    assert loop.run(house.names()) == {"v1": old, "v2": new}
    assert loop.run(house.faults()) == []


def test_a_restoration_stops_when_the_repository_is_deleted_meanwhile(past: Opened) -> None:
    """Two operators at once: what the second one deletes must not come back by halves."""
    loop, house = past
    loop.run(house.image(BIG, tags=(V1,)))
    loop.run(house.repositories.delete(APP, actor="bob"))
    plan = loop.run(house.history.plan(APP, at_us=None))
    loop.run(house.bring_back())
    loop.run(house.repositories.delete(APP, actor="bob"))

    with pytest.raises(CommandRefused, match="meanwhile"):
        loop.run(house.history.restore_repository(plan, actor="dee", step=lambda _: None))

    assert loop.run(house.faults()) == []


def test_names_go_round_and_the_feed_still_fits_the_history(past: Opened) -> None:
    """The feed tells of names, the tables of rows: a name that was another repository's must not confuse the two."""
    loop, house = past
    loop.run(house.image(BIG, tags=(V1,), mark="a"))
    loop.run(house.image(BIG, tags=(V1,), mark="b"))
    upload = loop.run(house.uploads.start(APP, actor="ann"))
    loop.run(house.repositories.rename(APP, OTHER, actor="bob"))
    assert loop.run(house.uploads.offset(OTHER, upload, actor="ann")) == 0
    second = loop.run(house.image(BIG, tags=(V1,), mark="c"))
    loop.run(house.tags.delete(APP, V1, actor="bob"))
    assert loop.run(house.faults()) == []
    with pytest.raises(CommandRefused, match=f"there is a repository {APP}"):
        loop.run(house.repositories.rename(OTHER, APP, actor="bob"))

    loop.run(house.repositories.rename(APP, THIRD, actor="bob"))
    loop.run(house.repositories.rename(OTHER, APP, actor="bob"))
    loop.run(house.repositories.delete(THIRD, actor="bob"))
    assert loop.run(house.faults()) == []
    with pytest.raises(CommandRefused, match="can still be restored"):
        loop.run(house.repositories.rename(APP, THIRD, actor="bob"))
    loop.run(house.bring_back(THIRD))
    assert loop.run(house.undo(repository=THIRD)) == second
    loop.run(house.undo())

    assert loop.run(house.faults()) == []
    assert list(loop.run(house.history.deleters(THIRD, "v1")).values()) == ["bob", "bob"]
    assert len(loop.run(house.history.deleters(APP, "v1"))) == 0


# After the window


def test_after_the_window_the_error_says_what_a_tag_named_until_when_and_when_that_went(forgetful: Opened) -> None:
    """The question then is not how to restore it, but from which backup."""
    loop, house = forgetful
    first = loop.run(house.image(BIG, tags=(V1, V2), mark="a"))
    second = loop.run(house.image(BIG, tags=(V1,), mark="b"))
    loop.run(house.manifests.delete(APP, first, actor="bob"))
    loop.run(house.collect())

    told = rf"named {first} until {DAY}; it was removed for good on {DAY}"
    for tag, to in ((V1, None), (V1, first), (V2, None)):
        with pytest.raises(ManifestUnknown, match=rf"{APP}:{tag} {told}"):
            loop.run(house.undo(tag, to=to))
    with pytest.raises(ManifestUnknown, match=f"never named {Digest.of(b'')}"):
        loop.run(house.undo(to=Digest.of(b"")))
    with pytest.raises(ManifestUnknown, match=f"{APP} never had a tag v9"):
        loop.run(house.undo(Tag("v9")))

    loop.run(house.repositories.delete(APP, actor="bob"))
    loop.run(house.collect())

    with pytest.raises(NameUnknown, match=rf"{APP} was deleted on {DAY}; it was removed for good on {DAY}"):
        loop.run(house.bring_back())
    with pytest.raises(ManifestUnknown, match=rf"named {second} until {DAY}; it was removed for good on {DAY}"):
        loop.run(house.undo())
    with pytest.raises(NameUnknown, match=f"there is no repository {OTHER}"):
        loop.run(house.bring_back(OTHER))


def test_what_something_else_keeps_is_restored_after_the_window(forgetful: Opened) -> None:
    """The manifest is there by another tag, so nothing but the tag's own row has gone."""
    loop, house = forgetful
    digest = loop.run(house.image(BIG, tags=(V1, V2)))
    loop.run(house.tags.delete(APP, V1, actor="bob"))
    loop.run(house.collect())
    assert loop.run(house.history.events(APP, "v1", entries=9)).events == []

    assert loop.run(house.undo()) == digest

    assert loop.run(house.names()) == {"v1": digest, "v2": digest}


def test_a_repository_whose_content_went_meanwhile_is_not_restored_by_halves(past: Opened) -> None:
    """The collector may be between the question and the answer; what is left comes back, the rest is named."""
    loop, house = past
    kept = loop.run(house.image(BIG, tags=(V1,), mark="a"))
    lost = loop.run(house.image(BIG, tags=(V2,), mark="b"))
    loop.run(house.repositories.delete(APP, actor="bob"))
    plan = loop.run(house.history.plan(APP, at_us=None))
    for table in (schema.tag_history, schema.gc_manifest_queue):
        number = loop.run(house.ids())[lost]
        loop.run(house.run(table.delete().where(table.c.manifest_id == number)))
    loop.run(house.run(schema.manifests.delete().where(schema.manifests.c.digest == lost.raw)))

    done = loop.run(house.history.restore_repository(plan, actor="dee", step=lambda _: None))

    assert [re.sub(":.*", "", sentence) for sentence in done.failed] == ["v2", "sha256"]
    assert loop.run(house.names()) == {"v1": kept}


CHANGES = ("push", "push", "delete a tag", "delete a manifest", "delete", "undo", "restore", "rename", "collect")


async def change(house: Past, what: str, repository: str, tag: Tag, mark: str) -> None:
    match what:
        case "push":
            await house.image(BIG, tags=(tag,), repository=repository, mark=mark)
        case "delete a tag":
            await house.tags.delete(repository, tag, actor="bob")
        case "delete a manifest":
            await house.manifests.delete(repository, (await house.names(repository))[tag.name], actor="bob")
        case "delete":
            await house.repositories.delete(repository, actor="bob")
        case "undo":
            await house.undo(tag, repository)
        case "restore":
            await house.bring_back(repository)
        case "rename":
            await house.repositories.rename(repository, f"{repository}/{mark}", actor="bob")
        case _:
            await house.collect()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(CHANGES),
            st.sampled_from(["a", "a/p", "a/p/p"]),
            st.sampled_from([V1, V2]),
            st.sampled_from("pq"),
        ),
        max_size=16,
    ),
    st.sampled_from([RETENTION, AT_ONCE]),
)
def test_whatever_is_done_and_undone_the_feed_and_the_history_agree(
    migrated: bytes, steps: list[tuple[str, str, Tag, str]], retention: Retention
) -> None:
    """A second site follows the feed, an operator reads the history, and a restoration relies on both."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lading.db").write_bytes(migrated)
        for loop, house in opened(Path(folder), retention):
            for what, repository, tag, mark in steps:
                with contextlib.suppress(LadingError, KeyError):
                    loop.run(change(house, what, repository, tag, mark))
            assert loop.run(house.faults()) == []


@pytest.mark.parametrize("failing", ["delete a repository", "rename", "restore a tag", "restore a repository"])
def test_a_change_that_fails_leaves_nothing_behind(past: Opened, failing: str) -> None:
    """What is told in the feed happened, all of it (I6)."""
    loop, house = past
    loop.run(house.image(BIG, tags=(V1,), mark="a"))
    loop.run(house.image(BIG, tags=(V1,), mark="b"))
    if failing == "restore a repository":
        loop.run(house.repositories.delete(APP, actor="bob"))
    everything = [(table, tuple(table.c.keys())) for table in schema.metadata.tables.values()]
    before = [loop.run(house.rows(table, *names)) for table, names in everything]
    changes = {
        "delete a repository": house.repositories.delete(APP, actor="bob"),
        "rename": house.repositories.rename(APP, OTHER, actor="bob"),
        "restore a tag": house.undo(),
        "restore a repository": house.bring_back(),
    }
    loop.run(house.database.write(lambda tx: tx.exec_driver_sql(LAST_ROWS_FAIL).close()))

    with pytest.raises(LadingError):
        loop.run(changes.pop(failing))

    for other in changes.values():
        other.close()
    assert [loop.run(house.rows(table, *names)) for table, names in everything] == before
