"""The table of routes, held beside distribution-spec, and the way from a path to one of them."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.asgi import ask

from lading.app import open_application, prepare
from lading.auth.policy import Action
from lading.oci.errors import NameInvalid, RouteUnknown, TagInvalid
from lading.oci.names import Tag
from lading.settings import Settings
from lading.web.v2.routes import Place, locate, routes

TABLE = routes(max_page_entries=100)
ENDPOINTS = [(route, method, endpoint) for route in TABLE.values() for method, endpoint in route.methods.items()]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE", "get")
DIGEST = "sha256:" + "0" * 64
UPLOAD = "3b241101-e2bb-4255-8caf-4136c566a962"
PATHS = {
    "ping": "/v2/",
    "blob": f"/v2/a/b/blobs/{DIGEST}",
    "uploads": "/v2/a/b/blobs/uploads/",
    "upload": f"/v2/a/b/blobs/uploads/{UPLOAD}",
    "manifest": "/v2/a/b/manifests/latest",
    "tags": "/v2/a/b/tags/list",
    "referrers": f"/v2/a/b/referrers/{DIGEST}",
    "tag-history": "/v2/a/b/_oci/tag-history/latest",
    "catalog": "/v2/_catalog",
}
# The endpoints of distribution-spec (development adds end-4c, end-7b and end-14), and what each needs to be allowed.
SPECIFIED = {
    "end-1": {("GET", "/v2/", Action.PING)},
    "end-2": {(method, "/v2/<name>/blobs/<digest>", Action.PULL) for method in ("GET", "HEAD")},
    "end-3": {(method, "/v2/<name>/manifests/<tag-or-digest>", Action.PULL) for method in ("GET", "HEAD")},
    "end-4a": {("POST", "/v2/<name>/blobs/uploads/", Action.PUSH)},
    "end-4b": {("POST", "/v2/<name>/blobs/uploads/", Action.PUSH)},
    "end-4c": {("POST", "/v2/<name>/blobs/uploads/", Action.PUSH)},
    "end-5": {("PATCH", "/v2/<name>/blobs/uploads/<id>", Action.PUSH)},
    "end-6": {("PUT", "/v2/<name>/blobs/uploads/<id>", Action.PUSH)},
    "end-7a": {("PUT", "/v2/<name>/manifests/<tag-or-digest>", Action.PUSH)},
    "end-7b": {("PUT", "/v2/<name>/manifests/<tag-or-digest>", Action.PUSH)},
    "end-8a": {("GET", "/v2/<name>/tags/list", Action.PULL)},
    "end-8b": {("GET", "/v2/<name>/tags/list", Action.PULL)},
    "end-9": {("DELETE", "/v2/<name>/manifests/<tag-or-digest>", Action.DELETE)},
    "end-10": {("DELETE", "/v2/<name>/blobs/<digest>", Action.DELETE)},
    "end-11": {("POST", "/v2/<name>/blobs/uploads/", Action.PUSH)},
    "end-12a": {("GET", "/v2/<name>/referrers/<digest>", Action.PULL)},
    "end-12b": {("GET", "/v2/<name>/referrers/<digest>", Action.PULL)},
    "end-13": {("GET", "/v2/<name>/blobs/uploads/<id>", Action.PUSH)},
    "end-14": {("DELETE", "/v2/<name>/blobs/uploads/<id>", Action.PUSH)},
}
NOT_OF_THE_SPECIFICATION = {"Docker HTTP API V2": "catalog", "draft of the extension tag-history": "tag-history"}

keywords = st.sampled_from(["manifests", "blobs", "uploads", "tags", "list", "referrers", "latest", "v2"])
components = keywords | st.from_regex(r"[a-z0-9]{1,3}([._-][a-z0-9]{1,2})?", fullmatch=True)
names = st.lists(components, min_size=1, max_size=6).map("/".join)
tags = keywords | st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,8}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


# The table


def test_every_row_has_an_action_and_ids_of_the_specification() -> None:
    """Authorization is data, and a reviewer holds the rows beside the spec."""
    for route, method, endpoint in ENDPOINTS:
        where = f"{method} {route.path}"
        assert isinstance(endpoint.action, Action), where
        for spec in endpoint.spec.split(", "):
            assert spec in SPECIFIED or NOT_OF_THE_SPECIFICATION.get(spec) == route.name, f"{where}: {spec}"


def test_every_endpoint_of_the_specification_has_its_row_and_action() -> None:
    """One that is missing is a feature that clients probe for; one with a weaker action is a hole."""
    found: dict[str, set[tuple[str, str, Action]]] = {spec: set() for spec in SPECIFIED}
    for route, method, endpoint in ENDPOINTS:
        for spec in endpoint.spec.split(", "):
            if spec in found:
                found[spec].add((method, route.path, endpoint.action))

    for spec, wanted in SPECIFIED.items():
        assert wanted <= found[spec], spec
        beyond = found[spec] - wanted
        assert all(("GET", path, action) in wanted for method, path, action in beyond), spec
        assert {method for method, _, _ in beyond} <= {"HEAD"}, spec


def test_every_head_asks_for_what_its_get_asks() -> None:
    """A HEAD tells nearly all that a GET does."""
    for route in TABLE.values():
        if "HEAD" in route.methods:
            assert route.methods["HEAD"].action == route.methods["GET"].action, route.path


def test_a_route_is_known_by_its_own_name() -> None:
    """Logs and metrics count by it."""
    assert {name: route.name for name, route in TABLE.items()} == {name: name for name in TABLE}
    assert len({route.path for route in TABLE.values()}) == len(TABLE)
    assert set(PATHS) == set(TABLE)


@pytest.mark.parametrize("route", TABLE)
def test_the_path_of_a_row_leads_to_it(route: str) -> None:
    """The table's second column is what the matcher does, not a comment."""
    pattern = re.sub("<[a-z-]+>", "[^/]+", TABLE[route].path.replace("<name>", "a/b"))

    assert re.fullmatch(pattern, PATHS[route])
    assert locate(PATHS[route].encode()).route == route


