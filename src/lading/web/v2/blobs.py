"""Handlers of blobs: end-2, end-10."""

from lading.oci.digest import Digest
from lading.oci.media_types import OCTET_STREAM
from lading.oci.ranges import ByteRange, parse_range
from lading.web.replies import BlobBody, Reply, new_boundary
from lading.web.v2.request import Request


async def head_blob(request: Request) -> Reply:
    """Spec: end-2."""
    digest = Digest.parse(request.target)
    blob_bytes = await request.registry.blobs.stat(request.repository, digest, for_push=request.may_push())
    if request.has_already(digest):
        return _not_modified(digest)
    return Reply(200, _headers(digest), BlobBody(b"", blob_bytes, _whole(blob_bytes)))


async def get_blob(request: Request) -> Reply:
    """Spec: end-2, with RFC 9110 ranges and conditions."""
    digest = Digest.parse(request.target)
    if request.has_already(digest):
        await request.registry.blobs.stat(request.repository, digest, for_push=False)
        return _not_modified(digest)
    blob = await request.registry.blobs.open(request.repository, digest)
    body = BlobBody(blob.content, blob.content_bytes, _whole(blob.content_bytes))
    try:
        return _ranged(request, digest, body)
    except BaseException:
        body.close()
        raise


async def delete_blob(request: Request) -> Reply:
    """Spec: end-10."""
    digest = Digest.parse(request.target)
    await request.registry.blobs.delete(request.repository, digest, actor=request.actor)
    return Reply(202)


def _ranged(request: Request, digest: Digest, body: BlobBody) -> Reply:
    header = request.header(b"range")
    condition = request.header(b"if-range")
    if header is None or (condition is not None and condition.strip() != f'"{digest}"'):
        return Reply(200, _headers(digest), body)
    ranges = parse_range(header, body.blob_bytes)
    if not ranges:
        return Reply(200, _headers(digest), body)
    if len(ranges) == 1:
        headers = _headers(digest) | {"Content-Range": f"bytes {ranges[0]}/{body.blob_bytes}"}
        return Reply(206, headers, BlobBody(body.content, body.blob_bytes, ranges))
    boundary = new_boundary()
    headers = _headers(digest) | {"Content-Type": f"multipart/byteranges; boundary={boundary}"}
    return Reply(206, headers, BlobBody(body.content, body.blob_bytes, ranges, boundary))


def _whole(blob_bytes: int) -> tuple[ByteRange, ...]:
    return (ByteRange(0, blob_bytes - 1),) if blob_bytes else ()


def _headers(digest: Digest) -> dict[str, str]:
    return {
        "Content-Type": OCTET_STREAM,
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
    }


def _not_modified(digest: Digest) -> Reply:
    return Reply(304, {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'})
