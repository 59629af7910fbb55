"""Upload sessions: start, append, commit, cancel. Object durable, then row committed, then the answer (I1)."""

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from lading.metadata import blobs, uploads
from lading.metadata.blobs import CopyChanged, NewContent, SeenCopy
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.times import SECOND_US, now_us
from lading.metadata.uploads import UploadSession
from lading.oci.digest import Algorithm, Digest, RunningDigest
from lading.oci.errors import (
    BodyTooLarge,
    Busy,
    ChunkOutOfOrder,
    DigestMismatch,
    Internal,
    RegistryError,
    SizeInvalid,
    StorageFull,
    SyncFailed,
    TooManyUploads,
    UploadUnknown,
)
from lading.oci.ranges import ChunkRange, upload_range
from lading.registry.blobs import link
from lading.storage.disk import DiskStore, StagingFile
from lading.storage.identity import Watch

Content = AsyncIterator[Sequence[bytes | memoryview]]

_NO_LIMIT = 2**63 - 1
_CHEAP_TO_REHASH_BYTES = 256 * 1024
_MAX_RUNNING_DIGESTS = 4096
_COMMIT_TRIES = 8


@dataclass(frozen=True, slots=True)
class Part:
    """The body of a PATCH or PUT: its bytes, its Content-Length, and which bytes of the blob it says it is."""

    content: Content
    declared_bytes: int | None = None
    chunk: ChunkRange | None = None


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What sessions are held to."""

    ttl_seconds: int
    max_blob_bytes: int | None
    inline_max_bytes: int
    max_sessions: int
    max_sessions_per_user: int | None


class Uploads:
    """The upload sessions of one worker's view; any worker may take any request of a session (I9)."""

    def __init__(
        self,
        database: Database,
        store: DiskStore,
        watch: Watch,
        *,
        store_id: int,
        limits: UploadLimits,
        retention: Retention,
    ) -> None:
        self._database = database
        self._store = store
        self._watch = watch
        self._store_id = store_id
        self._limits = limits
        self._retention = retention
        self._running = _RunningDigests()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    async def start(self, repository: str, algorithm: Algorithm = Algorithm.SHA256, *, actor: str) -> str:
        """Open a session that is the caller's alone; return its id.

        Raises:
            StorageFull: the disk's last room is for deletes.
            TooManyUploads: so many are open already, of this caller or of all.

        """
        self._store.space.refuse_if_scarce()
        upload_id = str(uuid.uuid4())
        at_us = now_us()
        expires_us = at_us + self._limits.ttl_seconds * SECOND_US
        await self._database.write(
            _start,
            self._limits,
            upload_id,
            repository,
            algorithm,
            actor=actor,
            at_us=at_us,
            expires_us=expires_us,
        )
        return upload_id

    async def offset(self, repository: str, upload_id: str, *, actor: str) -> int:
        """Return how many bytes the session has.

        Raises:
            UploadUnknown: the caller has no such session in this repository.

        """
        await self._find(repository, upload_id, actor)
        return self._store.staged_bytes(upload_id)

    async def append(self, repository: str, upload_id: str, part: Part, *, actor: str) -> int:
        """Add a part at the session's end; return the new offset.

        Raises:
            UploadUnknown: the caller has no such session in this repository.
            ChunkOutOfOrder: the part begins elsewhere, or another request is writing; the session is as it was.
            SizeInvalid, BodyTooLarge: the part is not what it says or too much; the session is as it was.
            StorageFull, TooManyUploads: there is no room for it; the session is as it was.
            ClientGone: what had come is kept.

        """
        session, staging = await self._lock(repository, upload_id, part, actor)
        with staging:
            running = await self._running.take(session, staging, session.algorithm)
            try:
                await self._receive(staging, part, running)
            finally:
                self._running.keep(session, staging.offset, running)
            if running is not None and staging.offset > _CHEAP_TO_REHASH_BYTES:
                await self._remember(upload_id, staging.offset, running.digest())
            return staging.offset

    async def _remember(self, upload_id: str, offset: int, digest: Digest) -> None:
        with contextlib.suppress(StorageFull):  # then the closing PUT hashes the file
            known = await self._database.write(
                uploads.advance, upload_id, offset=offset, digest=digest, boot_id=self._boot_id
            )
            if not known:
                raise UploadUnknown

    async def commit(self, repository: str, upload_id: str, digest: Digest, part: Part, *, actor: str) -> None:
        """Add the last part, check the digest, and make the blob the repository's.

        Raises:
            UploadUnknown, ChunkOutOfOrder, SizeInvalid, BodyTooLarge, StorageFull, ClientGone: as `append`.
            DigestMismatch: the content is another; the session is dropped.

        """
        session, staging = await self._lock(repository, upload_id, part, actor)
        with staging:
            running = await self._running.take(session, staging, digest.algorithm)
            try:
                await self._receive(staging, part, running)
            except BaseException:
                self._running.keep(session, staging.offset, running)
                raise
            small = staging.read_all() if staging.offset <= self._limits.inline_max_bytes else None
            if await self._digest(session, staging, digest.algorithm, running, small) != digest:
                await self._end(upload_id, staging)
                raise DigestMismatch(f"the content does not match {digest}; the upload session is dropped")
            await self._store_blob(repository, upload_id, digest, staging, small, actor=actor)

    async def put(self, repository: str, digest: Digest, part: Part, *, actor: str) -> None:
        """Store a whole blob, in a session that nobody else knows of and that does not outlive a failure.

        Raises:
            SizeInvalid, BodyTooLarge, ClientGone, DigestMismatch: as `commit`.

        """
        upload_id = await self.start(repository, digest.algorithm, actor=actor)
        try:
            await self.commit(repository, upload_id, digest, part, actor=actor)
        except BaseException:
            await self.drop(upload_id)
            raise

    async def cancel(self, repository: str, upload_id: str, *, actor: str) -> None:
        """End the session and drop its bytes.

        Raises:
            UploadUnknown: the caller has no such session in this repository.
            Busy: a request is writing it.

        """
        await self._find(repository, upload_id, actor)
        if not await self.drop(upload_id):
            await self._find(repository, upload_id, actor)
            raise Busy("a request is writing this session; try again when it has ended")

    async def drop(self, upload_id: str) -> bool:
        """End a session that is not being written, with all it left on disk; False when there was none to end."""
        staging = self._store.stage(upload_id)
        if staging is None:
            return False
        with staging:
            return await self._end(upload_id, staging)

    async def _end(self, upload_id: str, staging: StagingFile) -> bool:
        """End the session without a commit; when that is done, no row can ever name an object made from its bytes."""
        ended = await self._database.release(uploads.finish, upload_id)
        if ended:
            await self._remove_objects(upload_id, kept=None)
        staging.discard()
        return ended

    async def _remove_objects(self, upload_id: str, *, kept: str | None) -> None:
        for object_key in await self._store.objects_of(upload_id):
            if object_key != kept:
                await self._store.remove(object_key)

    async def _find(self, repository: str, upload_id: str, actor: str) -> UploadSession:
        session = await self._database.read(
            uploads.find, upload_id, repository, actor=actor, boot_id=self._boot_id, at_us=now_us()
        )
        if session is None:
            raise UploadUnknown
        return session

    async def _lock(self, repository: str, upload_id: str, part: Part, actor: str) -> tuple[UploadSession, StagingFile]:
        """Become the session's only writer, at the place where the part begins."""
        await self._find(repository, upload_id, actor)
        staging = self._store.stage(upload_id)
        if staging is None:
            await self._find(repository, upload_id, actor)
            raise _out_of_order(
                repository, upload_id, self._store.staged_bytes(upload_id), "another request is writing this session"
            )
        try:
            session = await self._find(repository, upload_id, actor)
            _check_place(repository, upload_id, part, staging.offset)
            session = await self._without_stale_digest(session, staging)
        except UploadUnknown:  # it ended between the two looks; the file is what our own opening made
            staging.discard()
            staging.close()
            raise
        except BaseException:
            staging.close()
            raise
        return session, staging

    async def _without_stale_digest(self, session: UploadSession, staging: StagingFile) -> UploadSession:
        """Forget the digest of bytes that are no longer there, before others can take their place."""
        if session.digest_offset is None or staging.offset >= session.digest_offset:
            return session
        await self._database.write(
            uploads.advance, session.id, offset=staging.offset, digest=None, boot_id=self._boot_id
        )
        return replace(session, digest_offset=None, digest=None)

    async def _receive(self, staging: StagingFile, part: Part, running: RunningDigest | None) -> None:
        """Write the part as it comes. When it is not what it says, the session is put back to where it was."""
        if part.declared_bytes != 0:
            await self._store.refuse_upload(part.declared_bytes)
        start = staging.offset
        room = (self._limits.max_blob_bytes or _NO_LIMIT) - start
        expected = part.chunk.length if part.chunk else None
        most = room if expected is None else min(room, expected)
        try:
            received = await _write(staging, part.content, running, most)
        except (StorageFull, TooManyUploads, Busy, Internal):
            with contextlib.suppress(Internal):  # a disk that cannot write may not truncate either
                staging.truncate(start)
            raise
        problem: RegistryError | None = None
        if received > room:
            problem = BodyTooLarge(f"a blob may have {self._limits.max_blob_bytes} bytes (setting blobs.max_bytes)")
        elif expected is not None and received != expected:
            problem = SizeInvalid(f"Content-Range says {expected} bytes, the body has another number")
        if problem is not None:
            staging.truncate(start)
            raise problem

    async def _digest(
        self,
        session: UploadSession,
        staging: StagingFile,
        algorithm: Algorithm,
        running: RunningDigest | None,
        small: bytes | None,
    ) -> Digest:
        """Return the digest of the whole content, by the cheapest way that is certain."""
        if small is not None:
            return Digest.of(small, algorithm)
        if running is not None:
            return running.digest()
        if session.digest is not None and session.digest_offset == staging.offset and session.algorithm is algorithm:
            return session.digest
        return (await staging.rehash(algorithm)).digest()

    async def _store_blob(
        self,
        repository: str,
        upload_id: str,
        digest: Digest,
        staging: StagingFile,
        small: bytes | None,
        *,
        actor: str,
    ) -> None:
        content = NewContent(digest, staging.offset, self._store_id, data=small)
        tried_before = staging.committing
        for _ in range(_COMMIT_TRIES):
            seen = await self._look(digest)
            if not (seen.whole or small is not None or content.object_key):
                try:
                    object_key = await self._make_object(staging, digest)
                except SyncFailed:
                    with contextlib.suppress(RegistryError):  # a disk that fails may well fail the database too
                        await self._end(upload_id, staging)
                    staging.discard()
                    raise
                content = NewContent(digest, staging.offset, self._store_id, object_key=object_key)
            try:
                used = await self._database.write(
                    _commit,
                    upload_id,
                    repository,
                    content,
                    seen,
                    actor=actor,
                    at_us=now_us(),
                    retention=self._retention,
                )
            except CopyChanged:  # another push of the same content was quicker, or the collector was
                continue
            if staging.committing:
                await self._tidy(upload_id, content.object_key, used=used, tried_before=tried_before)
            staging.discard()
            return
        raise Busy("too many requests push the same blob; try again")

    async def _make_object(self, staging: StagingFile, digest: Digest) -> str:
        """Make an object of the file, in the store that the row will speak of: another may lie there by now (E1)."""
        try:
            object_key = await staging.make_object(digest)
        except SyncFailed:
            raise
        except Internal:
            self._watch.confirm_writable()
            raise
        try:
            self._watch.confirm_writable()
        except RegistryError:
            with contextlib.suppress(OSError):
                await self._store.remove(object_key)
            raise
        return object_key

    async def _tidy(self, upload_id: str, object_key: str | None, *, used: bool, tried_before: bool) -> None:
        """Remove what the commit made and did not use: its own object, or one of an earlier try with another digest."""
        if tried_before:
            await self._remove_objects(upload_id, kept=object_key if used else None)
        elif object_key is not None and not used:
            await self._store.remove(object_key)

    async def _look(self, digest: Digest) -> SeenCopy:
        """See whether the content is stored and its bytes are there now: then ours need not be kept as well (E3)."""
        stored = await self._database.read(blobs.stored, digest)
        whole = stored is not None and (
            stored.object_key is None or self._store.has(stored.object_key, stored.content_bytes)
        )
        return SeenCopy(stored, whole)


