"""The feed: one row for every change of state, in the change's own transaction (I6), numbered without gaps."""

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from lading.metadata.database import Prepared
from lading.metadata.schema import feed
from lading.oci.digest import Algorithm, Digest


class Kind(StrEnum):
    """What happened."""

    REPOSITORY_CREATED = "repository.created"
    REPOSITORY_COLLECTED = "repository.collected"
    BLOB_LINKED = "blob.linked"
    BLOB_UNLINKED = "blob.unlinked"
    BLOB_DELETED = "blob.deleted"
    BLOB_DAMAGED = "blob.damaged"
    BLOB_HEALED = "blob.healed"
    BLOB_COLLECTED = "blob.collected"
    MANIFEST_PUT = "manifest.put"
    MANIFEST_HEALED = "manifest.healed"
    MANIFEST_DELETED = "manifest.deleted"
    MANIFEST_COLLECTED = "manifest.collected"
    TAG_SET = "tag.set"
    TAG_DELETED = "tag.deleted"


_APPEND = Prepared(
    sa.insert(feed).values({name: sa.bindparam(name) for name in feed.c.keys() if name != "seq"})  # noqa: SIM118
)


def append(  # noqa: PLR0913 - the columns of a row
    tx: sa.Connection,
    kind: Kind,
    *,
    repository: str,
    actor: str,
    at_us: int,
    tag: str | None = None,
    digest: Digest | None = None,
    renamed_from: str | None = None,
) -> None:
    """Add a row; call it after the change that it tells of."""
    _APPEND.insert(
        tx,
        at_us=at_us,
        kind=kind.value,
        repository=repository,
        tag=tag,
        alg=digest and int(digest.algorithm),
        digest=digest and digest.raw,
        actor=actor,
        renamed_from=renamed_from,
    )


def last_seq(tx: sa.Connection) -> int:
    """Return the highest number given so far, also when its row was dropped; 0 before the first change."""
    row = tx.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'feed'").first()
    return 0 if row is None else int(row[0])


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the feed. `kind` is text: a later version may know more kinds."""

    seq: int
    at_us: int
    kind: str
    repository: str
    tag: str | None
    digest: Digest | None
    actor: str
    renamed_from: str | None


def page(tx: sa.Connection, *, after: int, entries: int) -> list[Change]:
    """Return up to `entries` changes after the number `after`, in their order."""
    columns = [feed.c[name] for name in ("seq", "at_us", "kind", "repository", "tag", "actor", "renamed_from")]
    rows = tx.execute(
        sa.select(*columns, feed.c.alg, feed.c.digest).where(feed.c.seq > after).order_by(feed.c.seq).limit(entries)
    )
    return [
        Change(
            row.seq,
            row.at_us,
            row.kind,
            row.repository,
            row.tag,
            None if row.digest is None else Digest(Algorithm(row.alg), row.digest),
            row.actor,
            row.renamed_from,
        )
        for row in rows
    ]
