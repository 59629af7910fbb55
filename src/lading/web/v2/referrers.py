"""Handlers of referrers: end-12."""

from urllib.parse import quote, urlencode

from lading.metadata.manifests import Referrer
from lading.oci.digest import Digest
from lading.oci.errors import RequestInvalid
from lading.oci.media_types import OCI_INDEX
from lading.web.replies import Reply, json_reply
from lading.web.v2.request import Request

_MAX_CURSOR_DIGITS = 18


async def list_referrers(request: Request) -> Reply:
    """Spec: end-12a, end-12b. An unknown subject, or repository, has none: that is an answer, not an error."""
    subject = Digest.parse(request.target)
    artifact_types = [value for value in dict.fromkeys(request.query.all("artifactType")) if value]
    page = await request.registry.referrers.list(
        request.repository, subject, artifact_types=frozenset(artifact_types), after=_cursor(request)
    )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_descriptor(one) for one in page.referrers]}
    headers = {"Content-Type": OCI_INDEX}
    if artifact_types:
        headers["OCI-Filters-Applied"] = "artifactType"
    if page.next_cursor is not None:
        query = urlencode(
            [*(("artifactType", value) for value in artifact_types), ("after", page.next_cursor)], quote_via=quote
        )
        headers["Link"] = f'</v2/{request.repository}/referrers/{subject}?{query}>; rel="next"'
    return json_reply(200, index, headers)


def _cursor(request: Request) -> int:
    text = request.query.first("after") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS):
        raise RequestInvalid("after is the number that a Link of this list gave")
    return int(text)


def _descriptor(referrer: Referrer) -> dict[str, object]:
    descriptor: dict[str, object] = {
        "mediaType": referrer.media_type,
        "digest": str(referrer.digest),
        "size": referrer.content_bytes,
    }
    if referrer.artifact_type is not None:
        descriptor["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        descriptor["annotations"] = dict(referrer.annotations)
    return descriptor
