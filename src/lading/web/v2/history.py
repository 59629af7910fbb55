"""Handlers of a tag's history, in the shape of the draft of the extension `tag-history` (distribution-spec #606)."""

from urllib.parse import quote, urlencode

from lading.metadata import times
from lading.metadata.history import Event
from lading.oci.errors import RequestInvalid, TagInvalid
from lading.oci.media_types import OCI_INDEX
from lading.oci.names import Tag
from lading.registry.history import EventsPage
from lading.web.replies import Reply, json_reply
from lading.web.v2.request import Request

_ANNOTATION = "org.opencontainers.distribution.tag"


class HistoryHandlers:
    """Lists what happened to a tag, at most `max_entries` events at a time."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries

    async def list_events(self, request: Request) -> Reply:
        """List the events of a tag, the newest first. An unknown tag, or repository, has none: that is an answer."""
        entries = request.query.entries(self._max_entries)
        before_us, since_us = _moment(request, "before"), _moment(request, "since")
        digest = request.query.digest()
        try:
            tag = Tag.parse(request.target)
        except TagInvalid:  # nothing can ever have had that name
            page = EventsPage((), None)
        else:
            page = await request.registry.history.events(
                request.repository, tag.name, before_us=before_us, since_us=since_us, digest=digest, entries=entries
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_descriptor(event) for event in page.events]}
        return json_reply(200, index, {"Content-Type": OCI_INDEX, **_link(request, page, entries)})


def _moment(request: Request, name: str) -> int | None:
    text = request.query.first(name)
    try:
        return None if text is None else times.parse(text)
    except ValueError as error:
        raise RequestInvalid(f"{name} is a time of RFC 3339, as in 2026-05-04T03:02:01Z") from error


def _descriptor(event: Event) -> dict[str, object]:
    return {
        "mediaType": event.media_type,
        "digest": str(event.digest),
        "size": event.content_bytes,
        "annotations": {
            f"{_ANNOTATION}.timestamp": times.text(event.at_us),
            f"{_ANNOTATION}.event": "deleted" if event.deleted else "created",
        },
    }


def _link(request: Request, page: EventsPage, entries: int) -> dict[str, str]:
    if page.following_us is None:
        return {}
    kept = [(name, value) for name in ("since", "digest") if (value := request.query.first(name)) is not None]
    before = times.text(page.following_us)
    query = urlencode([("n", entries), ("before", before), *kept], quote_via=quote)
    path = f"/v2/{request.repository}/_oci/tag-history/{quote(request.target, safe='')}"
    return {"Link": f'<{path}?{query}>; rel="next"'}
