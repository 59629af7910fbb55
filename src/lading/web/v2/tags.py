"""Handlers of tags: end-8."""

from lading.registry.tags import Page
from lading.web.replies import Reply, json_reply
from lading.web.v2.paging import page_headers
from lading.web.v2.request import Request


class TagHandlers:
    """Lists tags, at most `max_entries` at a time."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries

    async def list_tags(self, request: Request) -> Reply:
        """Spec: end-8a, end-8b."""
        entries = request.query.entries(self._max_entries)
        page: Page = await request.registry.tags.list(
            request.repository, last=request.query.first("last") or "", entries=entries
        )
        headers = page_headers(f"/v2/{request.repository}/tags/list", page, entries)
        return json_reply(200, {"name": request.repository, "tags": page.names}, headers)
