"""What the collector will look at: review queues and doomed objects, written from the first delete on."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.database import Prepared
from lading.metadata.schema import doomed_objects, gc_blob_queue, gc_manifest_queue, insert, manifests, repo_blobs
from lading.metadata.times import DAY_US


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what nobody refers to is kept, in microseconds."""

    lease_us: int = DAY_US
    """Content that was pushed, for the manifest that will refer to it."""
    undo_us: int = 14 * DAY_US
    """A deleted or overwritten tag or manifest, so that it can be brought back."""
    delay_us: int = DAY_US
    """An object, after its row: the window of a database restore."""


def _enqueue(table: sa.Table, key: str) -> Prepared:
    statement = insert(table).values(
        {key: sa.bindparam("item"), "review_after_us": sa.bindparam("review_after_us"), "event": sa.bindparam("event")}
    )
    later = sa.func.max(table.c.review_after_us, statement.excluded.review_after_us)
    return Prepared(
        statement.on_conflict_do_update(
            index_elements=[key], set_={"review_after_us": later, "event": statement.excluded.event}
        )
    )


_REVIEW_BLOB = _enqueue(gc_blob_queue, "blob_id")
_REVIEW_MANIFEST = _enqueue(gc_manifest_queue, "manifest_id")
_DOOM = Prepared(
    sa.insert(doomed_objects).values(
        {name: sa.bindparam(name) for name in ("store_id", "object_key", "not_before_us", "reason")}
    )
)


def review_blob(tx: sa.Connection, blob_id: int, *, after_us: int, event: str) -> None:
    """Have the blob looked at, not before `after_us`."""
    _REVIEW_BLOB.run(tx, item=blob_id, review_after_us=after_us, event=event)


def review_manifest(tx: sa.Connection, manifest_id: int, *, after_us: int, event: str) -> None:
    """Have the manifest looked at, not before `after_us`."""
    _REVIEW_MANIFEST.run(tx, item=manifest_id, review_after_us=after_us, event=event)


def review_blobs(tx: sa.Connection, links: sa.ColumnElement[bool], *, after_us: int, event: str) -> None:
    """Have the blobs of all these links looked at, not before `after_us`."""
    _review_all(tx, gc_blob_queue, repo_blobs.c.blob_id, links, after_us=after_us, event=event)


def review_manifests(tx: sa.Connection, which: sa.ColumnElement[bool], *, after_us: int, event: str) -> None:
    """Have all these manifests looked at, not before `after_us`."""
    _review_all(tx, gc_manifest_queue, manifests.c.id, which, after_us=after_us, event=event)


def _review_all(
    tx: sa.Connection,
    queue: sa.Table,
    item: sa.Column[int],
    which: sa.ColumnElement[bool],
    *,
    after_us: int,
    event: str,
) -> None:
    rows = sa.select(item, sa.literal(after_us), sa.literal(event)).where(which)
    statement = insert(queue).from_select([column.name for column in queue.c], rows)
    later = sa.func.max(queue.c.review_after_us, statement.excluded.review_after_us)
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=list(queue.primary_key), set_={"review_after_us": later, "event": statement.excluded.event}
        )
    )


def doom(tx: sa.Connection, store_id: int, object_key: str, *, not_before_us: int, reason: str) -> None:
    """Have the object deleted, not before `not_before_us`. No row may name it any more."""
    _DOOM.insert(tx, store_id=store_id, object_key=object_key, not_before_us=not_before_us, reason=reason)
