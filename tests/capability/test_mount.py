"""Mounting: a blob comes into a repository from another one without being sent again."""

from urllib.parse import quote

import pytest

from tests.capability.content import LARGE_BYTES, SMALL_BYTES, digest_of, random_content
from tests.capability.repository import Repository, new_name
from tests.capability.server import ClosedRegistry
from tests.wire import Reply


@pytest.fixture
def source(repository: Repository) -> Repository:
    """Return a second repository of the same server."""
    return Repository(repository.wire, new_name())


def mount(repository: Repository, query: str) -> Reply:
    return repository.request("POST", f"blobs/uploads/?{query}", body=b"")


def assert_session(repository: Repository, reply: Reply) -> None:
    """Assert that the reply began an ordinary session, which works."""
    reply.expect(202, {"Range": "0-0", "Content-Length": "0"})
    content = random_content()
    digest = digest_of(content)
    repository.send("PUT", f"{reply['Location']}?digest={digest}", body=content).expect(201)


@pytest.mark.case(75)
@pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES])
def test_a_blob_of_a_readable_repository_is_mounted(
    repository: Repository, source: Repository, size_bytes: int
) -> None:
    """Pushing a rebuilt image sends only what is new, though it goes to another name."""
    content = random_content(size_bytes)
    digest = source.push_blob(content)

    reply = mount(repository, f"mount={digest}&from={source.name}")

    reply.expect(
        201, {"Location": repository.url(f"blobs/{digest}"), "Docker-Content-Digest": digest, "Content-Length": "0"}
    )
    assert repository.send("GET", reply["Location"]).expect(200).body == content


@pytest.mark.case(76)
def test_mounting_an_absent_blob_begins_a_session(repository: Repository, source: Repository) -> None:
    """Containerd takes every answer but 201, 202 and 401 as fatal, so a wrong guess must not fail a push."""
    source.push_blob(random_content())

    reply = mount(repository, f"mount={digest_of(random_content())}&from={source.name}")

    assert_session(repository, reply)


@pytest.mark.case(77)
def test_a_mount_does_not_tell_why_it_failed(closed_registry: ClosedRegistry) -> None:
    """Otherwise whoever guesses digests learns what other teams have in their repositories."""
    name, private = new_name(), new_name()
    digest = Repository(closed_registry.wire, private, closed_registry.allow({private: ["pull", "push"]})).push_blob(
        random_content()
    )
    repository = Repository(closed_registry.wire, name, closed_registry.allow({name: ["pull", "push"]}))

    unreadable = mount(repository, f"mount={digest}&from={private}")
    unknown = mount(repository, f"mount={digest}&from={new_name()}")
    invalid = mount(repository, f"mount={digest}&from=Not..valid")
    absent = mount(repository, f"mount={digest_of(random_content())}&from={private}")

    for reply in (unreadable, unknown, invalid, absent):
        assert_session(repository, reply)
        assert visible(reply) == visible(unreadable), f"{reply}\n{unreadable}"
    repository.request("HEAD", f"blobs/{digest}").expect(404)


def visible(reply: Reply) -> list[tuple[str, str]]:
    """Return the reply's headers without what differs between any two sessions."""
    own = {"location", "docker-upload-uuid", "date", "x-request-id"}
    return sorted((name.lower(), "" if name.lower() in own else value) for name, value in reply.headers)


@pytest.mark.case(78)
def test_a_mount_from_anywhere_needs_a_readable_source(closed_registry: ClosedRegistry) -> None:
    """Regclient asks first whether the registry has the blob at all; the answer is about what the caller may read."""
    name, public, private = new_name(), new_name(), new_name()
    owner = closed_registry.allow({public: ["pull", "push"], private: ["pull", "push"]})
    shared, hidden, both = random_content(), random_content(), random_content()
    for holder, contents in ((public, (shared, both)), (private, (hidden, both))):
        for content in contents:
            Repository(closed_registry.wire, holder, owner).push_blob(content)
    rights = {name: ["pull", "push"], public: ["pull"]}
    repository = Repository(closed_registry.wire, name, closed_registry.allow(rights))

    readable = [mount(repository, f"mount={digest_of(content)}") for content in (shared, both)]
    unreadable = mount(repository, f"mount={digest_of(hidden)}")
    absent = mount(repository, f"mount={digest_of(random_content())}")

    for reply, content in zip(readable, (shared, both), strict=True):
        reply.expect(201, {"Location": repository.url(f"blobs/{digest_of(content)}")})
        assert repository.send("GET", reply["Location"]).expect(200).body == content
    for reply in (unreadable, absent):
        assert_session(repository, reply)
    assert visible(unreadable) == visible(absent), f"{unreadable}\n{absent}"
    repository.request("HEAD", f"blobs/{digest_of(hidden)}").expect(404)


