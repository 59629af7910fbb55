"""What is to be collected: how much waits, and for when; and the search for what the queues may have missed."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import collection, garbage
from lading.metadata.collection import HAS_SUBJECT, IN_HISTORY, IN_INDEX, TAGGED, flag
from lading.metadata.database import Prepared
from lading.metadata.schema import (
    blobs,
    doomed_objects,
    gc_blob_queue,
    gc_manifest_queue,
    manifest_blobs,
    repo_blobs,
    tag_history,
)
from lading.metadata.schema import manifests as manifests_table

# The search

_UNQUEUED_MANIFESTS = Prepared(
    sa.select(
        manifests_table.c.id,
        flag(
            sa.or_(
                manifests_table.c.deleted_us.is_not(None),
                sa.and_(sa.bindparam("delete_untagged", type_=sa.Integer) == sa.literal_column("1"), ~HAS_SUBJECT),
            ),
            ~TAGGED,
            ~IN_HISTORY,
            ~IN_INDEX,
            ~sa.exists().where(gc_manifest_queue.c.manifest_id == manifests_table.c.id),
        ),
    )
    .where(manifests_table.c.id > sa.bindparam("after"))
    .order_by(manifests_table.c.id)
    .limit(sa.bindparam("entries"))
)
_UNQUEUED_BLOBS = Prepared(
    sa.select(
        blobs.c.id,
        flag(
            ~sa.exists().where(manifest_blobs.c.blob_id == blobs.c.id)
            | sa.exists().where(
                repo_blobs.c.blob_id == blobs.c.id,
                repo_blobs.c.keep_until_us <= sa.bindparam("at_us"),
                ~sa.exists().where(
                    manifest_blobs.c.blob_id == repo_blobs.c.blob_id, manifest_blobs.c.repo_id == repo_blobs.c.repo_id
                ),
            ),
            ~sa.exists().where(gc_blob_queue.c.blob_id == blobs.c.id),
        ),
    )
    .where(blobs.c.id > sa.bindparam("after"))
    .order_by(blobs.c.id)
    .limit(sa.bindparam("entries"))
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of a page of rows, those that should be looked at and are on no queue; `last` is None after the last page."""

    ids: list[int]
    last: int | None


def manifests_to_review(tx: sa.Connection, *, after: int, delete_untagged: bool, entries: int) -> Candidates:
    """Look through a page of manifests for those that nothing keeps."""
    rows = _UNQUEUED_MANIFESTS.all(tx, after=after, delete_untagged=int(delete_untagged), entries=entries)
    return _candidates(rows, entries)


def blobs_to_review(tx: sa.Connection, *, after: int, at_us: int, entries: int) -> Candidates:
    """Look through a page of blobs for those that no manifest refers to, or that a repository sees without need."""
    return _candidates(_UNQUEUED_BLOBS.all(tx, after=after, at_us=at_us, entries=entries), entries)


def _candidates(rows: list[tuple[int, int]], entries: int) -> Candidates:
    return Candidates([row_id for row_id, wanted in rows if wanted], rows[-1][0] if len(rows) == entries else None)


def queue(tx: sa.Connection, *, manifest_ids: Sequence[int] = (), blob_ids: Sequence[int] = ()) -> None:
    """Put on the queues what the net has caught; rows that went meanwhile are left out."""
    for manifest_id in manifest_ids:
        if collection.has_manifest(tx, manifest_id):
            garbage.review_manifest(tx, manifest_id, after_us=collection.AT_ONCE_US, event="found")
    for blob_id in blob_ids:
        if collection.has_blob(tx, blob_id):
            garbage.review_blob(tx, blob_id, after_us=collection.AT_ONCE_US, event="found")


# At once


def hurry(tx: sa.Connection, *, at_us: int, entries: int) -> bool:
    """Have up to `entries` of each kind of what waits for its time come now; tell whether some are likely to be left.

    Reviews still decide by themselves; objects go. What clients bring meanwhile is no reason to go on.
    """
    most = 0
    for table, when in (
        (gc_manifest_queue, gc_manifest_queue.c.review_after_us),
        (gc_blob_queue, gc_blob_queue.c.review_after_us),
        (doomed_objects, doomed_objects.c.not_before_us),
    ):
        (key,) = table.primary_key
        some = sa.select(key).where(when > at_us).limit(entries).scalar_subquery()
        most = max(most, tx.execute(sa.update(table).where(key.in_(some)).values({when.name: at_us})).rowcount)
    return most >= entries


@dataclass(frozen=True, slots=True)
class Due:
    """How much there is to do now; counting it costs what it is, not what is stored."""

    manifests: int
    blobs: int
    objects: int


def due(tx: sa.Connection, *, at_us: int) -> Due:
    """Count what is due."""
    return Due(
        _count(tx, gc_manifest_queue, gc_manifest_queue.c.review_after_us <= at_us),
        _count(tx, gc_blob_queue, gc_blob_queue.c.review_after_us <= at_us),
        _count(tx, doomed_objects, doomed_objects.c.not_before_us <= at_us),
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much there is, and what waits for its time, with the moment of the first.

    A blob waits when no manifest refers to it and its lease is not over.
    """

    manifests: int
    blobs: int
    deleted_manifests: int
    past_moves: int
    waiting_blobs: int
    next_blob_us: int | None
    waiting_objects: int
    next_object_us: int | None


def backlog(tx: sa.Connection, *, at_us: int) -> Backlog:
    """Count what there is, and what is to come: for a command, since it walks through everything."""
    leased = (
        gc_blob_queue.c.review_after_us > at_us,
        ~sa.exists().where(manifest_blobs.c.blob_id == gc_blob_queue.c.blob_id),
    )
    return Backlog(
        manifests=_count(tx, manifests_table),
        blobs=_count(tx, blobs),
        deleted_manifests=_count(tx, manifests_table, manifests_table.c.deleted_us.is_not(None)),
        past_moves=_count(tx, tag_history, tag_history.c.to_us.is_not(None)),
        waiting_blobs=_count(tx, gc_blob_queue, *leased),
        next_blob_us=tx.execute(sa.select(sa.func.min(gc_blob_queue.c.review_after_us)).where(*leased)).scalar(),
        waiting_objects=_count(tx, doomed_objects, doomed_objects.c.not_before_us > at_us),
        next_object_us=tx.execute(
            sa.select(sa.func.min(doomed_objects.c.not_before_us)).where(doomed_objects.c.not_before_us > at_us)
        ).scalar(),
    )


def _count(tx: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    return tx.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()
