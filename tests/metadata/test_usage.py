"""What takes room, by statements over tables and by sets over a small random registry: both say the same."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from lading.metadata import schema, usage
from lading.metadata.database import create_engine

NOW, UNDONE_UNTIL = 1000, 900
LONG_AGO, LATELY = 800, 950
REPOSITORIES, BLOBS = 3, 24
SEEDS = range(20)


@dataclass(slots=True)
class Item:
    """A manifest: the blobs that it names, its children, and when it was deleted."""

    id: int
    repo: int
    blobs: set[int]
    children: set[int]
    deleted_us: int | None
    history_us: int | None = None
    pulls: int = 0


@dataclass(slots=True)
class Model:
    """A registry as sets. A blob's size is a power of two, so that a sum tells which blobs are in it."""

    items: dict[int, Item] = field(default_factory=dict)
    links: dict[tuple[int, int], int] = field(default_factory=dict)
    tags: dict[tuple[int, str], int] = field(default_factory=dict)

    def below(self, roots: set[int]) -> set[int]:
        found = set(roots)
        while more := {child for item in found for child in self.items[item].children} - found:
            found |= more
        return found

    def live(self, without: frozenset[int] = frozenset()) -> set[int]:
        return self.below({i for i, item in self.items.items() if item.deleted_us is None and i not in without})

    def undoable(self) -> set[int]:
        return self.below(
            {
                i
                for i, item in self.items.items()
                if max(item.deleted_us or 0, item.history_us or 0) > UNDONE_UNTIL and item.deleted_us is not None
            }
        )

    def named(self, items: set[int]) -> set[int]:
        return {blob for item in items for blob in self.items[item].blobs}

    def state_bytes(self, blobs: set[int]) -> tuple[int, int, int]:
        live, undo = self.named(self.live()), self.named(self.undoable())
        return size(blobs & live), size(blobs & undo - live), size(blobs - live - undo)

    def linked(self, repo: int) -> set[int]:
        return {blob for (holder, blob) in self.links if holder == repo}

    def going(self, repo: int, names: set[str]) -> set[int]:
        """Return the biggest set below these tags that nothing outside it needs."""
        going = self.below({self.tags[repo, name] for name in names})
        while True:
            outside = {i for (of, name), i in self.tags.items() if (of, name) not in {(repo, n) for n in names}}
            needing = {child for i in self.live() - going for child in self.items[i].children}
            if not going & (outside | needing):
                return going
            going -= outside | needing

    def freed(self, repo: int, names: set[str]) -> set[int]:
        """Delete them, and compare what is needed before and after."""
        after = self.live(frozenset(self.going(repo, names)))
        return self.named(self.live()) - self.named(after)


def size(blobs: set[int]) -> int:
    return sum(2**blob for blob in blobs)


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def random_model(seed: int) -> Model:
    rng = random.Random(seed)
    model = Model()
    for number in range(1, rng.randint(4, 30)):
        repo = rng.randint(1, REPOSITORIES)
        below = [i for i, item in model.items.items() if item.repo == repo]
        is_index = below and rng.random() < 0.4
        children = set(rng.sample(below, rng.randint(1, min(3, len(below))))) if is_index else set()
        named = set() if children else set(rng.sample(range(BLOBS), rng.randint(1, 5)))
        item = Item(number, repo, named, children, rng.choice([None, None, None, LATELY, LONG_AGO]))
        if item.deleted_us == LONG_AGO:
            item.history_us = rng.choice([None, None, LATELY])
        item.pulls = rng.choice([0, rng.randint(1, 9)])
        model.items[number] = item
        for blob in named:
            model.links[repo, blob] = rng.choice([LONG_AGO, NOW + blob])
        if item.deleted_us is None:
            for tag in rng.sample(["v1", "v2", "v3", "latest"], rng.randint(0, 2)):
                model.tags[repo, tag] = number
    for _ in range(rng.randint(0, 6)):
        key = (rng.randint(1, REPOSITORIES), rng.randrange(BLOBS))
        model.links.setdefault(key, rng.choice([LONG_AGO, NOW + 1]))
    return model