# The way to it


@settings(max_examples=300)
@given(names, tags, digests)
@example("manifests", "list", DIGEST)
@example("blobs/uploads", "uploads", DIGEST)
@example("tags/list", "tags", DIGEST)
@example("x/referrers/y", "referrers", DIGEST)
@example("a/manifests/b", "manifests", DIGEST)
@example("a/blobs", "blobs", DIGEST)
@example("a/blobs/uploads/b", "latest", DIGEST)
def test_a_name_may_hold_any_word_that_routes_are_made_of(name: str, tag: str, digest: str) -> None:
    """The last keyword wins, as no tag, digest or session id has a slash."""
    ways = {
        f"manifests/{tag}": Place("manifest", name, tag),
        f"manifests/{digest}": Place("manifest", name, digest),
        f"manifests/{digest.replace(':', '%3A')}": Place("manifest", name, digest),
        f"blobs/{digest}": Place("blob", name, digest),
        f"blobs/{digest.replace(':', '%3a')}": Place("blob", name, digest),
        "blobs/uploads/": Place("uploads", name),
        "blobs/uploads": Place("uploads", name),
        f"blobs/uploads/{UPLOAD}": Place("upload", name, UPLOAD),
        "tags/list": Place("tags", name),
        f"_oci/tag-history/{tag}": Place("tag-history", name, tag),
        f"referrers/{digest}": Place("referrers", name, digest),
    }

    for rest, place in ways.items():
        found = locate(f"/v2/{name}/{rest}".encode())
        assert found == place
        assert found.repository == name


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_base_is_found_with_and_without_its_slash(path: str) -> None:
    """Scripts write both, and a redirect is one round trip more."""
    assert locate(path.encode()) == Place("ping", "")
    assert locate(path.encode()).repository == ""


