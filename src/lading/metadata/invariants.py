"""What the tables must say of each other, whoever wrote them: the checks, each one statement (V1, V7, V10, I3, I6).

Each tells of at most `MAX_FAULTS` + 1 faults of a kind, so that huge damage stays a short answer.
"""

from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from lading.metadata import feed as feed_rows
from lading.metadata.feed import Kind
from lading.metadata.passes import TRIM_HISTORY
from lading.metadata.schema import (
    blob_extents,
    blob_payloads,
    blobs,
    doomed_objects,
    feed,
    manifest_blobs,
    manifest_children,
    manifests,
    passes,
    repo_blobs,
    repositories,
    tag_history,
    tags,
)
from lading.metadata.schema import metadata as schema
from lading.metadata.verify import MAX_FAULTS, Fault, digest_text, holders_of

_TO_NOWHERE = {
    (tags, manifests): "tag-to-nowhere",
    (repo_blobs, blobs): "link-to-nowhere",
    (manifest_blobs, blobs): "reference-to-nowhere",
    (manifest_children, manifests): "reference-to-nowhere",
}


# The history of before may have been trimmed, as nothing of it can be undone any more.
_TRIMMED_US = sa.func.coalesce(
    sa.select(passes.c.position).where(passes.c.name == TRIM_HISTORY).scalar_subquery(), sa.literal_column("-1")
)


def rows_to_nowhere(tx: sa.Connection) -> Iterator[Fault]:
    """Look for foreign keys that name rows which do not exist (I3)."""
    for table in schema.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            yield from _to_nowhere(tx, table, key.parent, key.column.table)


def _to_nowhere(tx: sa.Connection, table: sa.Table, column: sa.Column[Any], parent: sa.Table) -> Iterator[Fault]:
    named, repository, owner = parent.alias(), repositories.alias(), manifests.alias()
    source: sa.FromClause
    where: tuple[sa.ColumnElement[Any], ...]
    if table in {manifest_blobs, manifest_children}:
        source = table.outerjoin(owner, owner.c.id == next(iter(table.primary_key)))
        source = source.outerjoin(repository, repository.c.id == owner.c.repo_id)
        where = (repository.c.name, owner.c.alg, owner.c.digest, sa.null())
    elif "repo_id" in table.c:
        source = table.outerjoin(repository, repository.c.id == table.c.repo_id)
        where = (repository.c.name, sa.null(), sa.null(), table.c.name if table is tags else sa.null())
    else:
        source, where = table, (sa.null(), sa.null(), sa.null(), sa.null())
    rows = tx.execute(
        sa.select(*where, column, *table.primary_key)
        .select_from(source)
        .where(column.is_not(None), ~sa.exists().where(named.c.id == column))
        .limit(MAX_FAULTS + 1)
    )
    for name, alg, raw, tag, missing, *values in rows:
        place = ", ".join(f"{part.name} {value}" for part, value in zip(table.primary_key, values, strict=True))
        yield Fault(
            _TO_NOWHERE.get((table, parent), "row-to-nowhere"),
            f"the row of {table.name} with {place} names row {missing} of {parent.name}, which does not exist",
            () if name is None else (name,),
            tag,
            None if raw is None else digest_text(alg, raw),
        )


def tags_to_hidden_manifests(tx: sa.Connection) -> Iterator[Fault]:
    """Look for tags whose manifest is deleted or of another repository (V1)."""
    rows = tx.execute(
        sa.select(repositories.c.name, tags.c.name, manifests.c.alg, manifests.c.digest, manifests.c.deleted_us)
        .select_from(
            tags.join(repositories, repositories.c.id == tags.c.repo_id).join(
                manifests, manifests.c.id == tags.c.manifest_id
            )
        )
        .where(sa.or_(manifests.c.deleted_us.is_not(None), manifests.c.repo_id != tags.c.repo_id))
        .limit(MAX_FAULTS + 1)
    )
    for name, tag, alg, raw, deleted_us in rows:
        what = "a manifest of another repository" if deleted_us is None else "a manifest that is deleted"
        code = "tag-to-other-repository" if deleted_us is None else "tag-to-deleted"
        yield Fault(code, f"the tag names {what}", (name,), tag, digest_text(alg, raw))


