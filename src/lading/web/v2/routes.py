"""The table of /v2/ routes, and the way from a raw path to one of them.

Names may contain the words that routes are made of, so a path is read from the right: no tag, digest or session id
contains a slash, and the last keyword wins.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from lading.auth.policy import Action
from lading.oci.errors import RouteUnknown
from lading.oci.names import parse_repository_name
from lading.web.replies import Reply
from lading.web.v2 import blobs, manifests, referrers, uploads
from lading.web.v2.catalog import CatalogHandlers, ping
from lading.web.v2.history import HistoryHandlers
from lading.web.v2.request import Request
from lading.web.v2.tags import TagHandlers

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of a route: what it does to the repository, its ids in distribution-spec, and who handles it."""

    action: Action
    spec: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class Route:
    """A route, by the name that logs and metrics know it by."""

    name: str
    path: str
    methods: Mapping[str, Endpoint]


def routes(*, max_page_entries: int) -> Mapping[str, Route]:
    """Return the table: every route, with each method's action and spec ids."""
    tags = TagHandlers(max_page_entries)
    catalog = CatalogHandlers(max_page_entries)
    history = HistoryHandlers(max_page_entries)
    pull, push, delete = Action.PULL, Action.PUSH, Action.DELETE
    table = (
        Route(
            "ping",
            "/v2/",
            {"GET": Endpoint(Action.PING, "end-1", ping), "HEAD": Endpoint(Action.PING, "end-1", ping)},
        ),
        Route(
            "blob",
            "/v2/<name>/blobs/<digest>",
            {
                "GET": Endpoint(pull, "end-2", blobs.get_blob),
                "HEAD": Endpoint(pull, "end-2", blobs.head_blob),
                "DELETE": Endpoint(delete, "end-10", blobs.delete_blob),
            },
        ),
        Route(
            "uploads",
            "/v2/<name>/blobs/uploads/",
            {"POST": Endpoint(push, "end-4a, end-4b, end-4c, end-11", uploads.start_upload)},
        ),
        Route(
            "upload",
            "/v2/<name>/blobs/uploads/<id>",
            {
                "GET": Endpoint(push, "end-13", uploads.get_upload),
                "PATCH": Endpoint(push, "end-5", uploads.append_upload),
                "PUT": Endpoint(push, "end-6", uploads.commit_upload),
                "DELETE": Endpoint(push, "end-14", uploads.cancel_upload),
            },
        ),
        Route(
            "manifest",
            "/v2/<name>/manifests/<tag-or-digest>",
            {
                "GET": Endpoint(pull, "end-3", manifests.get_manifest),
                "HEAD": Endpoint(pull, "end-3", manifests.get_manifest),
                "PUT": Endpoint(push, "end-7a, end-7b", manifests.put_manifest),
                "DELETE": Endpoint(delete, "end-9", manifests.delete_manifest),
            },
        ),
        Route(
            "tags",
            "/v2/<name>/tags/list",
            {
                "GET": Endpoint(pull, "end-8a, end-8b", tags.list_tags),
                "HEAD": Endpoint(pull, "end-8a, end-8b", tags.list_tags),
            },
        ),
        Route(
            "referrers",
            "/v2/<name>/referrers/<digest>",
            {
                "GET": Endpoint(pull, "end-12a, end-12b", referrers.list_referrers),
                "HEAD": Endpoint(pull, "end-12a, end-12b", referrers.list_referrers),
            },
        ),
        Route(
            "tag-history",
            "/v2/<name>/_oci/tag-history/<tag>",
            {"GET": Endpoint(pull, "draft of the extension tag-history", history.list_events)},
        ),
        Route(
            "catalog",
            "/v2/_catalog",
            {
                "GET": Endpoint(Action.CATALOG, "Docker HTTP API V2", catalog.list_repositories),
                "HEAD": Endpoint(Action.CATALOG, "Docker HTTP API V2", catalog.list_repositories),
            },
        ),
    )
    return {route.name: route for route in table}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: a route's name, the raw repository name, and the decoded last part."""

    route: str
    name: str
    target: str = ""

    @property
    def repository(self) -> str:
        """The parsed name; empty on routes that have none.

        Raises:
            NameInvalid: outside the grammar. Nothing in it is decoded: no valid name needs it, and `%2F` is no slash.

        """
        return parse_repository_name(self.name) if self.name else ""


def locate(raw_path: bytes) -> Place:
    """Return where `raw_path`, which begins with /v2, leads.

    Raises:
        RouteUnknown: nowhere.

    """
    parts = raw_path.decode("latin-1").split("/")[2:]
    if parts in ([], [""]):
        return Place("ping", "")
    if parts == ["_catalog"]:
        return Place("catalog", "")
    route, length, target = _match(parts)
    name = "/".join(parts[:-length])
    if not name or name.startswith("_"):
        raise RouteUnknown
    return Place(route, name, _decode(target))


_LAST_BUT_ONE = {"manifests": "manifest", "blobs": "blob", "referrers": "referrers"}


def _match(parts: list[str]) -> tuple[str, int, str]:
    """Return the route, how many parts from the right it takes, and the last one where it is a parameter."""
    if len(parts) < 2:
        raise RouteUnknown
    last = parts[-1]
    if parts[-2:] == ["blobs", "uploads"]:
        return "uploads", 2, ""
    if parts[-3:-1] == ["blobs", "uploads"]:
        return ("upload", 3, last) if last else ("uploads", 3, "")
    if parts[-2:] == ["tags", "list"]:
        return "tags", 2, ""
    if parts[-3:-1] == ["_oci", "tag-history"] and last:
        return "tag-history", 3, last
    route = _LAST_BUT_ONE.get(parts[-2])
    if route is None or not last:
        raise RouteUnknown
    return route, 2, last


def _decode(part: str) -> str:
    """Undo percent-encoding; what is not UTF-8 becomes what no tag or digest may contain."""
    return unquote(part, errors="replace") if "%" in part else part
