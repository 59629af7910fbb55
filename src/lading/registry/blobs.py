"""Blobs: stat, open, mount, delete. A blob exists where a row says so and its bytes are there (E1, E3)."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from lading.metadata import blobs, manifests
from lading.metadata.blobs import Blob, LinkedBlob
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.times import now_us
from lading.oci.digest import Digest
from lading.oci.errors import BlobInUse, BlobUnknown, DeleteDisabled, StorageFull
from lading.storage.disk import DiskObject, DiskStore
from lading.storage.identity import Watch

log = structlog.get_logger(__name__)
_MAX_HOLDERS_ASKED = 100
_MAX_MANIFESTS_NAMED = 20


@dataclass(frozen=True, slots=True)
class OpenBlob:
    """A blob to be sent: its bytes, or an open object that the receiver closes."""

    content_bytes: int
    content: bytes | DiskObject


class Blobs:
    """The blobs that repositories see."""

    def __init__(
        self, database: Database, store: DiskStore, watch: Watch, *, retention: Retention, deletes_enabled: bool
    ) -> None:
        self._database = database
        self._store = store
        self._watch = watch
        self._retention = retention
        self._deletes_enabled = deletes_enabled

    async def stat(self, repository: str, digest: Digest, *, for_push: bool) -> int:
        """Return the blob's size in bytes.

        For a caller who may push, the answer is a promise: the blob is leased, so that the manifest which relies on
        it still finds it. Written only when less than half of the lease is left.

        Raises:
            BlobUnknown: not in this repository, or its bytes are gone; pushing it again heals that.
            StoreUnavailable: all objects are gone, so that nothing can be said of this one.

        """
        linked = await self._find(repository, digest)
        if for_push and linked.keep_until_us < now_us() + self._retention.lease_us // 2:
            await self._extend_lease(repository, digest)
        return linked.blob.content_bytes

    async def open(self, repository: str, digest: Digest) -> OpenBlob:
        """Open the blob for sending.

        Raises:
            BlobUnknown: not in this repository, or its bytes are gone.
            StoreUnavailable: all objects are gone, so that nothing can be said of this one.

        """
        linked = await self._database.read(blobs.find, repository, digest)
        if linked is None:
            raise BlobUnknown
        blob = linked.blob
        content: bytes | DiskObject | None
        if blob.object_key is None:
            content = await self._database.read(blobs.payload, blob.id)
        else:
            content = self._store.open(blob.object_key, blob.content_bytes)
        if content is None:
            self._watch.confirm_there()
            log.warning("a blob's bytes are gone; pushing it again heals it", digest=str(digest))
            raise BlobUnknown
        return OpenBlob(blob.content_bytes, content)

    async def delete(self, repository: str, digest: Digest, *, actor: str) -> None:
        """Hide the blob from the repository, at once.

        Raises:
            BlobUnknown: not in this repository.
            BlobInUse: a live manifest of the repository refers to it (I3).
            DeleteDisabled: by setting.

        """
        if not self._deletes_enabled:
            raise DeleteDisabled(("GET", "HEAD"))
        await self._database.release(_delete, repository, digest, actor, now_us())

    async def mount(
        self, repository: str, digest: Digest, *, source: str | None, may_pull: Callable[[str], bool], actor: str
    ) -> bool:
        """Show a blob of `source` to `repository` as well; False when that cannot be, for whatever reason.

        Without a source, any repository that holds the blob and that the caller may pull from will do (I4).

        Raises:
            StorageFull: the disk's last room is for deletes.

        """
        self._store.space.refuse_if_scarce()
        sources = [source] if source else await self._database.scan(blobs.holders, digest, entries=_MAX_HOLDERS_ASKED)
        for candidate in sources:
            if not may_pull(candidate):
                continue
            linked = await self._database.read(blobs.find, candidate, digest)
            if linked is not None and self.is_whole(linked.blob):
                return await self._database.write(
                    _mount, repository, candidate, digest, actor=actor, at_us=now_us(), retention=self._retention
                )
        return False

    def is_whole(self, blob: Blob) -> bool:
        """Tell whether the blob's bytes are where its row says, with the right length."""
        return blob.object_key is None or self._store.has(blob.object_key, blob.content_bytes)

    async def _extend_lease(self, repository: str, digest: Digest) -> None:
        with contextlib.suppress(StorageFull):  # nothing can be pushed now that would rely on it
            extended = await self._database.write(
                blobs.extend_lease, repository, digest, at_us=now_us(), retention=self._retention
            )
            if not extended:
                raise BlobUnknown

    async def _find(self, repository: str, digest: Digest) -> LinkedBlob:
        linked = await self._database.read(blobs.find, repository, digest)
        if linked is None:
            raise BlobUnknown
        if not self.is_whole(linked.blob):
            self._watch.confirm_there()
            raise BlobUnknown
        return linked


def _delete(tx: sa.Connection, repository: str, digest: Digest, actor: str, at_us: int) -> None:
    linked = blobs.find(tx, repository, digest)
    if linked is None:
        raise BlobUnknown
    holding = manifests.holding_blob(tx, linked.repo_id, linked.blob.id, entries=_MAX_MANIFESTS_NAMED)
    if holding:
        raise BlobInUse([str(manifest) for manifest in holding])
    blobs.hide(tx, linked, repository, actor=actor, at_us=at_us)


def _mount(  # noqa: PLR0913 - which blob, from where to where, and who did it when
    tx: sa.Connection, repository: str, source: str, digest: Digest, *, actor: str, at_us: int, retention: Retention
) -> bool:
    linked = blobs.find(tx, source, digest)
    if linked is None:
        return False
    link(tx, repository, linked.blob.id, digest, actor=actor, at_us=at_us, retention=retention)
    return True


def link(  # noqa: PLR0913 - which blob to whom, and who did it when
    tx: sa.Connection,
    repository: str,
    blob_id: int,
    digest: Digest,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> None:
    """Show the blob to the repository; manifests there that awaited it hold it from now on."""
    repo_id = blobs.link(tx, repository, blob_id, digest, actor=actor, at_us=at_us, retention=retention)
    manifests.blob_came(tx, repo_id, blob_id, digest)
