"""Blobs: the content, where its bytes are, and which repositories may see it (I4)."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import feed, garbage, repositories
from lading.metadata.database import Prepared
from lading.metadata.garbage import Retention
from lading.metadata.schema import blob_extents, blob_payloads, blobs, insert, repo_blobs
from lading.metadata.schema import repositories as repositories_table
from lading.oci.digest import Algorithm, Digest
from lading.oci.errors import LadingError


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob. `object_key` names its file; None means that its bytes are in the database."""

    id: int
    digest: Digest
    content_bytes: int
    object_key: str | None


@dataclass(frozen=True, slots=True)
class LinkedBlob:
    """A blob as one repository sees it, kept for its next manifest until `keep_until_us`."""

    blob: Blob
    repo_id: int
    keep_until_us: int


_EXTENT = sa.and_(blob_extents.c.blob_id == blobs.c.id, blob_extents.c.seq == sa.literal_column("0"))
_LINKED = Prepared(
    sa.select(blobs.c.id, blobs.c.size, blob_extents.c.object_key, repo_blobs.c.repo_id, repo_blobs.c.keep_until_us)
    .select_from(
        repositories_table.join(
            blobs, sa.and_(blobs.c.alg == sa.bindparam("alg"), blobs.c.digest == sa.bindparam("digest"))
        )
        .join(
            repo_blobs,
            sa.and_(repo_blobs.c.repo_id == repositories_table.c.id, repo_blobs.c.blob_id == blobs.c.id),
        )
        .outerjoin(blob_extents, _EXTENT)
    )
    .where(repositories_table.c.name == sa.bindparam("name"), repo_blobs.c.hidden_us.is_(None))
)
_STORED = Prepared(
    sa.select(blobs.c.id, blobs.c.size, blob_extents.c.object_key, blob_extents.c.store_id)
    .select_from(blobs.outerjoin(blob_extents, _EXTENT))
    .where(blobs.c.alg == sa.bindparam("alg"), blobs.c.digest == sa.bindparam("digest"))
)
_PAYLOAD = Prepared(sa.select(blob_payloads.c.data).where(blob_payloads.c.blob_id == sa.bindparam("blob_id")))
_HOLDERS = Prepared(
    sa.select(repositories_table.c.name)
    .select_from(
        blobs.join(repo_blobs, repo_blobs.c.blob_id == blobs.c.id).join(
            repositories_table, repositories_table.c.id == repo_blobs.c.repo_id
        )
    )
    .where(
        blobs.c.alg == sa.bindparam("alg"),
        blobs.c.digest == sa.bindparam("digest"),
        repo_blobs.c.hidden_us.is_(None),
    )
    .limit(sa.bindparam("entries"))
)
_INSERT = Prepared(
    sa.insert(blobs).values({name: sa.bindparam(name) for name in ("alg", "digest", "size", "created_us")})
)
_INSERT_PAYLOAD = Prepared(sa.insert(blob_payloads).values(blob_id=sa.bindparam("blob_id"), data=sa.bindparam("data")))
_INSERT_EXTENT = Prepared(
    sa.insert(blob_extents).values(
        {name: sa.bindparam(name) for name in ("blob_id", "store_id", "seq", "object_key", "size")}
    )
)
_DELETE_EXTENTS = Prepared(sa.delete(blob_extents).where(blob_extents.c.blob_id == sa.bindparam("blob_id")))
_LINK_INSERT = insert(repo_blobs).values({name: sa.bindparam(name) for name in ("repo_id", "blob_id", "keep_until_us")})
_LINK = Prepared(
    _LINK_INSERT.on_conflict_do_update(
        index_elements=["repo_id", "blob_id"],
        set_={"keep_until_us": _LINK_INSERT.excluded.keep_until_us, "hidden_us": sa.null()},
    )
)
_IS_LINKED = Prepared(
    sa.select(repo_blobs.c.blob_id).where(
        repo_blobs.c.repo_id == sa.bindparam("repo_id"),
        repo_blobs.c.blob_id == sa.bindparam("blob_id"),
        repo_blobs.c.hidden_us.is_(None),
    )
)
_LEASE = Prepared(
    sa.update(repo_blobs)
    .where(
        repo_blobs.c.repo_id == sa.bindparam("at_repo"),
        repo_blobs.c.blob_id == sa.bindparam("at_blob"),
        repo_blobs.c.hidden_us.is_(None),
    )
    .values(keep_until_us=sa.bindparam("until_us"))
)
_HIDE = Prepared(
    sa.update(repo_blobs)
    .where(repo_blobs.c.repo_id == sa.bindparam("at_repo"), repo_blobs.c.blob_id == sa.bindparam("at_blob"))
    .values(hidden_us=sa.bindparam("at_us"))
)


def find(tx: sa.Connection, repository: str, digest: Digest) -> LinkedBlob | None:
    """Return the blob when `repository` may see it. One statement."""
    row = _LINKED.one(tx, name=repository, alg=int(digest.algorithm), digest=digest.raw)
    if row is None:
        return None
    blob_id, size, object_key, repo_id, keep_until_us = row
    return LinkedBlob(Blob(blob_id, digest, size, object_key), repo_id, keep_until_us)


def find_all(tx: sa.Connection, repository: str, digests: frozenset[Digest]) -> dict[Digest, LinkedBlob]:
    """Return those of the blobs that `repository` may see."""
    found = {digest: find(tx, repository, digest) for digest in digests}
    return {digest: blob for digest, blob in found.items() if blob is not None}


def stored(tx: sa.Connection, digest: Digest) -> Blob | None:
    """Return the blob wherever it is linked: for pushers who bring its bytes, and for nobody else (I4)."""
    row = _STORED.one(tx, alg=int(digest.algorithm), digest=digest.raw)
    return None if row is None else Blob(row[0], digest, row[1], row[2])


