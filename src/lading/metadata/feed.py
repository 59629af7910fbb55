"""The feed: one row for every change of state, in the change's own transaction (I6), numbered without gaps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from lading.metadata.database import Prepared
from lading.metadata.schema import feed
from lading.oci.digest import Algorithm, Digest


class Kind(StrEnum):
    """What happened."""

    REPOSITORY_CREATED = "repository.created"
    REPOSITORY_DELETED = "repository.deleted"
    """With all its tags, manifests and blobs, which have no rows of their own."""
    REPOSITORY_RESTORED = "repository.restored"
    """The last row of a restoration: what came back has rows of its own."""
    REPOSITORY_RENAMED = "repository.renamed"
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
    MANIFEST_RESTORED = "manifest.restored"
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


@dataclass(frozen=True, slots=True)
class Era:
    """Between two places of the feed `name` was what is called `now` today; empty where nobody is any more."""

    name: str
    after: int
    before: int
    now: str


def former_names(tx: sa.Connection) -> Sequence[Era]:
    """Return when which name was not what it is today, the last time first. It reads the whole feed."""
    changes = tx.execute(
        sa.select(feed.c.seq, sa.func.coalesce(feed.c.renamed_from, feed.c.repository), feed.c.repository, feed.c.kind)
        .where(feed.c.kind.in_([Kind.REPOSITORY_RENAMED.value, Kind.REPOSITORY_COLLECTED.value]))
        .order_by(feed.c.seq)
    )
    touched: dict[str, int] = {}
    walk: list[tuple[int, str, int, str]] = []
    for seq, was, renamed, kind in changes:
        now = renamed if kind == Kind.REPOSITORY_RENAMED.value else ""
        walk.append((seq, was, touched.get(was, 0), now))
        touched |= {was: seq, now: seq}
    today: dict[str, str] = {}
    eras: list[Era] = []
    for seq, was, after, now in reversed(walk):
        today[was] = today.get(now, now)
        eras.append(Era(was, after, seq, today[was]))
    return eras


def told(tx: sa.Connection, *kinds: Kind) -> sa.Subquery:
    """Return the rows of these kinds, each with `now`: what its repository is called today, empty where it is gone."""
    eras = [[era.name, era.after, era.before, era.now] for era in former_names(tx)]
    now: sa.ColumnElement[str] = feed.c.repository
    source: sa.FromClause = feed
    if eras:
        each = sa.func.json_each(sa.literal(json.dumps(eras))).table_valued("value")
        parts = [
            sa.cast(sa.func.json_extract(each.c.value, f"$[{place}]"), feed.c[column].type).label(name)
            for place, (name, column) in enumerate(
                zip(Era.__slots__, ("repository", "seq", "seq", "repository"), strict=True)
            )
        ]
        # Materialized, and with types like the feed's: then SQLite makes an index of it for the join.
        era = sa.select(*parts).cte("eras").prefix_with("MATERIALIZED")
        is_then = sa.and_(era.c.name == feed.c.repository, feed.c.seq > era.c.after, feed.c.seq < era.c.before)
        source, now = feed.outerjoin(era, is_then), sa.func.coalesce(era.c.now, feed.c.repository)
    return (
        sa.select(feed, now.label("now")).select_from(source).where(feed.c.kind.in_([kind.value for kind in kinds]))
    ).subquery()
