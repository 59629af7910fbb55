"""Handlers of manifests: end-3, end-7, end-9."""

from collections.abc import Sequence

from lading.metadata.manifests import StoredManifest
from lading.oci.digest import Digest
from lading.oci.errors import DigestInvalid, ManifestUnknown, TagInvalid, TargetTooLong
from lading.oci.manifest import MAX_MANIFEST_BYTES
from lading.oci.names import Tag
from lading.web.replies import Reply
from lading.web.v2.request import Request

_MAX_TAGS = 100


async def get_manifest(request: Request) -> Reply:
    """Spec: end-3. Accept is ignored: what was pushed is what there is. HEAD is the same without its body."""
    manifest = await request.registry.manifests.get(request.repository, _for_reading(request.target))
    headers = _headers(manifest)
    if request.has_already(manifest.digest):
        return Reply(304, {"Docker-Content-Digest": str(manifest.digest), "ETag": headers["ETag"]})
    if request.method == "GET":
        request.registry.pulls.count(manifest.id)
    return Reply(200, headers, manifest.payload)


async def put_manifest(request: Request) -> Reply:
    """Spec: end-7a (tag or digest), end-7b (many tags)."""
    names, digest = _for_writing(request)
    payload = await request.body.read(MAX_MANIFEST_BYTES)
    accepted = await request.registry.manifests.put(
        request.repository,
        payload,
        request.header(b"content-type") or "",
        digest=digest,
        names=names,
        actor=request.actor,
    )
    headers: dict[str, str | Sequence[str]] = {
        "Location": f"/v2/{request.repository}/manifests/{accepted.digest}",
        "Docker-Content-Digest": str(accepted.digest),
    }
    if accepted.subject is not None:
        headers["OCI-Subject"] = str(accepted.subject)
    if request.query.all("tag"):
        headers["OCI-Tag"] = [tag.name for tag in accepted.tags]
    return Reply(201, headers)


async def delete_manifest(request: Request) -> Reply:
    """Spec: end-9."""
    target = _for_reading(request.target)
    if isinstance(target, Tag):
        await request.registry.tags.delete(request.repository, target, actor=request.actor)
    else:
        await request.registry.manifests.delete(request.repository, target, actor=request.actor)
    return Reply(202)


def _for_reading(target: str) -> Tag | Digest:
    """Parse `<tag-or-digest>`. Nothing can have an invalid tag, so reading one finds nothing."""
    if ":" in target:
        return Digest.parse(target)
    try:
        return Tag.parse(target)
    except TagInvalid as error:
        raise ManifestUnknown(detail=error.detail) from error


def _for_writing(request: Request) -> tuple[list[Tag], Digest | None]:
    """Return the tags to set and the digest that the client holds the manifest to."""
    more = [Tag.parse(name) for name in dict.fromkeys(request.query.all("tag"))]
    if len(more) > _MAX_TAGS:
        raise TargetTooLong(f"at most {_MAX_TAGS} tags can be set at once")
    hint = request.query.digest()
    if ":" not in request.target:
        return [Tag.parse(request.target), *more], hint
    digest = Digest.parse(request.target)
    if hint not in {None, digest}:
        raise DigestInvalid("the path and the query give different digests")
    return more, digest


def _headers(manifest: StoredManifest) -> dict[str, str]:
    return {
        "Content-Type": manifest.media_type,
        "Docker-Content-Digest": str(manifest.digest),
        "ETag": f'"{manifest.digest}"',
    }