def tags_without_history(tx: sa.Connection) -> Iterator[Fault]:
    """Hold tags against the open rows of history, both ways (V10); tags that lead nowhere are told of elsewhere."""
    told = sa.exists().where(
        tag_history.c.repo_id == tags.c.repo_id,
        tag_history.c.name == tags.c.name,
        tag_history.c.to_us.is_(None),
        tag_history.c.manifest_id == tags.c.manifest_id,
    )
    sound = sa.and_(
        manifests.c.id == tags.c.manifest_id, manifests.c.repo_id == tags.c.repo_id, manifests.c.deleted_us.is_(None)
    )
    for name, tag, alg, raw in tx.execute(
        sa.select(repositories.c.name, tags.c.name, manifests.c.alg, manifests.c.digest)
        .select_from(tags.join(manifests, sound).join(repositories, repositories.c.id == tags.c.repo_id))
        .where(~told)
        .limit(MAX_FAULTS + 1)
    ):
        what = "the tag's history does not end with the manifest that it names"
        yield Fault("history-differs", what, (name,), tag, digest_text(alg, raw))
    named = sa.exists().where(tags.c.repo_id == tag_history.c.repo_id, tags.c.name == tag_history.c.name)
    for name, tag in tx.execute(
        sa.select(repositories.c.name, tag_history.c.name)
        .select_from(tag_history.join(repositories, repositories.c.id == tag_history.c.repo_id))
        .where(tag_history.c.to_us.is_(None), ~named)
        .limit(MAX_FAULTS + 1)
    ):
        yield Fault("history-differs", "the tag's history goes on, but the tag is not there", (name,), tag)


def gaps_in_history(tx: sa.Connection) -> Iterator[Fault]:
    """Hold each tag's rows against each other, and against the moves that the feed tells of (V10).

    A row begins at the very moment when the one before it ended, whatever the clock did, or the feed tells that the
    tag, or its repository, was deleted when that one ended.
    """
    broken: set[tuple[str, str]] = set()
    for name, tag in tx.execute(_unconnected_history(tx)):
        broken.add((name, tag))
        yield Fault("history-gap", "the tag's history has a gap", (name,), tag)
    for name, tag, alg, raw in tx.execute(_untold_moves(tx)):
        if (name, tag) not in broken:
            what = "a move that the feed tells of is not in the tag's history"
            yield Fault("history-gap", what, (name,), tag, digest_text(alg, raw))


def _unconnected_history(tx: sa.Connection) -> sa.Select[Any]:
    window: dict[str, Any] = {
        "partition_by": (tag_history.c.repo_id, tag_history.c.name),
        "order_by": tag_history.c.id,
    }
    rows = sa.select(
        tag_history.c.repo_id,
        tag_history.c.name,
        tag_history.c.from_us,
        sa.func.lag(tag_history.c.id).over(**window).label("previous_id"),
        sa.func.lag(tag_history.c.to_us).over(**window).label("previous_to_us"),
    ).subquery()
    deletion = feed_rows.told(tx, Kind.TAG_DELETED, Kind.REPOSITORY_DELETED)
    return (
        sa.select(repositories.c.name, rows.c.name)
        .select_from(
            rows.join(repositories, repositories.c.id == rows.c.repo_id).outerjoin(
                deletion,
                sa.and_(
                    deletion.c.now == repositories.c.name,
                    sa.or_(deletion.c.tag == rows.c.name, deletion.c.tag.is_(None)),
                    deletion.c.at_us == rows.c.previous_to_us,
                ),
            )
        )
        .where(
            rows.c.previous_id.is_not(None),
            rows.c.previous_to_us.is_distinct_from(rows.c.from_us),
            deletion.c.at_us.is_(None),
        )
        .distinct()
        .limit(MAX_FAULTS + 1)
    )


def _untold_moves(tx: sa.Connection) -> sa.Select[Any]:
    """Return the moves of the feed without a row of history; one whose manifest has no row is told of elsewhere."""
    row = (
        sa.select(tag_history.c.repo_id, tag_history.c.name, tag_history.c.from_us, manifests.c.alg, manifests.c.digest)
        .select_from(tag_history.outerjoin(manifests, manifests.c.id == tag_history.c.manifest_id))
        .subquery()
    )
    move = feed_rows.told(tx, Kind.TAG_SET)
    same_manifest = sa.and_(row.c.alg == move.c.alg, row.c.digest == move.c.digest)
    return (
        sa.select(move.c.now, move.c.tag, move.c.alg, move.c.digest)
        .select_from(
            move.outerjoin(repositories, repositories.c.name == move.c.now).outerjoin(
                row,
                sa.and_(
                    row.c.repo_id == repositories.c.id,
                    row.c.name == move.c.tag,
                    row.c.from_us == move.c.at_us,
                    sa.or_(same_manifest, row.c.digest.is_(None)),
                ),
            )
        )
        .where(move.c.now != "", move.c.at_us > _TRIMMED_US, row.c.name.is_(None))
        .limit(MAX_FAULTS + 1)
    )


