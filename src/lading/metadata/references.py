"""Manifests against what their bytes say: digest, size, subject, and a row for every reference (V2, I3)."""

import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from lading.metadata.schema import (
    blob_extents,
    blob_payloads,
    blobs,
    manifest_blobs,
    manifest_children,
    manifests,
    repo_blobs,
    repositories,
)
from lading.metadata.verify import ENTRIES, Fault, digest_or_none, digest_text
from lading.oci.descriptor import Descriptor
from lading.oci.digest import Digest
from lading.oci.errors import ManifestInvalid
from lading.oci.manifest import Manifest, parse

_PAGE = (
    sa.select(manifests, repositories.c.name.label("repository"))
    .select_from(manifests.outerjoin(repositories, repositories.c.id == manifests.c.repo_id))
    .where(manifests.c.id > sa.bindparam("after"))
    .order_by(manifests.c.id)
    .limit(ENTRIES)
    .execution_options(yield_per=1)
)
_EXTENT_BYTES = (
    sa.select(sa.func.max(blob_extents.c.size)).where(blob_extents.c.blob_id == blobs.c.id).scalar_subquery()
)
_BLOBS = (
    sa.select(
        manifest_blobs,
        blobs.c.alg,
        blobs.c.digest,
        blobs.c.size,
        sa.func.coalesce(_EXTENT_BYTES, sa.func.length(blob_payloads.c.data), blobs.c.size).label("stored_bytes"),
        sa.and_(repo_blobs.c.blob_id.is_not(None), repo_blobs.c.hidden_us.is_(None)).label("linked"),
    )
    .select_from(
        manifest_blobs.outerjoin(blobs, blobs.c.id == manifest_blobs.c.blob_id)
        .outerjoin(blob_payloads, blob_payloads.c.blob_id == manifest_blobs.c.blob_id)
        .outerjoin(
            repo_blobs,
            sa.and_(repo_blobs.c.repo_id == sa.bindparam("of_repo"), repo_blobs.c.blob_id == manifest_blobs.c.blob_id),
        )
    )
    .where(manifest_blobs.c.manifest_id == sa.bindparam("of_manifest"))
)
_CHILDREN = (
    sa.select(
        manifest_children,
        manifests.c.alg,
        manifests.c.digest,
        manifests.c.size,
        manifests.c.repo_id,
        sa.func.length(manifests.c.payload).label("payload_bytes"),
    )
    .select_from(manifest_children.outerjoin(manifests, manifests.c.id == manifest_children.c.child_id))
    .where(manifest_children.c.parent_id == sa.bindparam("of_manifest"))
)


def manifest_faults(tx: sa.Connection, after: int) -> tuple[list[Fault], int | None, int]:
    """Hold a page of manifests against their payloads; return the faults, the next page, and how many were read."""
    faults: list[Fault] = []
    last, seen = after, 0
    for row in tx.execute(_PAGE, {"after": after}):
        last, seen = row.id, seen + 1
        where = (() if row.repository is None else (row.repository,), None, digest_text(row.alg, row.digest))
        faults += [Fault(code, what, *where) for code, what in _problems(tx, row)]
    return faults, (last if seen == ENTRIES else None), seen


def _problems(tx: sa.Connection, row: sa.Row[Any]) -> Iterator[tuple[str, str]]:
    digest = digest_or_none(row.alg, row.digest)
    if digest is None or Digest.of(row.payload, digest.algorithm) != digest:
        yield "manifest-wrong", "its bytes are something else"
        return
    if row.size != len(row.payload):
        yield "size-wrong", f"its row says {row.size} bytes, the manifest has {len(row.payload)}"
    try:
        manifest = parse(row.payload, row.media_type)
    except ManifestInvalid as error:
        yield "manifest-misread", f"as {row.media_type}, which its row says, it is not valid: {error}"
        return
    if _remembered(row) != _said(manifest):
        yield "manifest-misread", "its row has another subject, artifact type or annotations than the manifest"
    yield from _reference_problems(tx, row, manifest)


def _remembered(row: sa.Row[Any]) -> tuple[object, ...]:
    subject = None if row.subject_digest is None else digest_text(row.subject_alg, row.subject_digest)
    try:
        return row.artifact_type, subject, row.annotations and json.loads(row.annotations)
    except ValueError:
        return row.artifact_type, subject, row.annotations


def _said(manifest: Manifest) -> tuple[object, ...]:
    subject = manifest.subject and str(manifest.subject.digest)
    return manifest.artifact_type, subject, dict(manifest.annotations) if subject and manifest.annotations else None


def _reference_problems(tx: sa.Connection, row: sa.Row[Any], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Hold each descriptor against the rows at its position; rows that lead nowhere are told of elsewhere."""
    wanted = (*manifest.blobs, *manifest.optional_blobs, *manifest.children)
    names = {"of_manifest": row.id, "of_repo": row.repo_id}
    held = {found.position: found for found in tx.execute(_BLOBS, names)}
    children = {found.position: found for found in tx.execute(_CHILDREN, {"of_manifest": row.id})}
    for position, descriptor in enumerate(wanted):
        may_be_hidden = row.deleted_us is not None or 0 <= position - len(manifest.blobs) < len(manifest.optional_blobs)
        blob, child = held.get(position), children.get(position)
        if blob is None and child is None:
            yield "reference-missing", f"no row holds {descriptor.digest} for it"
        if blob is not None:
            yield from _blob_problems(blob, descriptor, may_be_hidden=may_be_hidden or child is not None)
        if child is not None:
            yield from _child_problems(child, descriptor, row.repo_id)
    for position in sorted({*held, *children} - set(range(len(wanted)))):
        yield "reference-wrong", f"a row holds something at position {position}, where it refers to nothing"


def _blob_problems(blob: sa.Row[Any], descriptor: Descriptor, *, may_be_hidden: bool) -> Iterator[tuple[str, str]]:
    if blob.blob_id is None:
        if not _is(descriptor, blob.awaited_alg, blob.awaited_digest):
            yield (
                "reference-wrong",
                f"its row at position {blob.position} awaits something else than {descriptor.digest}",
            )
        return
    if blob.digest is None:
        return
    if not _is(descriptor, blob.alg, blob.digest):
        yield "reference-wrong", f"its row at position {blob.position} holds something else than {descriptor.digest}"
    elif descriptor.content_bytes not in {blob.size, blob.stored_bytes}:
        yield "descriptor-wrong", _other_size(descriptor, blob.size)
    elif not blob.linked and not may_be_hidden:
        yield "link-missing", f"its repository does not show {descriptor.digest}, to which it refers"


def _child_problems(child: sa.Row[Any], descriptor: Descriptor, repo_id: int) -> Iterator[tuple[str, str]]:
    held_there = child.digest is None or (_is(descriptor, child.alg, child.digest) and child.repo_id == repo_id)
    if not (held_there and _is(descriptor, child.child_alg, child.child_digest)):
        yield "reference-wrong", f"its row at position {child.position} holds something else than {descriptor.digest}"
    elif child.size is not None and descriptor.content_bytes not in {child.size, child.payload_bytes}:
        yield "descriptor-wrong", _other_size(descriptor, child.size)


def _is(descriptor: Descriptor, alg: int, raw: bytes) -> bool:
    return (alg, raw) == (descriptor.digest.algorithm, descriptor.digest.raw)


def _other_size(descriptor: Descriptor, stored_bytes: int) -> str:
    return f"it says that {descriptor.digest} has {descriptor.content_bytes} bytes, which has {stored_bytes}"
