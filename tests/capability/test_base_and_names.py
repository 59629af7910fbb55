"""The base of the API, the grammar of repository names, and paths that name nothing."""

import re
from urllib.parse import quote

import pytest

from tests.capability.content import OCI_MANIFEST, descriptor, digest_of, encode, new_image, random_content
from tests.capability.repository import Repository, new_name
from tests.capability.server import ClosedRegistry, RegistryProcess

ABSENT = digest_of(b"nobody has pushed this")

# One of each route, method by method.
EVERY_ROUTE = [
    ("GET", "manifests/latest"),
    ("HEAD", "manifests/latest"),
    ("PUT", "manifests/latest"),
    ("DELETE", "manifests/latest"),
    ("GET", f"blobs/{ABSENT}"),
    ("HEAD", f"blobs/{ABSENT}"),
    ("DELETE", f"blobs/{ABSENT}"),
    ("POST", "blobs/uploads/"),
    ("GET", "blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11"),
    ("PATCH", "blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11"),
    ("PUT", f"blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11?digest={ABSENT}"),
    ("DELETE", "blobs/uploads/5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11"),
    ("GET", "tags/list"),
    ("GET", f"referrers/{ABSENT}"),
]


def catalog(registry: RegistryProcess, last: str) -> list[str]:
    page = registry.wire.request("GET", f"/v2/_catalog?last={last}&n=1000").expect(200)
    names: list[str] = page.json()["repositories"]
    return names


def push_and_pull_everything(repository: Repository) -> None:
    """Walk every route of a repository with content, asserting that each answers with what was pushed."""
    image = repository.push_image("latest")
    referrer = repository.push_image(image=new_image(subject=descriptor(image.manifest, OCI_MANIFEST)))

    pulled = repository.request("GET", "manifests/latest").expect(200, {"Docker-Content-Digest": image.digest})
    layer = repository.request("GET", f"blobs/{digest_of(image.layers[0])}").expect(200)
    tags = repository.request("GET", "tags/list").expect(200).json()
    referrers = repository.request("GET", f"referrers/{image.digest}").expect(200).json()

    assert pulled.body == image.manifest
    assert layer.body == image.layers[0]
    assert tags == {"name": repository.name, "tags": ["latest"]}
    assert [entry["digest"] for entry in referrers["manifests"]] == [referrer.digest]


@pytest.mark.case(1)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}], ids=["no token", "a wrong token"])
def test_a_closed_registry_asks_who_is_there(closed_registry: ClosedRegistry, headers: dict[str, str]) -> None:
    """Docker learns from this one reply where to get a token, and reads only the first challenge."""
    reply = closed_registry.wire.request("GET", "/v2/", headers=headers)

    reply.expect_error(401, "UNAUTHORIZED")
    assert re.match(r'Bearer realm="[^"]+",service="[^"]+"', reply["WWW-Authenticate"]), str(reply)


@pytest.mark.case(2)
def test_any_valid_token_opens_the_base(closed_registry: ClosedRegistry) -> None:
    """It is the last step of a login, with a token that has no rights yet."""
    headers = closed_registry.allow({})

    reply = closed_registry.wire.request("GET", "/v2/", headers=headers)

    reply.expect(200, {"WWW-Authenticate": None})
    assert reply.json() == {}, str(reply)


@pytest.mark.case(3)
def test_head_of_the_base_is_its_get_without_the_body(registry: RegistryProcess) -> None:
    """Scripts probe the base with HEAD; a body after it would spoil the connection for the next request."""
    with registry.wire.connect() as connection:
        head = connection.request("HEAD", "/v2/").expect(200)
        get = connection.request("GET", "/v2/").expect(200)

    assert head["Content-Length"] == get["Content-Length"] == str(len(get.body)), f"{head}\n{get}"
    assert head["Content-Type"] == get["Content-Type"], f"{head}\n{get}"


@pytest.mark.case(4)
@pytest.mark.parametrize("target", ["/v2/", "/v2"])
def test_the_base_answers_with_or_without_its_slash(registry: RegistryProcess, target: str) -> None:
    """Some clients drop the last slash, and not all of them follow a redirect from a login probe."""
    reply = registry.wire.request("GET", target)

    reply.expect(200, {"Docker-Distribution-Api-Version": "registry/2.0", "Location": None})
    assert reply.json() == {}, str(reply)


@pytest.mark.case(5)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_base_allows_only_reading(registry: RegistryProcess, method: str) -> None:
    """A refused method names those that work, so that a client's author sees the mistake at once."""
    reply = registry.wire.request(method, "/v2/", body=b"")

    reply.expect_error(405, "UNSUPPORTED")
    assert {"GET", "HEAD"} <= set(reply["Allow"].split(", ")), str(reply)


@pytest.mark.case(6)
def test_an_upper_case_name_is_refused(registry: RegistryProcess) -> None:
    """Names are lower case in the specification; folding them would let two names mean one repository."""
    image = new_image()

    reply = Repository(registry.wire, "Foo/bar").put_manifest("latest", image.manifest)

    reply.expect_error(400, "NAME_INVALID")


@pytest.mark.case(7)
@pytest.mark.parametrize("name", ["a__b", "a---b", "a.b/c_d"])
def test_every_separator_of_the_grammar_is_accepted(registry: RegistryProcess, name: str) -> None:
    """Clients already use doubled underscores, runs of dashes and dots; the grammar allows all of them."""
    repository = Repository(registry.wire, name)

    image = repository.push_image("latest")

    assert repository.request("GET", "manifests/latest").expect(200).body == image.manifest