@pytest.mark.parametrize(
    "path",
    [
        "/v2//",
        "/v2/a",
        "/v2/a/b",
        "/v2/manifests/latest",
        "/v2/tags/list",
        "/v2/blobs/uploads/",
        "/v2/blobs/uploads",
        f"/v2/blobs/{DIGEST}",
        f"/v2/referrers/{DIGEST}",
        "/v2/a/manifests/",
        "/v2/a/blobs/",
        "/v2/a/referrers/",
        "/v2/a/tags/list/",
        "/v2/a/tags",
        "/v2/a/tags/",
        "/v2/a/tags/lists",
        "/v2/a/manifests/x/y",
        "/v2/_catalog/",
        "/v2/_oci/x/manifests/y",
        "/v2/_oci/ext/discover",
        "/v2/_catalog/tags/list",
    ],
)
def test_a_path_that_is_none_of_the_routes_leads_nowhere(path: str) -> None:
    """A guess would answer one client for another's mistake."""
    with pytest.raises(RouteUnknown):
        _ = locate(path.encode()).repository


@pytest.mark.parametrize(
    "name",
    [
        "a%2Fb",
        "a%2fb",
        "%61",
        "a//b",
        "a/",
        "a/../b",
        "./a",
        "a/.",
        "a\\b",
        "A",
        "a b",
        "a\u00e9",
        "a/_b",
        "a___b",
        "a;b",
    ],
)
@pytest.mark.parametrize("rest", ["tags/list", "manifests/latest", "blobs/uploads/", f"blobs/{DIGEST}"])
def test_a_name_is_never_decoded_or_tidied(name: str, rest: str) -> None:
    """Two ways to write one name are a way past whoever checks only the other."""
    with pytest.raises(NameInvalid):
        _ = locate(f"/v2/{name}/{rest}".encode()).repository


@settings(max_examples=100)
@given(names, st.sampled_from(["_", "_oci", "_catalog", "_x/y"]))
def test_a_name_cannot_begin_with_what_is_kept_for_extensions(name: str, extension: str) -> None:
    """`/v2/_oci` is the specification's own (end-1 of extensions), and no repository can be there."""
    with pytest.raises(RouteUnknown):
        locate(f"/v2/{extension}/{name}/tags/list".encode())


@pytest.mark.parametrize("last", ["%C3%A9", "%FF", "a%80", "%00", "%0A", "a%0a", "%zz", "%", "%D9%A1"])
def test_a_last_part_that_no_tag_can_be_stays_none_when_it_is_decoded(last: str) -> None:
    """A decoder that drops or mends what it cannot read would let one name stand for another."""
    target = locate(f"/v2/a/manifests/{last}".encode()).target

    with pytest.raises(TagInvalid):
        Tag.parse(target)


def test_a_slash_in_the_last_part_stays_in_it() -> None:
    """It was not a slash on the wire, so it must not become one."""
    assert locate(b"/v2/a/manifests/b%2Ftags%2Flist") == Place("manifest", "a", "b/tags/list")


@settings(max_examples=300)
@given(st.lists(components | st.sampled_from(["", "_catalog", ".", "..", "%2F", "%", "%zz", "\xff", UPLOAD, DIGEST])))
def test_any_path_leads_to_a_row_or_to_one_of_two_errors(parts: list[str]) -> None:
    """The path is the first thing that a stranger chooses."""
    try:
        place = locate("/".join(["/v2", *parts]).encode("latin-1"))
        name = place.repository
    except (NameInvalid, RouteUnknown):
        return

    assert place.route in TABLE
    assert bool(name) == ("<name>" in TABLE[place.route].path)


# The matrix


def test_every_method_of_every_route_is_in_the_table_or_405(tmp_path: Path) -> None:
    """A method that falls through to another handler would go past the table's action."""
    answers = asyncio.run(ask_all(tmp_path))

    for route in TABLE.values():
        for method in METHODS:
            status, headers = answers[route.name, method]
            if method in route.methods:
                assert status not in {405, 500}, f"{method} {route.path}: {status}"
            else:
                assert status == 405, f"{method} {route.path}: {status}"
                assert headers["allow"] == ", ".join(route.methods), f"{method} {route.path}"


async def ask_all(data: Path) -> Mapping[tuple[str, str], tuple[int, Mapping[str, str]]]:
    """Return status and headers of each method on each route, from a whole application with an empty registry."""
    in_force = Settings(data=data)
    prepare(in_force)
    answers = {}
    async with open_application(in_force) as application:
        for route in TABLE:
            for method in METHODS:
                answers[route, method] = await ask(application, method, PATHS[route])
    return answers
