"""Handlers of upload sessions: end-4, end-5, end-6, end-11, end-13, end-14."""

from lading.oci.digest import Algorithm, Digest, is_empty_content
from lading.oci.errors import DigestInvalid, DigestUnsupported, NameInvalid
from lading.oci.names import parse_repository_name
from lading.oci.ranges import ChunkRange
from lading.registry.uploads import Part, session_headers
from lading.web.replies import Reply
from lading.web.v2.request import Request


async def start_upload(request: Request) -> Reply:
    """Spec: end-4a (plain), end-4b (whole blob), end-4c (digest-algorithm), end-11 (mount)."""
    algorithm = Algorithm.parse(request.query.first("digest-algorithm") or "sha256")
    if request.query.first("mount") is not None:
        return await _mount(request) or await _session(request, algorithm)
    digest = request.query.digest()
    if digest is None:
        return await _session(request, algorithm)
    if not is_empty_content(digest) and await request.body.is_empty():
        return await _session(request, digest.algorithm)
    await request.registry.uploads.put(request.repository, digest, _part(request), actor=request.actor)
    return _created(request.repository, digest)


async def get_upload(request: Request) -> Reply:
    """Spec: end-13."""
    offset = await request.registry.uploads.offset(request.repository, request.target, actor=request.actor)
    return Reply(204, session_headers(request.repository, request.target, offset))


async def append_upload(request: Request) -> Reply:
    """Spec: end-5."""
    offset = await request.registry.uploads.append(
        request.repository, request.target, _part(request), actor=request.actor
    )
    return Reply(202, session_headers(request.repository, request.target, offset))


async def commit_upload(request: Request) -> Reply:
    """Spec: end-6."""
    digest = request.query.digest()
    if digest is None:
        await request.registry.uploads.offset(request.repository, request.target, actor=request.actor)
        raise DigestInvalid("the closing PUT must give the blob's digest: ?digest=sha256:...")
    await request.registry.uploads.commit(
        request.repository, request.target, digest, _part(request), actor=request.actor
    )
    return _created(request.repository, digest)


async def cancel_upload(request: Request) -> Reply:
    """Spec: end-14."""
    await request.registry.uploads.cancel(request.repository, request.target, actor=request.actor)
    return Reply(204)


async def _mount(request: Request) -> Reply | None:
    """Try the mount. What we cannot store, and a source that is no repository, is not there: never an error."""
    source = request.query.first("from")
    try:
        digest = request.query.digest("mount")
        name = parse_repository_name(source) if source else None
    except (DigestUnsupported, NameInvalid):
        return None
    if digest is None or not await request.registry.blobs.mount(
        request.repository, digest, source=name, may_pull=request.may_pull, actor=request.actor
    ):
        return None
    return _created(request.repository, digest)


async def _session(request: Request, algorithm: Algorithm) -> Reply:
    upload_id = await request.registry.uploads.start(request.repository, algorithm, actor=request.actor)
    return Reply(202, session_headers(request.repository, upload_id, 0))


def _part(request: Request) -> Part:
    """Return the body, with what Content-Range says of it; one that cannot be read is out of order in any case."""
    header = request.header(b"content-range")
    if header is None:
        return Part(request.body.pieces(), request.body.declared_bytes)
    return Part(request.body.pieces(), request.body.declared_bytes, ChunkRange.parse(header) or _NOWHERE)


def _created(repository: str, digest: Digest) -> Reply:
    return Reply(201, {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": str(digest)})


_NOWHERE = ChunkRange(-1, -1)