@pytest.mark.case(79)
@pytest.mark.parametrize("digest", ["sha256:abc", "nonsense", "MD5:d41d8cd98f00b204e9800998ecf8427e"])
def test_mounting_a_malformed_digest_is_refused(repository: Repository, source: Repository, digest: str) -> None:
    """Nothing could ever be mounted under it, so this is a mistake and not a wrong guess."""
    source.push_blob(random_content())

    reply = mount(repository, f"mount={digest}&from={source.name}")

    reply.expect_error(400, "DIGEST_INVALID")


def test_mounting_a_digest_of_another_algorithm_starts_a_session(repository: Repository, source: Repository) -> None:
    """It is well-formed and merely not there; a client that gets an error for a mount gives up its push."""
    source.push_blob(random_content())

    reply = mount(repository, f"mount=blake3:{'a' * 64}&from={source.name}")

    assert_session(repository, reply)


@pytest.mark.case(80)
@pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES])
def test_a_mounted_blob_outlives_its_source(repository: Repository, source: Repository, size_bytes: int) -> None:
    """The repositories share bytes, not fates: whoever owns the source may empty it at any time."""
    content = random_content(size_bytes)
    digest = source.push_blob(content)
    mount(repository, f"mount={digest}&from={source.name}").expect(201)

    source.request("DELETE", f"blobs/{digest}").expect(202)

    source.request("GET", f"blobs/{digest}").expect_error(404, "BLOB_UNKNOWN")
    assert repository.request("GET", f"blobs/{digest}").expect(200).body == content


@pytest.mark.case(81)
@pytest.mark.parametrize("spelling", ["{name}", "{escaped}"], ids=["plain", "escaped"])
def test_the_source_may_be_escaped_or_not(repository: Repository, spelling: str) -> None:
    """Docker and skopeo escape the slash in the query, containerd does not."""
    name = f"{new_name()}/app"
    digest = Repository(repository.wire, name).push_blob(random_content())
    source = spelling.format(name=name, escaped=quote(name, safe=""))

    for mounted in (digest, quote(digest, safe="")):
        reply = mount(repository, f"from={source}&mount={mounted}")
        reply.expect(201, {"Docker-Content-Digest": digest})


def test_a_mount_from_itself_begins_a_session_if_the_blob_is_absent(repository: Repository) -> None:
    """Clients remember where a layer was, even if it was deleted there since."""
    repository.push_blob(random_content())

    reply = mount(repository, f"mount={digest_of(random_content())}&from={repository.name}")

    assert_session(repository, reply)


def test_parameters_without_a_mount_are_ignored(repository: Repository, source: Repository) -> None:
    """Clients send `from` alone, or others' parameters beside it, and mean an ordinary session."""
    source.push_blob(random_content())

    assert_session(repository, mount(repository, f"from={source.name}"))
    assert_session(repository, mount(repository, f"from={source.name}&origin=elsewhere"))


def test_a_mount_that_fails_ignores_a_digest_beside_it(repository: Repository, source: Repository) -> None:
    """With both, the request is a mount with a session to fall back on, never an upload in one request."""
    content = random_content()

    reply = repository.request(
        "POST", f"blobs/uploads/?mount={digest_of(content)}&from={source.name}&digest={digest_of(content)}", body=b""
    )

    reply.expect(202, {"Range": "0-0"})
    repository.request("HEAD", f"blobs/{digest_of(content)}").expect(404)