def store(connection: sa.Connection, model: Model) -> None:
    def insert(table: sa.Table, rows: list[dict[str, object]]) -> None:
        if rows:
            connection.execute(sa.insert(table), rows)

    repos = range(1, REPOSITORIES + 1)
    counts = {repo: sum(i.repo == repo and i.deleted_us is None for i in model.items.values()) for repo in repos}
    insert(
        schema.repositories,
        [{"id": repo, "name": f"r{repo}", "manifest_count": counts[repo], "created_us": 1} for repo in repos],
    )
    insert(
        schema.blobs,
        [{"id": blob + 1, "alg": 1, "digest": digest(blob), "size": 2**blob, "created_us": 1} for blob in range(BLOBS)],
    )
    insert(
        schema.repo_blobs,
        [{"repo_id": repo, "blob_id": blob + 1, "keep_until_us": until} for (repo, blob), until in model.links.items()],
    )
    fixed = {"alg": 1, "media_type": "a/b", "size": 2, "created_us": 1, "payload": b"{}"}
    items = model.items.values()
    insert(
        schema.manifests,
        [
            {**fixed, "id": i.id, "repo_id": i.repo, "digest": digest(i.id), "deleted_us": i.deleted_us}
            # Each refers to the one before it as its subject, which keeps nothing.
            | {"subject_alg": 1, "subject_digest": digest(i.id - 1)}
            for i in items
        ],
    )
    # A manifest may name a blob twice.
    insert(
        schema.manifest_blobs,
        [
            {"manifest_id": i.id, "position": position, "blob_id": blob + 1, "repo_id": i.repo}
            for i in items
            for position, blob in enumerate([*sorted(i.blobs), *sorted(i.blobs)[:1]])
        ],
    )
    insert(
        schema.manifest_children,
        [
            {"parent_id": i.id, "position": child, "child_alg": 1, "child_digest": digest(child), "child_id": child}
            for i in items
            for child in i.children
        ]
        + [
            {"parent_id": i.id, "position": 99, "child_alg": 1, "child_digest": digest(99), "child_id": None}
            for i in items
            if i.children
        ],
    )
    insert(schema.tags, [{"repo_id": repo, "name": name, "manifest_id": i} for (repo, name), i in model.tags.items()])
    moved = {"name": "old", "from_us": 1, "actor": "ann"}
    insert(
        schema.tag_history,
        [
            {**moved, "repo_id": i.repo, "manifest_id": i.id, "to_us": i.history_us}
            for i in items
            if i.history_us is not None
        ],
    )
    insert(
        schema.manifest_pulls,
        [{"manifest_id": i.id, "pulls": i.pulls, "last_us": i.id} for i in items if i.pulls],
    )


@contextmanager
def asked(tx: sa.Connection) -> Iterator[None]:
    """Take back what a question noted down, so that another can be asked."""
    tx.exec_driver_sql("SAVEPOINT question")
    yield
    tx.exec_driver_sql("ROLLBACK TO question")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bytes_of_a_random_registry_are_those_that_sets_say(path: Path, seed: int) -> None:
    """Layers and configs are shared, indexes share children, referrers hold their own, and some are deleted."""
    model = random_model(seed)
    with create_engine(path).connect() as tx:
        tx.exec_driver_sql("BEGIN")
        store(tx, model)
        usage.begin(tx, undone_until_us=UNDONE_UNTIL)

        check_totals(tx, model)
        for found in usage.by_repository(tx):
            check_repository(found, model)
        for repo in range(1, REPOSITORIES + 1):
            with asked(tx):
                check_tags(usage.by_tag(tx, repo), repo, model)
            names = sorted(name for (of, name) in model.tags if of == repo)
            for chosen in (names, names[1:], names[:2]):
                with asked(tx):
                    if chosen:
                        check_deletion(usage.if_deleted(tx, repo, chosen), repo, set(chosen), model)


def check_totals(tx: sa.Connection, model: Model) -> None:
    everything = set(range(BLOBS))
    states = model.state_bytes(everything)
    unneeded = everything - model.named(model.live() | model.undoable())
    leases = {(blob, until) for (_, blob), until in model.links.items() if blob in unneeded and until > NOW}

    assert usage.totals(tx, at_us=NOW) == usage.Totals(
        size(everything),
        *states,
        size({blob for blob, _ in leases}),
        max((until for _, until in leases), default=None),
    )


def check_repository(found: usage.RepositoryUsage, model: Model) -> None:
    linked = model.linked(found.id)
    others = {blob for (repo, blob) in model.links if repo != found.id}
    kept = [model.items[i] for i in model.live() | model.undoable() if model.items[i].repo == found.id]
    _, undo, reclaimable = model.state_bytes(linked)

    assert (found.content_bytes, found.exclusive_bytes) == (size(linked), size(linked - others))
    assert (found.undo_bytes, found.reclaimable_bytes) == (undo, reclaimable)
    assert found.manifests == sum(i.repo == found.id and i.deleted_us is None for i in model.items.values())
    assert found.tags == sum(repo == found.id for repo, _ in model.tags)
    assert found.pulls == sum(item.pulls for item in kept)
    assert found.last_pull_us == max((item.id for item in kept if item.pulls), default=None)


def check_tags(found: list[usage.TagUsage], repo: int, model: Model) -> None:
    assert {tag.name for tag in found} == {name for (of, name) in model.tags if of == repo}
    assert [tag.content_bytes for tag in found] == sorted((tag.content_bytes for tag in found), reverse=True)
    for tag in found:
        item = model.items[model.tags[repo, tag.name]]
        assert tag.digest.raw == digest(item.id)
        assert tag.content_bytes == size(model.named(model.below({item.id})))
        assert tag.exclusive_bytes == size(model.freed(repo, {tag.name})), tag
        assert (tag.pulls, tag.last_pull_us) == (item.pulls, item.id if item.pulls else None)


def check_deletion(found: usage.Freed, repo: int, names: set[str], model: Model) -> None:
    freed = model.freed(repo, names)
    going = model.going(repo, names)

    assert found.content_bytes == size(freed), names
    assert [one.raw for one in found.manifests] == [digest(i) for i in sorted(going, reverse=True)]
    assert found.leased_until_us == max(
        (until for (_, blob), until in model.links.items() if blob in freed), default=None
    )