def payload(tx: sa.Connection, blob_id: int) -> bytes | None:
    """Return the bytes of a blob that lives in the database. Only after `find` has shown it to the caller (I4)."""
    row = _PAYLOAD.one(tx, blob_id=blob_id)
    return None if row is None else bytes(row[0])


def holders(tx: sa.Connection, digest: Digest, *, entries: int) -> list[str]:
    """Return up to `entries` repositories that see the blob, for a mount without `from`."""
    return [row[0] for row in _HOLDERS.all(tx, alg=int(digest.algorithm), digest=digest.raw, entries=entries)]


@dataclass(frozen=True, slots=True)
class NewContent:
    """Bytes that are durable, or will be with this transaction: an object of a store, or the bytes themselves."""

    digest: Digest
    content_bytes: int
    store_id: int
    object_key: str | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class SeenCopy:
    """The stored copy as a pusher found it just now: None where there is none, and whether its bytes are all there."""

    blob: Blob | None
    whole: bool


class CopyChanged(LadingError):  # noqa: N818 - what happened between two statements, never answered to a client
    """The stored copy is not the one that the caller has looked at: it has to look again."""


def record(  # noqa: PLR0913 - what came, and who brought it when
    tx: sa.Connection,
    repository: str,
    content: NewContent,
    seen: SeenCopy,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> tuple[int, bool]:
    """Return the blob's id, and whether `content` is now its copy.

    A whole copy stays, and then `content` need bring neither object nor data. One whose bytes are gone is replaced,
    which heals the blob (E4).

    Raises:
        CopyChanged: the stored copy is no longer what was seen.

    """
    row = _STORED.one(tx, alg=int(content.digest.algorithm), digest=content.digest.raw)
    if (row and row[0], row and row[2]) != (seen.blob and seen.blob.id, seen.blob and seen.blob.object_key):
        raise CopyChanged
    if row is None:
        blob_id = _INSERT.insert(
            tx,
            alg=int(content.digest.algorithm),
            digest=content.digest.raw,
            size=content.content_bytes,
            created_us=at_us,
        )
        _place(tx, blob_id, content)
        return blob_id, True
    blob_id, _, object_key, store_id = row
    if seen.whole:
        return blob_id, False
    _DELETE_EXTENTS.run(tx, blob_id=blob_id)
    _place(tx, blob_id, content)
    garbage.doom(tx, store_id, object_key, not_before_us=at_us + retention.delay_us, reason="replaced")
    feed.append(tx, feed.Kind.BLOB_HEALED, repository=repository, digest=content.digest, actor=actor, at_us=at_us)
    return blob_id, True


def _place(tx: sa.Connection, blob_id: int, content: NewContent) -> None:
    if content.object_key is None:
        _INSERT_PAYLOAD.insert(tx, blob_id=blob_id, data=content.data)
    else:
        _INSERT_EXTENT.run(
            tx,
            blob_id=blob_id,
            store_id=content.store_id,
            seq=0,
            object_key=content.object_key,
            size=content.content_bytes,
        )


def link(  # noqa: PLR0913 - which blob to whom, and who did it when
    tx: sa.Connection,
    repository: str,
    blob_id: int,
    digest: Digest,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> int:
    """Show the blob to the repository, which is made if need be; return the repository's id."""
    repo_id = repositories.ensure(tx, repository, actor=actor, at_us=at_us)
    show(tx, repository, repo_id, blob_id, digest, actor=actor, at_us=at_us, retention=retention)
    return repo_id


def show(  # noqa: PLR0913 - as `link`
    tx: sa.Connection,
    repository: str,
    repo_id: int,
    blob_id: int,
    digest: Digest,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> None:
    """Show the blob to the repository, and keep it there for the manifest to come."""
    until_us = at_us + retention.lease_us
    is_new = _IS_LINKED.one(tx, repo_id=repo_id, blob_id=blob_id) is None
    _LINK.run(tx, repo_id=repo_id, blob_id=blob_id, keep_until_us=until_us)
    garbage.review_blob(tx, blob_id, after_us=until_us, event="linked")
    if is_new:
        feed.append(tx, feed.Kind.BLOB_LINKED, repository=repository, digest=digest, actor=actor, at_us=at_us)


def extend_lease(tx: sa.Connection, repository: str, digest: Digest, *, at_us: int, retention: Retention) -> bool:
    """Keep the blob for another lease; False when it is no longer to be seen.

    It is looked up once more: the repository may have been collected meanwhile, and its number be another's.
    """
    linked = find(tx, repository, digest)
    if linked is None:
        return False
    until_us = at_us + retention.lease_us
    _LEASE.run(tx, at_repo=linked.repo_id, at_blob=linked.blob.id, until_us=until_us)
    garbage.review_blob(tx, linked.blob.id, after_us=until_us, event="leased")
    return True


def hide(tx: sa.Connection, linked: LinkedBlob, repository: str, *, actor: str, at_us: int) -> None:
    """Take the blob out of the repository's sight; the collector sees to the rest."""
    _HIDE.run(tx, at_repo=linked.repo_id, at_blob=linked.blob.id, at_us=at_us)
    garbage.review_blob(tx, linked.blob.id, after_us=at_us, event="deleted")
    feed.append(tx, feed.Kind.BLOB_DELETED, repository=repository, digest=linked.blob.digest, actor=actor, at_us=at_us)


def digest_of(alg: int, raw: bytes) -> Digest:
    """Return the digest that two columns hold."""
    return Digest(Algorithm(alg), raw)
