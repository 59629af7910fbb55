"""Preflights: a browser asks, without any credentials, whether a page of another origin may ask."""

import pytest

from tests.capability.content import digest_of
from tests.capability.repository import Repository, new_name
from tests.capability.server import ClosedRegistry
from tests.wire import Reply

ABSENT = digest_of(b"nobody has pushed this")


def preflight(repository: Repository, target: str, method: str) -> Reply:
    headers = {"Origin": "https://ui.example", "Access-Control-Request-Method": method}
    return repository.send("OPTIONS", target, headers=headers)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "tail",
    [
        "/v2/",
        "/v2/_catalog",
        "tags/list",
        "manifests/latest",
        f"manifests/{ABSENT}",
        f"blobs/{ABSENT}",
        "blobs/uploads/",
        "blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11",
        f"referrers/{ABSENT}",
    ],
)
def test_a_preflight_is_answered_on_every_route(repository: Repository, tail: str, method: str) -> None:
    """Browsers send it before the page's own request, and whatever is not a success looks like a dead server."""
    target = tail if tail.startswith("/") else repository.url(tail)

    reply = preflight(repository, target, method)

    reply.expect(204, {"Content-Length": None, "WWW-Authenticate": None})


def test_a_preflight_needs_no_login(closed_registry: ClosedRegistry) -> None:
    """Browsers send it without credentials by design, so a registry that refuses it has no browser clients."""
    repository = Repository(closed_registry.wire, new_name())

    for target in ("/v2/", "/v2/_catalog", repository.url("tags/list"), repository.url("manifests/latest")):
        preflight(repository, target, "GET").expect(204, {"WWW-Authenticate": None})
    repository.request("GET", "tags/list").expect_error(401, "UNAUTHORIZED")


def test_a_preflight_leaves_the_connection_usable(repository: Repository) -> None:
    """The page's own request follows on the same connection."""
    headers = {"Origin": "https://ui.example", "Access-Control-Request-Method": "GET"}
    with repository.wire.connect() as connection:
        first = connection.request("OPTIONS", "/v2/", headers=headers)
        second = connection.request("GET", "/v2/")

    first.expect(204)
    second.expect(200)


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
def test_a_page_of_another_site_may_not_write(repository: Repository, method: str) -> None:
    """A browser sends a simple POST without asking, so a page that somebody visits could push to their own registry."""
    content = b"planted"
    target = repository.url(f"blobs/uploads/?digest={digest_of(content)}")
    headers = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}

    reply = repository.send(method, target, headers=headers, body=content)

    reply.expect_error(403, "DENIED")
    repository.request("GET", f"blobs/{digest_of(content)}").expect(404)


def test_a_page_of_the_registry_itself_may_write(repository: Repository) -> None:
    """Its own pages send their origin too, and that is the registry's host."""
    origin = f"http://{repository.wire.host}:{repository.wire.port}"

    reply = repository.request("POST", "blobs/uploads/", headers={"Origin": origin}, body=b"")

    reply.expect(202)