def wrong_counts(tx: sa.Connection) -> Iterator[Fault]:
    """Recount the live manifests of each repository (V7)."""
    live = sa.func.count(manifests.c.id)
    rows = tx.execute(
        sa.select(repositories.c.name, repositories.c.manifest_count, live)
        .select_from(
            repositories.outerjoin(
                manifests, sa.and_(manifests.c.repo_id == repositories.c.id, manifests.c.deleted_us.is_(None))
            )
        )
        .group_by(repositories.c.id)
        .having(live != repositories.c.manifest_count)
        .limit(MAX_FAULTS + 1)
    )
    for name, counted, found in rows:
        yield Fault("count-wrong", f"it has {found} manifests, its row says {counted}", (name,))


def blobs_in_no_or_two_places(tx: sa.Connection) -> Iterator[Fault]:
    """Look for blobs whose bytes are nowhere, or in more than one place."""
    extents = sa.select(sa.func.count()).where(blob_extents.c.blob_id == blobs.c.id).scalar_subquery()
    payloads = sa.select(sa.func.count()).where(blob_payloads.c.blob_id == blobs.c.id).scalar_subquery()
    found = sa.select(blobs.c.id, blobs.c.alg, blobs.c.digest, (extents + payloads).label("places")).subquery()
    rows = tx.execute(sa.select(found).where(found.c.places != 1).limit(MAX_FAULTS + 1)).all()
    for blob_id, alg, raw, places in rows:
        code = "extent-doubled" if places else "blob-without-bytes"
        what = f"its bytes are in {places} places" if places else "no row says where its bytes are"
        yield Fault(code, what, holders_of(tx, blob_id), None, digest_text(alg, raw))


def doomed_objects_in_use(tx: sa.Connection) -> Iterator[Fault]:
    """Look for objects that will be deleted although a blob has its bytes there (I2)."""
    rows = tx.execute(
        sa.select(blobs.c.id, blobs.c.alg, blobs.c.digest, blob_extents.c.object_key)
        .select_from(
            doomed_objects.join(
                blob_extents,
                sa.and_(
                    blob_extents.c.store_id == doomed_objects.c.store_id,
                    blob_extents.c.object_key == doomed_objects.c.object_key,
                ),
            ).join(blobs, blobs.c.id == blob_extents.c.blob_id)
        )
        .limit(MAX_FAULTS + 1)
    ).all()
    for blob_id, alg, raw, object_key in rows:
        what = "its object is on the list of those to be deleted"
        yield Fault(
            "object-doomed", what, holders_of(tx, blob_id), None, digest_text(alg, raw), f"objects/{object_key}"
        )


def gaps_in_the_feed(tx: sa.Connection) -> Iterator[Fault]:
    """Look for numbers that no row has: from 1 to the last one ever given (I6)."""
    before = sa.func.lag(feed.c.seq, 1, 0).over(order_by=feed.c.seq).label("before")
    rows = sa.select(feed.c.seq, before).subquery()
    for seq, previous in tx.execute(sa.select(rows).where(rows.c.seq != rows.c.before + 1).limit(MAX_FAULTS + 1)):
        yield _gap(previous + 1, seq - 1)
    last = tx.execute(sa.select(sa.func.coalesce(sa.func.max(feed.c.seq), 0))).scalar_one()
    given = tx.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'feed'").scalar() or 0
    if given > last:
        yield _gap(last + 1, given)


def _gap(first: int, last: int) -> Fault:
    what = f"event {first} is missing" if first == last else f"events {first} to {last} are missing"
    return Fault("feed-gap", what)


CHECKS: tuple[Callable[[sa.Connection], Iterator[Fault]], ...] = (
    rows_to_nowhere,
    tags_to_hidden_manifests,
    tags_without_history,
    gaps_in_history,
    wrong_counts,
    blobs_in_no_or_two_places,
    doomed_objects_in_use,
    gaps_in_the_feed,
)
