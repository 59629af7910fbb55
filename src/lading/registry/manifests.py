"""Manifests: get, put, delete. What is accepted is complete (I3), and comes back byte for byte."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from lading.metadata import blobs, manifests, repositories, tags
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.manifests import References, StoredManifest
from lading.metadata.times import now_us
from lading.oci.descriptor import Descriptor
from lading.oci.digest import Digest
from lading.oci.errors import (
    DeleteDisabled,
    DigestMismatch,
    ManifestBlobUnknown,
    ManifestInUse,
    ManifestInvalid,
    ManifestUnknown,
    NameUnknown,
)
from lading.oci.manifest import Manifest, parse
from lading.oci.names import Tag
from lading.storage.disk import DiskStore

log = structlog.get_logger(__name__)
_INLINE_LOOKUPS = 64
_MAX_INDEXES_NAMED = 20


@dataclass(frozen=True, slots=True)
class AcceptedManifest:
    """What a push made: the manifest's digest, its subject's, and the tags that now name it."""

    digest: Digest
    subject: Digest | None
    tags: Sequence[Tag]


class Manifests:
    """The manifests of all repositories. `sparse` accepts those that refer to what the repository does not have yet."""

    def __init__(
        self,
        database: Database,
        store: DiskStore,
        *,
        retention: Retention,
        sparse: bool,
        deletes_enabled: bool,
        may_delete_children: bool,
    ) -> None:
        self._database = database
        self._retention = retention
        self._store = store
        self._sparse = sparse
        self._deletes_enabled = deletes_enabled
        self._may_delete_children = may_delete_children

    async def get(self, repository: str, tag_or_digest: Tag | Digest) -> StoredManifest:
        """Return the manifest. One statement, and no file.

        Its bytes are hashed each time, which is little beside sending them: wrong ones are never served.

        Raises:
            NameUnknown, ManifestUnknown: nothing there, or its bytes are wrong; pushing it again heals that.

        """
        if isinstance(tag_or_digest, Digest):
            found = await self._database.read(manifests.by_digest, repository, tag_or_digest)
        else:
            found = await self._database.read(manifests.by_tag, repository, tag_or_digest.name)
        if found is None:
            raise await self._unknown(repository, str(tag_or_digest))
        if Digest.of(found.payload, found.digest.algorithm) != found.digest:
            log.error("a manifest's bytes are wrong; pushing it again heals it", digest=str(found.digest))
            raise ManifestUnknown(detail={"name": repository, "reference": str(tag_or_digest)})
        return found

    async def put(
        self,
        repository: str,
        payload: bytes,
        content_type: str,
        *,
        digest: Digest | None,
        names: Sequence[Tag],
        actor: str,
    ) -> AcceptedManifest:
        """Accept a manifest under all of `names`, or under its digest alone; all or nothing.

        Raises:
            DigestMismatch: the payload is not that of `digest`.
            ManifestInvalid: see `oci.manifest.parse`; or a descriptor's size is not the size of what it names.
            ManifestBlobUnknown: it refers to what the repository does not have.
            StorageFull: the disk's last room is for deletes.

        """
        actual = Digest.of(payload, digest.algorithm) if digest else Digest.of(payload)
        if digest is not None and actual != digest:
            raise DigestMismatch(f"the manifest's digest is {actual}, not {digest}")
        manifest = parse(payload, content_type)
        self._store.space.refuse_if_scarce(len(payload))
        await self._refuse_lost_blobs(repository, manifest)
        await self._database.write(self._put, repository, actual, manifest, names, actor, now_us())
        return AcceptedManifest(actual, manifest.subject.digest if manifest.subject else None, names)

    async def delete(self, repository: str, digest: Digest, *, actor: str) -> None:
        """Hide the manifest and remove its tags, at once.

        Raises:
            NameUnknown, ManifestUnknown: nothing there.
            DeleteDisabled: by setting.
            ManifestInUse: an index lists it, and that is refused by setting.

        """
        if not self._deletes_enabled:
            raise DeleteDisabled(("GET", "HEAD", "PUT"))
        await self._database.release(
            _delete,
            repository,
            digest,
            may_delete_children=self._may_delete_children,
            actor=actor,
            at_us=now_us(),
            retention=self._retention,
        )

    async def _refuse_lost_blobs(self, repository: str, manifest: Manifest) -> None:
        """Refuse a manifest whose blobs have rows but no bytes: the client pushes them again, and that heals (E4)."""
        digests = frozenset(descriptor.digest for descriptor in (*manifest.blobs, *manifest.children))
        if len(digests) <= _INLINE_LOOKUPS:
            linked = await self._database.read(blobs.find_all, repository, digests)
        else:
            linked = await self._database.scan(blobs.find_all, repository, digests)
        objects = [
            (digest, found.blob.object_key, found.blob.content_bytes)
            for digest, found in linked.items()
            if found.blob.object_key is not None
        ]
        if not objects:
            return
        if len(objects) <= _INLINE_LOOKUPS:
            whole = [self._store.has(key, size) for _, key, size in objects]
        else:
            whole = await self._store.has_all([(key, size) for _, key, size in objects])
        lost = [str(digest) for (digest, _, _), there in zip(objects, whole, strict=True) if not there]
        if lost:
            raise ManifestBlobUnknown(lost)

    def _put(  # noqa: PLR0913, PLR0917 - one transaction
        self,
        tx: sa.Connection,
        repository: str,
        digest: Digest,
        manifest: Manifest,
        names: Sequence[Tag],
        actor: str,
        at_us: int,
    ) -> None:
        references = self._resolve(tx, repository, manifest)
        repo_id = repositories.ensure(tx, repository, actor=actor, at_us=at_us)
        manifest_id = manifests.put(tx, repository, repo_id, digest, manifest, references, actor=actor, at_us=at_us)
        for tag in names:
            tags.put(
                tx,
                repository,
                repo_id,
                tag.name,
                manifest_id,
                digest,
                actor=actor,
                at_us=at_us,
                retention=self._retention,
            )

    def _resolve(self, tx: sa.Connection, repository: str, manifest: Manifest) -> References:
        """Find the rows behind every descriptor; what is found here is held by foreign keys from then on.

        An index's child may be a blob: build caches list their layers so.
        """
        wanted = (*manifest.blobs, *manifest.optional_blobs, *manifest.children)
        linked = blobs.find_all(tx, repository, frozenset(descriptor.digest for descriptor in wanted))
        repo_id = repositories.find(tx, repository) if manifest.children else None
        first_child = len(wanted) - len(manifest.children)
        found: list[tuple[int, int]] = []
        children: list[tuple[int, Digest, int | None]] = []
        awaited: list[tuple[int, Digest]] = []
        absent: list[str] = []
        for position, descriptor in enumerate(wanted):
            is_child = position >= first_child
            live = manifests.find_live(tx, repo_id, descriptor.digest) if is_child and repo_id is not None else None
            blob = linked.get(descriptor.digest)
            if live is not None:
                _refuse_other_size(descriptor, live[1])
                children.append((position, descriptor.digest, live[0]))
            elif blob is not None:
                _refuse_other_size(descriptor, blob.blob.content_bytes)
                found.append((position, blob.blob.id))
            else:
                awaited.append((position, descriptor.digest))
                if is_child:
                    children.append((position, descriptor.digest, None))
                if is_child or position < len(manifest.blobs):
                    absent.append(str(descriptor.digest))
        if absent and not self._sparse:
            raise ManifestBlobUnknown(list(dict.fromkeys(absent)))
        return References(found, awaited, children)

    async def _unknown(self, repository: str, tag_or_digest: str) -> NameUnknown | ManifestUnknown:
        if await self._database.read(repositories.find, repository) is None:
            return NameUnknown(detail={"name": repository})
        return ManifestUnknown(detail={"name": repository, "reference": tag_or_digest})


def _refuse_other_size(descriptor: Descriptor, stored_bytes: int) -> None:
    if descriptor.content_bytes != stored_bytes:
        raise ManifestInvalid(
            f"{descriptor.digest} has {stored_bytes} bytes, its descriptor says {descriptor.content_bytes}"
        )


def _delete(  # noqa: PLR0913 - what, and who did it when
    tx: sa.Connection,
    repository: str,
    digest: Digest,
    *,
    may_delete_children: bool,
    actor: str,
    at_us: int,
    retention: Retention,
) -> None:
    repo_id = repositories.find(tx, repository)
    if repo_id is None:
        raise NameUnknown(detail={"name": repository})
    live = manifests.find_live(tx, repo_id, digest)
    if live is None:
        raise ManifestUnknown(detail={"name": repository, "reference": str(digest)})
    if not may_delete_children and (indexes := manifests.listing(tx, live[0], entries=_MAX_INDEXES_NAMED)):
        raise ManifestInUse([str(index) for index in indexes])
    for name in tags.of_manifest(tx, live[0]):
        tags.delete(tx, repository, repo_id, name, actor=actor, at_us=at_us, retention=retention)
    manifests.hide(tx, repository, repo_id, live[0], digest, actor=actor, at_us=at_us, retention=retention)
