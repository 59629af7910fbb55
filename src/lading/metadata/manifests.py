"""Manifests: the bytes, what they refer to (foreign keys: I3), and which manifests refer to one as their subject."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import blobs, feed, garbage, repositories
from lading.metadata.blobs import digest_of
from lading.metadata.database import Prepared
from lading.metadata.garbage import Retention
from lading.metadata.schema import blob_extents, insert, manifest_blobs, manifest_children, manifests, tags
from lading.metadata.schema import blobs as blobs_table
from lading.metadata.schema import repositories as repositories_table
from lading.oci.digest import Digest
from lading.oci.manifest import Manifest


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it was pushed."""

    id: int
    digest: Digest
    media_type: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that names a subject, as the referrers list describes it; `cursor` orders the list."""

    cursor: int
    media_type: str
    digest: Digest
    content_bytes: int
    artifact_type: str | None
    annotations: Mapping[str, str]


_LIVE = manifests.c.deleted_us.is_(None)
_BY_TAG = Prepared(
    sa.select(manifests.c.id, manifests.c.alg, manifests.c.digest, manifests.c.media_type, manifests.c.payload)
    .select_from(
        repositories_table.join(tags, tags.c.repo_id == repositories_table.c.id).join(
            manifests, manifests.c.id == tags.c.manifest_id
        )
    )
    .where(repositories_table.c.name == sa.bindparam("name"), tags.c.name == sa.bindparam("tag"), _LIVE)
)
_BY_DIGEST = Prepared(
    sa.select(manifests.c.id, manifests.c.media_type, manifests.c.payload)
    .select_from(repositories_table.join(manifests, manifests.c.repo_id == repositories_table.c.id))
    .where(
        repositories_table.c.name == sa.bindparam("name"),
        manifests.c.alg == sa.bindparam("alg"),
        manifests.c.digest == sa.bindparam("digest"),
        _LIVE,
    )
)
_FIND = Prepared(
    sa.select(manifests.c.id, manifests.c.size, manifests.c.deleted_us).where(
        manifests.c.repo_id == sa.bindparam("repo_id"),
        manifests.c.alg == sa.bindparam("alg"),
        manifests.c.digest == sa.bindparam("digest"),
    )
)
_INSERT = Prepared(
    sa.insert(manifests).values(
        {column.name: sa.bindparam(column.name) for column in manifests.c if column.name not in {"id", "deleted_us"}}
    )
)
_REVIVE = Prepared(
    sa.update(manifests)
    .where(manifests.c.id == sa.bindparam("at_id"))
    .values(deleted_us=sa.null(), media_type=sa.bindparam("pushed_type"))
)
_PAYLOAD = Prepared(sa.select(manifests.c.payload).where(manifests.c.id == sa.bindparam("at_id")))
_MEND = Prepared(
    sa.update(manifests)
    .where(manifests.c.id == sa.bindparam("at_id"))
    .values(payload=sa.bindparam("pushed"), size=sa.bindparam("pushed_bytes"))
)
_UNHIDE = Prepared(sa.update(manifests).where(manifests.c.id == sa.bindparam("at_id")).values(deleted_us=sa.null()))
_HIDE = Prepared(
    sa.update(manifests).where(manifests.c.id == sa.bindparam("at_id")).values(deleted_us=sa.bindparam("at_us"))
)
_ADD_BLOB = Prepared(
    insert(manifest_blobs)
    .values({name: sa.bindparam(name) for name in ("manifest_id", "position", "blob_id", "repo_id")})
    .on_conflict_do_nothing()
)
_AWAIT_BLOB = Prepared(
    insert(manifest_blobs)
    .values(
        {name: sa.bindparam(name) for name in ("manifest_id", "position", "awaited_alg", "awaited_digest", "repo_id")}
    )
    .on_conflict_do_nothing()
)
_BLOB_CAME = Prepared(
    sa.update(manifest_blobs)
    .where(
        manifest_blobs.c.blob_id.is_(None),
        manifest_blobs.c.awaited_alg == sa.bindparam("at_alg"),
        manifest_blobs.c.awaited_digest == sa.bindparam("at_digest"),
        manifest_blobs.c.repo_id == sa.bindparam("at_repo"),
    )
    .values(blob_id=sa.bindparam("new_id"), awaited_alg=sa.null(), awaited_digest=sa.null())
)
_ADD_CHILD = Prepared(
    sa.insert(manifest_children).values(
        {name: sa.bindparam(name) for name in ("parent_id", "position", "child_alg", "child_digest", "child_id")}
    )
)
_ADOPT = Prepared(
    sa.update(manifest_children)
    .where(
        manifest_children.c.child_id.is_(None),
        manifest_children.c.child_alg == sa.bindparam("at_alg"),
        manifest_children.c.child_digest == sa.bindparam("at_digest"),
        sa.exists().where(
            manifests.c.id == manifest_children.c.parent_id, manifests.c.repo_id == sa.bindparam("at_repo")
        ),
    )
    .values(child_id=sa.bindparam("new_id"))
)
_HOLDING_BLOB = Prepared(
    sa.select(manifests.c.alg, manifests.c.digest)
    .select_from(manifest_blobs.join(manifests, manifests.c.id == manifest_blobs.c.manifest_id))
    .where(
        manifest_blobs.c.blob_id == sa.bindparam("blob_id"), manifest_blobs.c.repo_id == sa.bindparam("repo_id"), _LIVE
    )
    .distinct()
    .limit(sa.bindparam("entries"))
)
_LISTING = (
    sa.select(manifests.c.alg, manifests.c.digest)
    .select_from(manifest_children.join(manifests, manifests.c.id == manifest_children.c.parent_id))
    .where(manifest_children.c.child_id == sa.bindparam("manifest_id"), _LIVE)
    .distinct()
    .limit(sa.bindparam("entries"))
)
_REFERRERS = Prepared(
    sa.select(
        manifests.c.id,
        manifests.c.media_type,
        manifests.c.alg,
        manifests.c.digest,
        manifests.c.size,
        manifests.c.artifact_type,
        manifests.c.annotations,
    )
    .where(
        manifests.c.repo_id == sa.bindparam("repo_id"),
        manifests.c.subject_alg == sa.bindparam("alg"),
        manifests.c.subject_digest == sa.bindparam("digest"),
        manifests.c.subject_digest.is_not(None),
        _LIVE,
        manifests.c.id > sa.bindparam("after"),
    )
    .order_by(manifests.c.id)
    .limit(sa.bindparam("entries"))
)


def by_tag(tx: sa.Connection, repository: str, tag: str) -> StoredManifest | None:
    """Return the manifest that the tag names. One statement."""
    row = _BY_TAG.one(tx, name=repository, tag=tag)
    return None if row is None else StoredManifest(row[0], digest_of(row[1], row[2]), row[3], row[4])


def by_digest(tx: sa.Connection, repository: str, digest: Digest) -> StoredManifest | None:
    """Return the live manifest of that digest. One statement."""
    row = _BY_DIGEST.one(tx, name=repository, alg=int(digest.algorithm), digest=digest.raw)
    return None if row is None else StoredManifest(row[0], digest, row[1], row[2])


def find_live(tx: sa.Connection, repo_id: int, digest: Digest) -> tuple[int, int] | None:
    """Return the id and size in bytes of a live manifest."""
    row = _FIND.one(tx, repo_id=repo_id, alg=int(digest.algorithm), digest=digest.raw)
    return None if row is None or row[2] is not None else (row[0], row[1])


def find_any(tx: sa.Connection, repo_id: int, digest: Digest) -> int | None:
    """Return the id of a manifest, deleted or not."""
    row = _FIND.one(tx, repo_id=repo_id, alg=int(digest.algorithm), digest=digest.raw)
    return None if row is None else int(row[0])


@dataclass(frozen=True, slots=True)
class References:
    """The rows behind a manifest's descriptors, by position: its blobs, and an index's children (None: sparse).

    `awaited` are blobs that may be absent and are: a layer fetched from elsewhere, anything of a sparse manifest.
    """

    blobs: Sequence[tuple[int, int]] = ()
    awaited: Sequence[tuple[int, Digest]] = ()
    children: Sequence[tuple[int, Digest, int | None]] = ()


def put(  # noqa: PLR0913 - one row, and where it goes
    tx: sa.Connection,
    repository: str,
    repo_id: int,
    digest: Digest,
    manifest: Manifest,
    references: References,
    *,
    actor: str,
    at_us: int,
) -> int:
    """Store the manifest, or bring it back when it was deleted; return its id.

    Pushing it again changes nothing, unless its bytes are wrong: then they are put right (E4).
    """
    row = _FIND.one(tx, repo_id=repo_id, alg=int(digest.algorithm), digest=digest.raw)
    if row is None:
        manifest_id = _insert(tx, repo_id, digest, manifest, at_us)
        _add_references(tx, repo_id, manifest_id, references)
    else:
        manifest_id = int(row[0])
        if _PAYLOAD.one(tx, at_id=manifest_id) != (manifest.payload,):
            _MEND.run(tx, at_id=manifest_id, pushed=manifest.payload, pushed_bytes=len(manifest.payload))
            feed.append(tx, feed.Kind.MANIFEST_HEALED, repository=repository, digest=digest, actor=actor, at_us=at_us)
        if row[2] is None:
            return manifest_id
        _REVIVE.run(tx, at_id=manifest_id, pushed_type=manifest.media_type)
    _ADOPT.run(tx, at_alg=int(digest.algorithm), at_digest=digest.raw, at_repo=repo_id, new_id=manifest_id)
    repositories.count_manifests(tx, repo_id, +1)
    feed.append(tx, feed.Kind.MANIFEST_PUT, repository=repository, digest=digest, actor=actor, at_us=at_us)
    return manifest_id


def blob_came(tx: sa.Connection, repo_id: int, blob_id: int, digest: Digest) -> None:
    """Have manifests of the repository that awaited the blob hold it (I3)."""
    _BLOB_CAME.run(tx, at_alg=int(digest.algorithm), at_digest=digest.raw, at_repo=repo_id, new_id=blob_id)


def _add_references(tx: sa.Connection, repo_id: int, manifest_id: int, references: References) -> None:
    for position, blob_id in references.blobs:
        _ADD_BLOB.run(tx, manifest_id=manifest_id, position=position, blob_id=blob_id, repo_id=repo_id)
    for position, digest in references.awaited:
        _AWAIT_BLOB.run(
            tx,
            manifest_id=manifest_id,
            position=position,
            awaited_alg=int(digest.algorithm),
            awaited_digest=digest.raw,
            repo_id=repo_id,
        )
    for position, child, child_id in references.children:
        _ADD_CHILD.run(
            tx,
            parent_id=manifest_id,
            position=position,
            child_alg=int(child.algorithm),
            child_digest=child.raw,
            child_id=child_id,
        )


def _insert(tx: sa.Connection, repo_id: int, digest: Digest, manifest: Manifest, at_us: int) -> int:
    subject = manifest.subject.digest if manifest.subject else None
    annotations = (
        json.dumps(dict(manifest.annotations), ensure_ascii=False) if subject and manifest.annotations else None
    )
    return _INSERT.insert(
        tx,
        repo_id=repo_id,
        alg=int(digest.algorithm),
        digest=digest.raw,
        media_type=manifest.media_type,
        artifact_type=manifest.artifact_type,
        subject_alg=subject and int(subject.algorithm),
        subject_digest=subject and subject.raw,
        size=len(manifest.payload),
        annotations=annotations,
        created_us=at_us,
        payload=manifest.payload,
    )


def hide(  # noqa: PLR0913 - which row, and who did it when
    tx: sa.Connection,
    repository: str,
    repo_id: int,
    manifest_id: int,
    digest: Digest,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> None:
    """Hide a live manifest whose tags are gone already; the collector removes it after the undo window."""
    _HIDE.run(tx, at_id=manifest_id, at_us=at_us)
    repositories.count_manifests(tx, repo_id, -1)
    garbage.review_manifest(tx, manifest_id, after_us=at_us + retention.undo_us, event="deleted")
    feed.append(tx, feed.Kind.MANIFEST_DELETED, repository=repository, digest=digest, actor=actor, at_us=at_us)


# Bringing back

_MAX_NESTING = 16
"""How deep an index of indexes is followed."""
_TREE = sa.select(sa.bindparam("root", type_=sa.BigInteger).label("id"), sa.literal(0).label("depth")).cte(
    "tree", recursive=True
)
_TREE = _TREE.union(
    sa.select(manifest_children.c.child_id, _TREE.c.depth + 1)
    .select_from(manifest_children.join(_TREE, manifest_children.c.parent_id == _TREE.c.id))
    .where(manifest_children.c.child_id.is_not(None), _TREE.c.depth < _MAX_NESTING)
)
_HIDDEN_UNDER = (
    sa.select(manifests.c.id, manifests.c.alg, manifests.c.digest)
    .select_from(manifests.join(_TREE, _TREE.c.id == manifests.c.id))
    .where(manifests.c.deleted_us.is_not(None))
    .group_by(manifests.c.id)
    .order_by(sa.func.max(_TREE.c.depth).desc(), manifests.c.id)
)
_OBJECTS_UNDER = (
    sa.select(blobs_table.c.alg, blobs_table.c.digest, blob_extents.c.object_key, blobs_table.c.size)
    .select_from(
        _TREE.join(manifest_blobs, manifest_blobs.c.manifest_id == _TREE.c.id)
        .join(blobs_table, blobs_table.c.id == manifest_blobs.c.blob_id)
        .join(blob_extents, blob_extents.c.blob_id == blobs_table.c.id)
    )
    .distinct()
)
_BLOBS_OF = (
    sa.select(blobs_table.c.id, blobs_table.c.alg, blobs_table.c.digest)
    .select_from(manifest_blobs.join(blobs_table, blobs_table.c.id == manifest_blobs.c.blob_id))
    .where(manifest_blobs.c.manifest_id == sa.bindparam("manifest_id"))
    .distinct()
)


def objects_under(tx: sa.Connection, manifest_id: int) -> list[tuple[Digest, str, int]]:
    """Return the objects, with the bytes each has to have, that the manifest and all below it need."""
    rows = tx.execute(_OBJECTS_UNDER, {"root": manifest_id})
    return [(digest_of(alg, raw), object_key, size) for alg, raw, object_key, size in rows]


def restore(  # noqa: PLR0913 - which row, and who did it when
    tx: sa.Connection,
    repository: str,
    repo_id: int,
    manifest_id: int,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> int:
    """Bring the manifest back, with what an index lists and with their blobs; return how many were hidden."""
    hidden = tx.execute(_HIDDEN_UNDER, {"root": manifest_id}).all()
    for one_id, alg, raw in hidden:
        digest = digest_of(alg, raw)
        for blob_id, blob_alg, blob_raw in tx.execute(_BLOBS_OF, {"manifest_id": one_id}).all():
            blob = digest_of(blob_alg, blob_raw)
            blobs.show(tx, repository, repo_id, blob_id, blob, actor=actor, at_us=at_us, retention=retention)
            blob_came(tx, repo_id, blob_id, blob)
        _UNHIDE.run(tx, at_id=one_id)
        _ADOPT.run(tx, at_alg=alg, at_digest=raw, at_repo=repo_id, new_id=one_id)
        repositories.count_manifests(tx, repo_id, +1)
        feed.append(tx, feed.Kind.MANIFEST_RESTORED, repository=repository, digest=digest, actor=actor, at_us=at_us)
    return len(hidden)


def listing(tx: sa.Connection, manifest_id: int, *, entries: int) -> list[Digest]:
    """Return up to `entries` live indexes that list the manifest."""
    return [digest_of(*row) for row in tx.execute(_LISTING, {"manifest_id": manifest_id, "entries": entries})]


def holding_blob(tx: sa.Connection, repo_id: int, blob_id: int, *, entries: int) -> list[Digest]:
    """Return up to `entries` live manifests of the repository that refer to the blob."""
    return [digest_of(*row) for row in _HOLDING_BLOB.all(tx, repo_id=repo_id, blob_id=blob_id, entries=entries)]


def referrers(tx: sa.Connection, repo_id: int, subject: Digest, *, after: int, entries: int) -> list[Referrer]:
    """Return up to `entries` live manifests whose subject is `subject`, oldest first, after the cursor `after`."""
    rows = _REFERRERS.all(
        tx, repo_id=repo_id, alg=int(subject.algorithm), digest=subject.raw, after=after, entries=entries
    )
    return [
        Referrer(cursor, media_type, digest_of(alg, digest), size, artifact_type, json.loads(annotations or "{}"))
        for cursor, media_type, alg, digest, size, artifact_type, annotations in rows
    ]
