"""The Link header of a list that goes on (distribution-spec "Listing Tags")."""

from collections.abc import Mapping
from urllib.parse import quote

from lading.registry.tags import Page


def page_headers(path: str, page: Page, entries: int) -> Mapping[str, str]:
    """Return the Link to the page that follows, if one does."""
    if page.following is None:
        return {}
    return {"Link": f'<{path}?last={quote(page.following, safe="")}&n={entries}>; rel="next"'}
