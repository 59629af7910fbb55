"""Following the links from page to page, as a client does."""

import re

from tests.wire import Reply, Wire

MOST_PAGES = 1000


def next_target(reply: Reply) -> str | None:
    """Return the target of the link to the next page, or None on the last one."""
    link = reply.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<(/v2/[^>]*)>; rel="next"', link)
    assert match, f"not a link that every client can read\n{reply}"
    return match[1]


def pages(wire: Wire, target: str) -> list[Reply]:
    """Return the page at `target` and all that follow."""
    replies = [wire.request("GET", target).expect(200)]
    while following := next_target(replies[-1]):
        assert len(replies) < MOST_PAGES, f"the links do not end\n{replies[-1]}"
        replies.append(wire.request("GET", following).expect(200))
    return replies


def walk(wire: Wire, target: str, field: str) -> list[str]:
    """Return the entries of `field` on all pages, in order, and assert that only the last page may be empty."""
    replies = pages(wire, target)
    assert all(reply.json()[field] for reply in replies[:-1]), "an empty page before the last"
    return [entry for reply in replies for entry in reply.json()[field]]