@pytest.mark.case(8)
@pytest.mark.parametrize(
    "shape", ["a___b", "a..b", "-a", "a-", "a/_b", "a._b", "a.-b", ".a", "a.", "A", "é", "a b", "a/"]
)
def test_a_name_outside_the_grammar_is_refused_on_every_route(registry: RegistryProcess, shape: str) -> None:
    """A name that one route lets through would be content which the others can neither show nor delete."""
    name = f"{new_name()}/{shape}"
    repository = Repository(registry.wire, quote(name))
    manifest = encode({"schemaVersion": 2})

    for method, tail in EVERY_ROUTE:
        body = manifest if method in {"PUT", "POST", "PATCH"} else None
        repository.request(method, tail, body=body).expect_error(400, "NAME_INVALID")

    assert name not in catalog(registry, name.partition("/")[0]), "an invalid name was stored"


@pytest.mark.case(9)
def test_a_name_may_have_255_characters_and_no_more(registry: RegistryProcess) -> None:
    """The specification sets no limit, so the one that clients share is ours, and it is exact."""
    prefix = f"{new_name()}/"
    longest = prefix + "x" * (255 - len(prefix))
    too_long = Repository(registry.wire, f"{longest}x")

    push_and_pull_everything(Repository(registry.wire, longest))

    too_long.put_manifest("latest", new_image().manifest).expect_error(400, "NAME_INVALID")
    too_long.request("POST", "blobs/uploads/", body=b"").expect_error(400, "NAME_INVALID")
    too_long.request("GET", "tags/list").expect_error(400, "NAME_INVALID")


@pytest.mark.case(10)
def test_a_name_may_be_forty_components_deep(registry: RegistryProcess) -> None:
    """Mirrors map whole host and project trees into one name, and the depth is the user's affair."""
    name = "/".join([new_name(), *(f"d{depth}" for depth in range(39))])

    push_and_pull_everything(Repository(registry.wire, name))


@pytest.mark.case(11)
@pytest.mark.parametrize("name", ["manifests", "blobs/uploads", "tags/list", "x/referrers/y", "a/manifests/b"])
def test_a_name_may_contain_the_words_of_the_api(registry: RegistryProcess, name: str) -> None:
    """A path is read from its right end, so no valid name collides with a route."""
    push_and_pull_everything(Repository(registry.wire, name))


@pytest.mark.case(12)
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v2/manifests/latest"),
        ("HEAD", "/v2/manifests/latest"),
        ("PUT", "/v2/manifests/latest"),
        ("GET", "/v2/tags/list"),
        ("GET", f"/v2/blobs/{ABSENT}"),
        ("POST", "/v2/blobs/uploads/"),
        ("GET", f"/v2/referrers/{ABSENT}"),
        ("GET", "/v2/just-a-name"),
        ("GET", "/v2/a/b/c"),
    ],
)
def test_a_path_without_a_name_is_not_found(registry: RegistryProcess, method: str, target: str) -> None:
    """Without a name there is no repository to speak of, and the client still gets an error it can parse."""
    reply = registry.wire.request(method, target, body=b"{}" if method in {"PUT", "POST"} else None)

    reply.expect(404, {"Docker-Distribution-Api-Version": "registry/2.0", "Location": None})
    if method != "HEAD":
        assert reply.json()["errors"][0]["code"], str(reply)


@pytest.mark.case(13)
def test_an_encoded_slash_is_not_a_slash(registry: RegistryProcess) -> None:
    """Were it decoded, one repository would have two names, and a proxy that guards one would miss the other."""
    outer = new_name()
    image = Repository(registry.wire, f"{outer}/b").push_image("latest")
    alias = Repository(registry.wire, f"{outer}%2Fb")

    read = alias.request("GET", "manifests/latest")
    written = alias.put_manifest("other", image.manifest)

    read.expect_error(400, "NAME_INVALID")
    written.expect_error(400, "NAME_INVALID")


@pytest.mark.case(14)
@pytest.mark.parametrize("shape", ["a//tags/list", "a/../b/tags/list", "a/./b/tags/list", "/a/tags/list"])
def test_a_path_is_never_tidied_up(registry: RegistryProcess, shape: str) -> None:
    """Collapsing slashes or dots would answer for another repository than the one that was authorized."""
    reply = registry.wire.request("GET", f"/v2/{shape}")

    reply.expect_error(400, "NAME_INVALID")
    assert reply.get("Location") is None, str(reply)


@pytest.mark.case(15)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("name", ["_oci/x", "_catalog", "_docker/a/b", "_"])
def test_a_name_that_begins_with_an_underscore_is_not_found(registry: RegistryProcess, method: str, name: str) -> None:
    """Those names are kept for extensions; 404 is how a client learns that an extension is not there."""
    reply = registry.wire.request(method, f"/v2/{name}/manifests/y", body=b"{}" if method == "PUT" else None)

    reply.expect(404)
    if method != "HEAD":
        assert reply.json()["errors"][0]["code"], str(reply)


def test_a_start_of_an_upload_needs_no_last_slash(repository: Repository) -> None:
    """Hand-written clients forget it, and nothing else could be meant."""
    content = random_content()

    started = repository.request("POST", "blobs/uploads", body=b"").expect(202)
    repository.send("PUT", f"{started['Location']}?digest={digest_of(content)}", body=content).expect(201)

    assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
