"""Repositories: made by their first content, listed in the catalog while they have a live manifest."""

import sqlalchemy as sa

from lading.metadata import feed
from lading.metadata.database import Prepared
from lading.metadata.schema import repositories

_FIND = Prepared(sa.select(repositories.c.id).where(repositories.c.name == sa.bindparam("name")))
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


def find(tx: sa.Connection, name: str) -> int | None:
    """Return the repository's id, or None."""
    row = _FIND.one(tx, name=name)
    return None if row is None else int(row[0])


def ensure(tx: sa.Connection, name: str, *, actor: str, at_us: int) -> int:
    """Return the repository's id; make the repository when this is its first content."""
    found = find(tx, name)
    if found is not None:
        return found
    repo_id = _CREATE.insert(tx, name=name, manifest_count=0, created_us=at_us)
    feed.append(tx, feed.Kind.REPOSITORY_CREATED, repository=name, actor=actor, at_us=at_us)
    return repo_id


def count_manifests(tx: sa.Connection, repo_id: int, change: int) -> None:
    """Add `change` to the number of live manifests."""
    _COUNT.run(tx, repo_id=repo_id, change=change)


def catalog(tx: sa.Connection, *, last: str, entries: int) -> list[str]:
    """Return up to `entries` names after `last`, in bytewise order, of repositories with a live manifest."""
    return [row[0] for row in _CATALOG.all(tx, last=last, entries=entries)]
