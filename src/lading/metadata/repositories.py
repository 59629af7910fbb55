"""Repositories: made by their first content, listed in the catalog while they have a live manifest.

One that was deleted keeps its row, and with it what can be brought back; a push to the name revives it, empty.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import feed, garbage
from lading.metadata.database import Prepared
from lading.metadata.garbage import Retention
from lading.metadata.schema import manifests, repo_blobs, repositories, tag_history, tags, uploads

_FIND = Prepared(
    sa.select(repositories.c.id, repositories.c.deleted_us).where(repositories.c.name == sa.bindparam("name"))
)
_CREATE = Prepared(
    sa.insert(repositories).values(
        name=sa.bindparam("name"), manifest_count=sa.bindparam("manifest_count"), created_us=sa.bindparam("created_us")
    )
)
_COUNT = Prepared(
    sa.update(repositories)
    .where(repositories.c.id == sa.bindparam("repo_id"))
    .values(manifest_count=repositories.c.manifest_count + sa.bindparam("change"))
)
_CATALOG = Prepared(
    sa.select(repositories.c.name)
    .where(repositories.c.manifest_count > sa.literal_column("0"), repositories.c.name > sa.bindparam("last"))
    .order_by(repositories.c.name)
    .limit(sa.bindparam("entries"))
)


@dataclass(frozen=True, slots=True)
class Found:
    """A repository that has a row; `deleted_us` since when it is deleted."""

    id: int
    deleted_us: int | None


def find(tx: sa.Connection, name: str) -> int | None:
    """Return the repository's id, or None where there is none that is not deleted."""
    found = find_any(tx, name)
    return None if found is None or found.deleted_us is not None else found.id


def find_any(tx: sa.Connection, name: str) -> Found | None:
    """Return the repository, deleted or not."""
    row = _FIND.one(tx, name=name)
    return None if row is None else Found(*row)


def ensure(tx: sa.Connection, name: str, *, actor: str, at_us: int) -> int:
    """Return the repository's id; make the repository when this is its first content, or its first after a delete."""
    found = find_any(tx, name)
    if found is None:
        repo_id = _CREATE.insert(tx, name=name, manifest_count=0, created_us=at_us)
    elif found.deleted_us is None:
        return found.id
    else:
        repo_id = found.id
        _undelete(tx, repo_id)
    feed.append(tx, feed.Kind.REPOSITORY_CREATED, repository=name, actor=actor, at_us=at_us)
    return repo_id


def count_manifests(tx: sa.Connection, repo_id: int, change: int) -> None:
    """Add `change` to the number of live manifests."""
    _COUNT.run(tx, repo_id=repo_id, change=change)


def catalog(tx: sa.Connection, *, last: str, entries: int) -> list[str]:
    """Return up to `entries` names after `last`, in bytewise order, of repositories with a live manifest."""
    return [row[0] for row in _CATALOG.all(tx, last=last, entries=entries)]


@dataclass(frozen=True, slots=True)
class Contents:
    """How much a repository has for those who ask it. `deleted_us` since when it is deleted."""

    name: str
    tags: int
    manifests: int
    deleted_us: int | None


_CONTENTS = sa.select(
    repositories.c.name,
    sa.select(sa.func.count()).where(tags.c.repo_id == repositories.c.id).scalar_subquery(),
    repositories.c.manifest_count,
    repositories.c.deleted_us,
)


def contents(tx: sa.Connection, name: str) -> Contents | None:
    """Return how much the repository has, deleted or not."""
    row = tx.execute(_CONTENTS.where(repositories.c.name == name)).first()
    return None if row is None else Contents(*row)


def page(tx: sa.Connection, *, after: str, entries: int, deleted: bool) -> list[Contents]:
    """Return up to `entries` repositories after a name, in bytewise order: those that are deleted, or the others."""
    chosen = repositories.c.deleted_us.is_not(None) if deleted else repositories.c.deleted_us.is_(None)
    query = _CONTENTS.where(repositories.c.name > after, chosen).order_by(repositories.c.name).limit(entries)
    return [Contents(*row) for row in tx.execute(query)]


def delete(tx: sa.Connection, name: str, repo_id: int, *, actor: str, at_us: int, retention: Retention) -> None:
    """Take the repository away with all its content, at once; the row, the history and what is hidden stay.

    Every row of it that this changes gets this very moment, by which a restoration knows them again.
    """
    tx.execute(
        sa.update(tag_history)
        .where(tag_history.c.repo_id == repo_id, tag_history.c.to_us.is_(None))
        .values(to_us=at_us)
    )
    tx.execute(sa.delete(tags).where(tags.c.repo_id == repo_id))
    live = sa.and_(manifests.c.repo_id == repo_id, manifests.c.deleted_us.is_(None))
    garbage.review_manifests(tx, live, after_us=at_us + retention.undo_us, event="deleted")
    tx.execute(sa.update(manifests).where(live).values(deleted_us=at_us))
    shown = sa.and_(repo_blobs.c.repo_id == repo_id, repo_blobs.c.hidden_us.is_(None))
    garbage.review_blobs(tx, shown, after_us=at_us, event="deleted")
    tx.execute(sa.update(repo_blobs).where(shown).values(hidden_us=at_us))
    tx.execute(sa.update(repositories).where(repositories.c.id == repo_id).values(deleted_us=at_us, manifest_count=0))
    feed.append(tx, feed.Kind.REPOSITORY_DELETED, repository=name, actor=actor, at_us=at_us)


def restored(tx: sa.Connection, name: str, repo_id: int, *, actor: str, at_us: int) -> None:
    """End the repository's deletion, once what it had is back."""
    _undelete(tx, repo_id)
    feed.append(tx, feed.Kind.REPOSITORY_RESTORED, repository=name, actor=actor, at_us=at_us)


def rename(tx: sa.Connection, name: str, repo_id: int, new_name: str, *, actor: str, at_us: int) -> None:
    """Give the repository a name that no other has; its unfinished uploads go on under that."""
    tx.execute(sa.update(repositories).where(repositories.c.id == repo_id).values(name=new_name))
    tx.execute(sa.update(uploads).where(uploads.c.repository == name).values(repository=new_name))
    feed.append(tx, feed.Kind.REPOSITORY_RENAMED, repository=new_name, actor=actor, at_us=at_us, renamed_from=name)


def _undelete(tx: sa.Connection, repo_id: int) -> None:
    tx.execute(sa.update(repositories).where(repositories.c.id == repo_id).values(deleted_us=None))
