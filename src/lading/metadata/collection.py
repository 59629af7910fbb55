"""Collecting what nothing refers to: history, then manifests, then links and blobs, then the files (decision 0015).

Each review is a part of one write transaction: what it finds dead, it removes there and then, and what it finds alive
it leaves in the queue until the moment when that may end, or takes off the queue when only a change can end it: every
change that takes a reference away puts what it referred to on the queue. The bytes outlive their row by the delay.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import feed, garbage, manifests, passes
from lading.metadata.blobs import digest_of
from lading.metadata.database import Prepared
from lading.metadata.garbage import Retention
from lading.metadata.passes import Pass
from lading.metadata.schema import (
    blob_extents,
    blobs,
    doomed_objects,
    gc_blob_queue,
    gc_manifest_queue,
    manifest_blobs,
    manifest_children,
    repo_blobs,
    repositories,
    tag_history,
    tags,
)
from lading.metadata.schema import manifests as manifests_table
from lading.oci.digest import Digest

ACTOR = "collector"
"""Who did it, as the feed tells."""
AT_ONCE_US = 0
"""A review that need not wait; one that is queued for a later moment keeps it."""

LINKS = 50
"""In one review: thousands of repositories may have had a layer in common, and lose it on the same day."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What went, and why. `content_bytes` are those that it alone held; `what` is a noun of `Noun`."""

    what: str
    reason: str
    content_bytes: int = 0
    repository: str | None = None
    digest: Digest | None = None
    object_key: str | None = None


@dataclass(frozen=True, slots=True)
class Doomed:
    """An object without a row, to be deleted."""

    id: int
    object_key: str
    reason: str
    content_bytes: int = 0


