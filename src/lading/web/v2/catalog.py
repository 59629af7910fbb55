"""Handlers of the catalog: `GET /v2/_catalog`, Docker's addition to the API."""

from lading.web.replies import Reply, json_reply
from lading.web.v2.paging import page_headers
from lading.web.v2.request import Request


class CatalogHandlers:
    """Lists repositories, at most `max_entries` at a time."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries

    async def list_repositories(self, request: Request) -> Reply:
        """List the repositories that the caller may read and that have a manifest."""
        entries = request.query.entries(self._max_entries)
        page = await request.registry.repositories.catalog(
            last=request.query.first("last") or "", entries=entries, may_pull=request.may_pull
        )
        return json_reply(200, {"repositories": page.names}, page_headers("/v2/_catalog", page, entries))


async def ping(request: Request) -> Reply:  # noqa: ARG001 - every handler takes one
    """Spec: end-1."""
    return json_reply(200, {})