def _start(  # noqa: PLR0913 - one transaction
    tx: sa.Connection,
    limits: UploadLimits,
    upload_id: str,
    repository: str,
    algorithm: Algorithm,
    *,
    actor: str,
    at_us: int,
    expires_us: int,
) -> None:
    most, most_of_one = limits.max_sessions, limits.max_sessions_per_user
    if most_of_one is not None and uploads.count_of(tx, actor) >= most_of_one:
        raise TooManyUploads(
            f"{most_of_one} uploads of yours are unfinished (setting uploads.max_sessions_per_user); finish or cancel "
            "some, or try again later"
        )
    if uploads.count(tx) >= most:
        raise TooManyUploads(
            f"{most} uploads are unfinished (setting uploads.max_sessions); finish or cancel some, or try again later"
        )
    uploads.start(tx, upload_id, repository, algorithm, actor=actor, at_us=at_us, expires_us=expires_us)


def _commit(  # noqa: PLR0913 - one transaction
    tx: sa.Connection,
    upload_id: str,
    repository: str,
    content: NewContent,
    seen: SeenCopy,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> bool:
    """End the session and make its content the repository's; tell whether its own object is the one that is kept."""
    if not uploads.finish(tx, upload_id):
        raise UploadUnknown
    blob_id, used = blobs.record(tx, repository, content, seen, actor=actor, at_us=at_us, retention=retention)
    link(tx, repository, blob_id, content.digest, actor=actor, at_us=at_us, retention=retention)
    return used


async def _write(staging: StagingFile, content: Content, running: RunningDigest | None, most_bytes: int) -> int:
    """Append the content; return its bytes. The server receives the next piece while one is hashed and written.

    It stops before a piece that would go past `most_bytes`, and returns a number that is over it.
    """
    received = 0
    async for buffers in content:
        received += sum(map(len, buffers))
        if received > most_bytes:
            break
        await staging.append(buffers, running)
    return received


def _check_place(repository: str, upload_id: str, part: Part, offset: int) -> None:
    """Refuse a chunk that does not begin at `offset`, or whose two lengths disagree, before its body is read."""
    if part.chunk is None:
        return
    if part.chunk.first != offset:
        raise _out_of_order(repository, upload_id, offset)
    if part.declared_bytes not in {None, part.chunk.length}:
        raise SizeInvalid("Content-Length is not the length of the Content-Range")


def session_headers(repository: str, upload_id: str, offset: int) -> Mapping[str, str]:
    """Return the headers by which an upload answer tells where the session is and how far (distribution-spec end-5)."""
    return {
        "Location": f"/v2/{repository}/blobs/uploads/{upload_id}",
        "Range": upload_range(offset),
        "Docker-Upload-UUID": upload_id,
    }


def _out_of_order(repository: str, upload_id: str, offset: int, message: str = "") -> ChunkOutOfOrder:
    return ChunkOutOfOrder(session_headers(repository, upload_id, offset), message)


class _RunningDigests:
    """Digests in the making, of sessions that this process has seen from their beginning; the oldest are forgotten.

    One is believed only while the session's row says the same: another process may have seen the file begin anew.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, RunningDigest] = OrderedDict()

    async def take(self, session: UploadSession, staging: StagingFile, algorithm: Algorithm) -> RunningDigest | None:
        """Return one that has seen exactly the session's bytes so far, or None; a few bytes are simply read again."""
        kept = self._kept.pop(session.id, None)
        if staging.offset == 0:
            return RunningDigest(algorithm)
        if staging.offset <= _CHEAP_TO_REHASH_BYTES:
            return await staging.rehash(algorithm)
        if kept is None or (kept.seen_bytes, kept.algorithm) != (staging.offset, algorithm):
            return None
        return kept if (session.digest_offset, session.digest) == (staging.offset, kept.digest()) else None

    def keep(self, session: UploadSession, offset: int, running: RunningDigest | None) -> None:
        """Remember it for the session's next part, if it has seen all that is there and nothing that is not."""
        if running is None or running.seen_bytes != offset:
            return
        self._kept[session.id] = running
        if len(self._kept) > _MAX_RUNNING_DIGESTS:
            self._kept.popitem(last=False)