def flag(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    """Return whether all conditions hold as 0 or 1, which needs no processor."""
    return sa.type_coerce(sa.and_(*conditions), sa.Integer)


# Tag history

_ended, _earlier = tag_history, tag_history.alias("earlier")
_HISTORY_TO_TRIM = Prepared(
    sa.select(_ended.c.id, _ended.c.manifest_id)
    .where(
        _ended.c.to_us <= sa.bindparam("before_us"),
        _ended.c.to_us.is_not(None),
        # A clock that was set back must not leave a hole: the oldest rows of a tag go first, whatever they say.
        ~sa.exists().where(
            _earlier.c.repo_id == _ended.c.repo_id,
            _earlier.c.name == _ended.c.name,
            _earlier.c.id < _ended.c.id,
            sa.or_(_earlier.c.to_us.is_(None), _earlier.c.to_us > sa.bindparam("before_us")),
        ),
    )
    .order_by(_ended.c.to_us)
    .limit(sa.bindparam("entries"))
)
_DELETE_HISTORY = Prepared(sa.delete(tag_history).where(tag_history.c.id == sa.bindparam("at_id")))


def trim_history(tx: sa.Connection, *, at_us: int, retention: Retention, entries: int) -> int:
    """Forget up to `entries` moves of tags that cannot be undone any more; return how many."""
    before_us = at_us - retention.undo_us
    rows = _HISTORY_TO_TRIM.all(tx, before_us=before_us, entries=entries)
    for history_id, manifest_id in rows:
        _DELETE_HISTORY.run(tx, at_id=history_id)
        garbage.review_manifest(tx, manifest_id, after_us=AT_ONCE_US, event="history trimmed")
    if rows:
        passes.save(tx, passes.TRIM_HISTORY, Pass(before_us, at_us, at_us))
    return len(rows)


# Manifests

_DUE_MANIFESTS = Prepared(
    sa.select(gc_manifest_queue.c.manifest_id)
    .where(gc_manifest_queue.c.review_after_us <= sa.bindparam("due_us"))
    .order_by(gc_manifest_queue.c.review_after_us)
    .limit(sa.bindparam("entries"))
)
_of_manifest = manifests_table.c.id == sa.bindparam("at_id")
_subject, _parent = manifests_table.alias("subject"), manifest_children.alias("parent")
# What keeps a manifest, deleted or not. An index that is itself deleted still holds its children: it may come back.
IN_HISTORY = sa.exists().where(tag_history.c.manifest_id == manifests_table.c.id)
TAGGED = sa.exists().where(tags.c.manifest_id == manifests_table.c.id)
IN_INDEX = sa.exists().where(_parent.c.child_id == manifests_table.c.id)
HAS_SUBJECT = sa.exists().where(
    _subject.c.repo_id == manifests_table.c.repo_id,
    _subject.c.alg == manifests_table.c.subject_alg,
    _subject.c.digest == manifests_table.c.subject_digest,
    _subject.c.deleted_us.is_(None),
)
_MANIFEST = Prepared(
    sa.select(
        manifests_table.c.repo_id,
        repositories.c.name,
        manifests_table.c.alg,
        manifests_table.c.digest,
        manifests_table.c.size,
        manifests_table.c.created_us,
        manifests_table.c.deleted_us,
        *map(flag, (IN_HISTORY, TAGGED, IN_INDEX, HAS_SUBJECT)),
    )
    .select_from(manifests_table.join(repositories, repositories.c.id == manifests_table.c.repo_id))
    .where(_of_manifest)
)
_BLOBS_OF_MANIFEST = Prepared(
    sa.select(manifest_blobs.c.blob_id).where(
        manifest_blobs.c.manifest_id == sa.bindparam("at_id"), manifest_blobs.c.blob_id.is_not(None)
    )
)
_CHILDREN_OF_MANIFEST = Prepared(
    sa.select(manifest_children.c.child_id).where(
        manifest_children.c.parent_id == sa.bindparam("at_id"), manifest_children.c.child_id.is_not(None)
    )
)
_DELETE_MANIFEST = Prepared(sa.delete(manifests_table).where(_of_manifest))
_FORGET_MANIFEST = Prepared(
    sa.delete(gc_manifest_queue).where(gc_manifest_queue.c.manifest_id == sa.bindparam("at_id"))
)
_POSTPONE_MANIFEST = Prepared(
    sa.update(gc_manifest_queue)
    .where(gc_manifest_queue.c.manifest_id == sa.bindparam("at_id"))
    .values(review_after_us=sa.bindparam("until_us"))
)


def review_manifests(
    tx: sa.Connection, *, due_us: int, at_us: int, retention: Retention, delete_untagged: bool, entries: int
) -> tuple[int, list[Removed]]:
    """Look at up to `entries` manifests that were due by `due_us`; return how many there were, and what went.

    What it puts on the queues is due at once, and what it postpones is due later than `due_us`, even if the clock was
    set back meanwhile: the same `due_us` until nothing is found comes to an end, while clients go on.
    """
    due = _DUE_MANIFESTS.all(tx, due_us=due_us, entries=entries)
    removed: list[Removed] = []
    for (manifest_id,) in due:
        removed += _review_manifest(
            tx, manifest_id, due_us=due_us, at_us=at_us, retention=retention, delete_untagged=delete_untagged
        )
    return len(due), removed


def has_manifest(tx: sa.Connection, manifest_id: int) -> bool:
    """Tell whether there is such a row, deleted or not."""
    return _MANIFEST.one(tx, at_id=manifest_id) is not None


def _review_manifest(
    tx: sa.Connection, manifest_id: int, *, due_us: int, at_us: int, retention: Retention, delete_untagged: bool
) -> list[Removed]:
    row = _MANIFEST.one(tx, at_id=manifest_id)
    if row is None:  # the foreign key took the queue's row with it
        return []
    repo_id, name, alg, raw, size, created_us, deleted_us, in_history, tagged, in_index, has_subject = row
    digest, was_us = digest_of(alg, raw), deleted_us if deleted_us is not None else created_us
    held = in_history or tagged or in_index or (deleted_us is None and (has_subject or not delete_untagged))
    if held:
        _FORGET_MANIFEST.run(tx, at_id=manifest_id)
        return []
    if was_us + retention.undo_us > at_us:
        _POSTPONE_MANIFEST.run(tx, at_id=manifest_id, until_us=max(was_us + retention.undo_us, due_us + 1))
        return []
    hidden = [Removed("untagged manifest", "no tag names it", 0, name, digest)] if deleted_us is None else []
    if hidden:
        manifests.hide(tx, name, repo_id, manifest_id, digest, actor=ACTOR, at_us=at_us, retention=retention)
        if retention.undo_us:
            return hidden
    for (blob_id,) in _BLOBS_OF_MANIFEST.all(tx, at_id=manifest_id):
        garbage.review_blob(tx, blob_id, after_us=AT_ONCE_US, event="manifest collected")
    for (child_id,) in _CHILDREN_OF_MANIFEST.all(tx, at_id=manifest_id):
        garbage.review_manifest(tx, child_id, after_us=AT_ONCE_US, event="index collected")
    _DELETE_MANIFEST.run(tx, at_id=manifest_id)
    feed.append(tx, feed.Kind.MANIFEST_COLLECTED, repository=name, digest=digest, actor=ACTOR, at_us=at_us)
    removed = Removed("manifest", "deleted, and its undo window is over", size, name, digest)
    return [*hidden, removed, *_drop_empty_repository(tx, repo_id, at_us)]


# Repositories

_EMPTY_REPOSITORY = Prepared(
    sa.select(repositories.c.name).where(
        repositories.c.id == sa.bindparam("at_id"),
        *(
            ~sa.exists().where(table.c.repo_id == repositories.c.id)
            for table in (manifests_table, repo_blobs, tag_history, tags)
        ),
    )
)
_DELETE_REPOSITORY = Prepared(sa.delete(repositories).where(repositories.c.id == sa.bindparam("at_id")))


def _drop_empty_repository(tx: sa.Connection, repo_id: int, at_us: int) -> list[Removed]:
    row = _EMPTY_REPOSITORY.one(tx, at_id=repo_id)
    if row is None:
        return []
    _DELETE_REPOSITORY.run(tx, at_id=repo_id)
    feed.append(tx, feed.Kind.REPOSITORY_COLLECTED, repository=row[0], actor=ACTOR, at_us=at_us)
    return [Removed("repository", "it is empty", 0, row[0])]


# Blobs

_DUE_BLOBS = Prepared(
    sa.select(gc_blob_queue.c.blob_id)
    .where(gc_blob_queue.c.review_after_us <= sa.bindparam("due_us"))
    .order_by(gc_blob_queue.c.review_after_us)
    .limit(sa.bindparam("entries"))
)
_BLOB = Prepared(
    sa.select(
        blobs.c.alg,
        blobs.c.digest,
        blobs.c.size,
        flag(sa.exists().where(manifest_blobs.c.blob_id == blobs.c.id)),
        sa.select(sa.func.max(repo_blobs.c.keep_until_us))
        .where(repo_blobs.c.blob_id == blobs.c.id)
        .scalar_subquery()
        .label("keep_until_us"),
    ).where(blobs.c.id == sa.bindparam("at_id"))
)
_UNUSED_LINKS = Prepared(
    sa.select(repo_blobs.c.repo_id, repositories.c.name, repo_blobs.c.hidden_us)
    .select_from(repo_blobs.join(repositories, repositories.c.id == repo_blobs.c.repo_id))
    .where(
        repo_blobs.c.blob_id == sa.bindparam("at_id"),
        repo_blobs.c.keep_until_us <= sa.bindparam("at_us"),
        ~sa.exists().where(
            manifest_blobs.c.blob_id == sa.bindparam("at_id"), manifest_blobs.c.repo_id == repo_blobs.c.repo_id
        ),
    )
    .order_by(repo_blobs.c.repo_id)
    .limit(sa.bindparam("entries"))
)
_DELETE_LINK = Prepared(
    sa.delete(repo_blobs).where(
        repo_blobs.c.repo_id == sa.bindparam("at_repo"), repo_blobs.c.blob_id == sa.bindparam("at_blob")
    )
)
_EXTENTS = Prepared(
    sa.select(blob_extents.c.store_id, blob_extents.c.object_key).where(blob_extents.c.blob_id == sa.bindparam("at_id"))
)
_DELETE_EXTENTS = Prepared(sa.delete(blob_extents).where(blob_extents.c.blob_id == sa.bindparam("at_id")))
_DELETE_BLOB = Prepared(sa.delete(blobs).where(blobs.c.id == sa.bindparam("at_id")))
_FORGET_BLOB = Prepared(sa.delete(gc_blob_queue).where(gc_blob_queue.c.blob_id == sa.bindparam("at_id")))
_POSTPONE_BLOB = Prepared(
    sa.update(gc_blob_queue)
    .where(gc_blob_queue.c.blob_id == sa.bindparam("at_id"))
    .values(review_after_us=sa.bindparam("until_us"))
)


def review_blobs(
    tx: sa.Connection, *, due_us: int, at_us: int, retention: Retention, entries: int
) -> tuple[int, list[Removed]]:
    """Look at up to `entries` blobs that were due by `due_us`; return how many there were, and what went."""
    due = _DUE_BLOBS.all(tx, due_us=due_us, entries=entries)
    removed: list[Removed] = []
    for (blob_id,) in due:
        removed += _review_blob(tx, blob_id, due_us=due_us, at_us=at_us, retention=retention)
    return len(due), removed


def has_blob(tx: sa.Connection, blob_id: int) -> bool:
    """Tell whether there is such a row."""
    return _BLOB.one(tx, at_id=blob_id) is not None


def _review_blob(tx: sa.Connection, blob_id: int, *, due_us: int, at_us: int, retention: Retention) -> list[Removed]:
    row = _BLOB.one(tx, at_id=blob_id)
    if row is None:  # the foreign key took the queue's row with it
        return []
    alg, raw, size, referred, keep_until_us = row
    digest = digest_of(alg, raw)
    removed, more = _drop_unused_links(tx, blob_id, digest, at_us)
    if more:  # it stays on the queue, and is due
        return removed
    if keep_until_us is not None and keep_until_us > at_us:
        _POSTPONE_BLOB.run(tx, at_id=blob_id, until_us=max(keep_until_us, due_us + 1))
        return removed
    if referred:
        _FORGET_BLOB.run(tx, at_id=blob_id)
        return removed
    for store_id, object_key in _EXTENTS.all(tx, at_id=blob_id):
        garbage.doom(tx, store_id, object_key, not_before_us=at_us + retention.delay_us, reason="unreferenced")
    _DELETE_EXTENTS.run(tx, at_id=blob_id)
    _DELETE_BLOB.run(tx, at_id=blob_id)
    feed.append(tx, feed.Kind.BLOB_COLLECTED, repository="", digest=digest, actor=ACTOR, at_us=at_us)
    return [*removed, Removed("blob", "no manifest refers to it", size, None, digest)]


def _drop_unused_links(tx: sa.Connection, blob_id: int, digest: Digest, at_us: int) -> tuple[list[Removed], bool]:
    """Have repositories that hold the blob by nothing but an old lease lose sight of it; tell whether more may do."""
    removed: list[Removed] = []
    links = _UNUSED_LINKS.all(tx, at_id=blob_id, at_us=at_us, entries=LINKS)
    for repo_id, name, hidden_us in links:
        _DELETE_LINK.run(tx, at_repo=repo_id, at_blob=blob_id)
        if hidden_us is None:
            feed.append(tx, feed.Kind.BLOB_UNLINKED, repository=name, digest=digest, actor=ACTOR, at_us=at_us)
        removed += _drop_empty_repository(tx, repo_id, at_us)
    return removed, len(links) == LINKS


# Objects

_DUE_OBJECTS = Prepared(
    sa.select(doomed_objects.c.id, doomed_objects.c.object_key, doomed_objects.c.reason)
    .where(
        doomed_objects.c.not_before_us <= sa.bindparam("at_us"), doomed_objects.c.store_id == sa.bindparam("of_store")
    )
    .order_by(doomed_objects.c.not_before_us)
    .limit(sa.bindparam("entries"))
)
_IS_NAMED = Prepared(
    sa.select(blob_extents.c.blob_id).where(
        blob_extents.c.store_id == sa.bindparam("of_store"), blob_extents.c.object_key == sa.bindparam("at_key")
    )
)
_IS_DOOMED = Prepared(
    sa.select(doomed_objects.c.id).where(
        doomed_objects.c.store_id == sa.bindparam("of_store"), doomed_objects.c.object_key == sa.bindparam("at_key")
    )
)
_FORGET_OBJECT = Prepared(
    sa.delete(doomed_objects).where(
        doomed_objects.c.id == sa.bindparam("at_id"), doomed_objects.c.object_key == sa.bindparam("at_key")
    )
)

_POSTPONE_OBJECT = Prepared(
    sa.update(doomed_objects)
    .where(doomed_objects.c.id == sa.bindparam("at_id"))
    .values(not_before_us=sa.bindparam("until_us"))
)


def due_objects(tx: sa.Connection, *, store_id: int, at_us: int, entries: int) -> list[Doomed]:
    """Return up to `entries` objects whose time has come. One that a blob names, against all rules, is left alone."""
    rows = _DUE_OBJECTS.all(tx, of_store=store_id, at_us=at_us, entries=entries)
    return [Doomed(*row) for row in rows if _IS_NAMED.one(tx, of_store=store_id, at_key=row[1]) is None]


def forget_objects(tx: sa.Connection, objects: Sequence[Doomed]) -> None:
    """Drop the rows of objects that are deleted, and durably so. A number may be another row's by now, a key never."""
    for doomed in objects:
        _FORGET_OBJECT.run(tx, at_id=doomed.id, at_key=doomed.object_key)


def postpone_objects(tx: sa.Connection, objects: Sequence[Doomed], *, until_us: int) -> None:
    """Try again later with objects that could not be deleted, so that they do not keep others from it."""
    for doomed in objects:
        _POSTPONE_OBJECT.run(tx, at_id=doomed.id, until_us=until_us)


def unnamed(tx: sa.Connection, object_keys: Sequence[str], *, store_id: int) -> list[str]:
    """Return those of the keys that no row names."""
    return [
        key
        for key in object_keys
        if _IS_NAMED.one(tx, of_store=store_id, at_key=key) is None
        and _IS_DOOMED.one(tx, of_store=store_id, at_key=key) is None
    ]


def doom_strays(
    tx: sa.Connection, object_keys: Sequence[str], *, store_id: int, at_us: int, retention: Retention
) -> None:
    """Have those of the objects deleted, after the delay, that no row names."""
    for key in unnamed(tx, object_keys, store_id=store_id):
        garbage.doom(tx, store_id, key, not_before_us=at_us + retention.delay_us, reason="stray")
