"""What a scrub asks and changes: pages of what is stored, and a blob whose bytes are wrong becomes one without bytes.

Content in the database is hashed here; that of objects is the caller's to read.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import feed, garbage
from lading.metadata.schema import blob_extents, blob_payloads, blobs, manifests, repositories
from lading.metadata.verify import digest_or_none
from lading.oci.digest import Digest

ACTOR = "scrub"
"""Who did it, as the feed tells."""
ENTRIES = 64
"""How many rows a page has: few, since the payloads of blobs and manifests are read with it."""


@dataclass(frozen=True, slots=True)
class ScrubbedBlob:
    """A blob to be looked at. `object_key` is its object, `is_wrong` tells of one whose bytes are in the database."""

    id: int
    digest: Digest
    content_bytes: int
    store_id: int | None
    object_key: str | None
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class BlobPage:
    """A page of blobs: those to be looked at, the id of the last one (None at the end), the bytes hashed for it."""

    blobs: list[ScrubbedBlob]
    last: int | None
    hashed_bytes: int


def blob_page(tx: sa.Connection, after: int) -> BlobPage:
    """Return the blobs after an id. Whose rows make no sense, or lack bytes, is `lading verify`'s to tell."""
    ids = sa.select(blobs.c.id).where(blobs.c.id > after).order_by(blobs.c.id).limit(ENTRIES).subquery()
    rows = tx.execute(
        sa.select(
            blobs.c.id,
            blobs.c.alg,
            blobs.c.digest,
            blobs.c.size,
            blob_extents.c.store_id,
            blob_extents.c.object_key,
            blob_payloads.c.data,
        )
        .select_from(
            ids.join(blobs, blobs.c.id == ids.c.id)
            .outerjoin(blob_extents, blob_extents.c.blob_id == blobs.c.id)
            .outerjoin(blob_payloads, blob_payloads.c.blob_id == blobs.c.id)
        )
        .order_by(blobs.c.id)
        .execution_options(yield_per=1)
    )
    found: list[ScrubbedBlob] = []
    last, hashed_bytes = None, 0
    for blob_id, alg, raw, size, store_id, object_key, data in rows:
        last = blob_id
        digest = digest_or_none(alg, raw)
        if digest is None or (data is None and object_key is None):
            continue
        is_wrong = data is not None and Digest.of(data, digest.algorithm) != digest
        hashed_bytes += len(data or b"")
        if object_key is not None or is_wrong:
            found.append(ScrubbedBlob(blob_id, digest, size, store_id, object_key, is_wrong))
    return BlobPage(found, last, hashed_bytes)


def remaining_bytes(tx: sa.Connection, after: int) -> int:
    """Return how many bytes the blobs after an id have."""
    total = sa.select(sa.func.coalesce(sa.func.sum(blobs.c.size), 0)).where(blobs.c.id > after)
    return int(tx.execute(total).scalar_one())


def is_current(tx: sa.Connection, blob: ScrubbedBlob) -> bool:
    """Tell whether the blob's bytes are still where they were said to be: a push or the collector may have come."""
    at = (blob_extents.c.blob_id == blob.id, blob_extents.c.object_key == blob.object_key)
    return tx.execute(sa.select(blob_extents.c.seq).where(*at)).first() is not None


def condemn(
    tx: sa.Connection, blob: ScrubbedBlob, *, store_id: int, nowhere: str, at_us: int, doomed_until_us: int
) -> bool:
    """Have the blob's bytes be nowhere: absent for everybody, until a push brings them. False if it has others by now.

    Its row names `nowhere`, a key that no object has or will have. So a push that saw the wrong copy a moment ago, and
    took it for whole, finds another key when it commits and looks again: its own bytes are kept.
    """
    if not (_let_go_of_object(tx, blob, nowhere, doomed_until_us) or _let_go_of_payload(tx, blob, store_id, nowhere)):
        return False
    feed.append(tx, feed.Kind.BLOB_DAMAGED, repository="", digest=blob.digest, actor=ACTOR, at_us=at_us)
    return True


def _let_go_of_object(tx: sa.Connection, blob: ScrubbedBlob, nowhere: str, doomed_until_us: int) -> bool:
    if blob.object_key is None or blob.store_id is None:
        return False
    changed = tx.execute(
        sa.update(blob_extents)
        .where(
            blob_extents.c.blob_id == blob.id,
            blob_extents.c.store_id == blob.store_id,
            blob_extents.c.object_key == blob.object_key,
        )
        .values(object_key=nowhere)
    ).rowcount
    if changed:  # where it cannot be moved away, it still goes in the end
        garbage.doom(tx, blob.store_id, blob.object_key, not_before_us=doomed_until_us, reason="damaged")
    return changed > 0


def _let_go_of_payload(tx: sa.Connection, blob: ScrubbedBlob, store_id: int, nowhere: str) -> bool:
    """Put an extent in the place of the payload: an absent object is what pushes and pulls know how to meet."""
    if blob.object_key is not None:
        return False
    at = blob_payloads.c.blob_id == blob.id
    data = tx.execute(sa.select(blob_payloads.c.data).where(at)).scalar()
    if data is None or Digest.of(data, blob.digest.algorithm) == blob.digest:
        return False
    tx.execute(sa.delete(blob_payloads).where(at))
    tx.execute(
        sa.insert(blob_extents).values(
            blob_id=blob.id, store_id=store_id, seq=0, object_key=nowhere, size=blob.content_bytes
        )
    )
    return True


@dataclass(frozen=True, slots=True)
class WrongManifest:
    """A manifest whose bytes are something else than its digest says."""

    repository: str | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class ManifestPage:
    """A page of manifests: the wrong ones, the id of the last one (None at the end), how many, the bytes hashed."""

    wrong: list[WrongManifest]
    last: int | None
    seen: int
    hashed_bytes: int


def manifest_page(tx: sa.Connection, after: int) -> ManifestPage:
    """Hash the manifests after an id, deleted ones too: they can be brought back."""
    rows = tx.execute(
        sa.select(manifests.c.id, manifests.c.alg, manifests.c.digest, repositories.c.name, manifests.c.payload)
        .select_from(manifests.outerjoin(repositories, repositories.c.id == manifests.c.repo_id))
        .where(manifests.c.id > after)
        .order_by(manifests.c.id)
        .limit(ENTRIES)
        .execution_options(yield_per=1)
    )
    wrong: list[WrongManifest] = []
    last, seen, hashed_bytes = None, 0, 0
    for manifest_id, alg, raw, repository, payload in rows:
        last, seen, hashed_bytes = manifest_id, seen + 1, hashed_bytes + len(payload)
        digest = digest_or_none(alg, raw)
        if digest is not None and Digest.of(payload, digest.algorithm) != digest:
            wrong.append(WrongManifest(repository, digest))
    return ManifestPage(wrong, last, seen, hashed_bytes)


def count_manifests(tx: sa.Connection, after: int) -> int:
    """Return how many manifests there are after an id."""
    return int(tx.execute(sa.select(sa.func.count()).where(manifests.c.id > after)).scalar_one())
