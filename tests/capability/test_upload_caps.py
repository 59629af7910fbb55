"""Caps on unfinished uploads: refused early, in a sentence that names the setting, and open again as they end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess, StartRegistry, until
from tests.capability.test_auth import PASSWORD, LockedRegistry, basic, header, running

MIB = 1 << 20


@pytest.fixture
def crowded(start_registry: StartRegistry) -> RegistryProcess:
    """Return a server that takes three sessions, and 4 MiB that they have together."""
    return start_registry({"LADING_UPLOADS__MAX_SESSIONS": "3", "LADING_UPLOADS__MAX_BYTES": str(4 * MIB)})


def test_sessions_are_counted_over_all_workers(crowded: RegistryProcess) -> None:
    """Each request may reach another worker, and the fourth session is one too many whoever is asked."""
    repository = Repository(crowded.wire, new_name())
    locations = [repository.start_upload() for _ in range(3)]

    for _ in range(10):
        refused = repository.request("POST", "blobs/uploads/", body=b"")
        refused.expect_error(429, "TOOMANYREQUESTS").expect(429, {"Retry-After": "30"})
    assert "uploads.max_sessions" in refused.json()["errors"][0]["message"]
    content = random_content()
    repository.request("POST", f"blobs/uploads/?digest={digest_of(content)}", body=content).expect_error(
        429, "TOOMANYREQUESTS"
    )

    # The open ones go on, and each that ends lets another one in.
    repository.send("PUT", with_digest(locations[0], digest_of(content)), body=content).expect(201)
    repository.send("DELETE", locations[1]).expect(204)
    repository.start_upload()
    repository.start_upload()
    repository.request("POST", "blobs/uploads/", body=b"").expect_error(429, "TOOMANYREQUESTS")


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
def test_bytes_are_counted_over_all_sessions(crowded: RegistryProcess, *, chunked: bool) -> None:
    """A session that is refused more is where it was, and goes on when others have ended."""
    repository = Repository(crowded.wire, new_name())
    first, second = repository.start_upload(), repository.start_upload()
    content = random_content(3 * MIB)
    repository.send("PATCH", first, body=content, chunked=chunked).expect(202)
    repository.send("PATCH", second, body=random_content(100_000), chunked=chunked).expect(202)
    time.sleep(1.1)  # by then each worker knows of what the others have taken

    for _ in range(8):
        refused = repository.send("PATCH", second, body=random_content(MIB), chunked=chunked)
        refused.expect_error(429, "TOOMANYREQUESTS").expect(429, {"Retry-After": "30"})
    assert "uploads.max_bytes" in refused.json()["errors"][0]["message"]
    taken = repository.upload_range(second)
    repository.send("PUT", with_digest(first, digest_of(content)), body=b"").expect(201)
    assert repository.upload_range(second) == taken
    assert until(lambda: repository.send("PATCH", second, body=random_content(MIB), chunked=chunked).status == 202)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[LockedRegistry]:
    """Run a server with two users, each of whom may have three sessions."""
    yield from running(tmp_path, {"LADING_UPLOADS__MAX_SESSIONS_PER_USER": "3"})


def users_of(server: RegistryProcess, name: str) -> tuple[Repository, Repository]:
    """Return the repository as alice and as bob see it."""
    alice, bob = header(basic("alice", PASSWORD)), header(basic("bob", "another"))
    return Repository(server.wire, name, tuple(alice)), Repository(server.wire, name, tuple(bob))


def test_a_user_who_opens_sessions_without_end_keeps_nobody_from_pushing(shared: LockedRegistry) -> None:
    """All of them count, in whichever repository; what one user has too many of is no matter of another's."""
    alice, bob = users_of(shared, new_name())
    locations = [alice.start_upload() for _ in range(3)]
    elsewhere, _ = users_of(shared, new_name())

    content = random_content()
    for repository in (alice, elsewhere):
        for tail in ("blobs/uploads/", f"blobs/uploads/?digest={digest_of(content)}"):
            refused = repository.request("POST", tail, body=content if "digest" in tail else b"")
            refused.expect_error(429, "TOOMANYREQUESTS").expect(429, {"Retry-After": "30"})
    assert "uploads.max_sessions_per_user" in refused.json()["errors"][0]["message"]
    bob.push_image("v1")

    # Her open ones go on, and each that ends lets another one in.
    alice.send("PUT", with_digest(locations[0], digest_of(content)), body=content).expect(201)
    alice.send("DELETE", locations[1]).expect(204)
    alice.start_upload()
    alice.start_upload()
    alice.request("POST", "blobs/uploads/", body=b"").expect_error(429, "TOOMANYREQUESTS")


def test_a_user_may_have_a_fifth_of_all_sessions(tmp_path: Path) -> None:
    """The cap is there without a setting, whatever `uploads.max_sessions` is."""
    for server in running(tmp_path, {"LADING_UPLOADS__MAX_SESSIONS": "10"}):
        alice, bob = users_of(server, new_name())
        for repository in (alice, bob):
            locations = [repository.start_upload() for _ in range(2)]
            repository.request("POST", "blobs/uploads/", body=b"").expect_error(429, "TOOMANYREQUESTS")
            repository.send("DELETE", locations[0]).expect(204)
            repository.start_upload()


def test_a_session_is_not_there_for_another_user(shared: LockedRegistry) -> None:
    """Who learns its address, from a log or a proxy, can neither read, change nor end what another user pushes."""
    alice, bob = users_of(shared, new_name())
    location, content = alice.start_upload(), random_content()
    alice.send("PATCH", location, body=content[:100]).expect(202)

    tries = [("GET", location, None), ("PATCH", location, b"x"), ("DELETE", location, None)]
    tries += [("PUT", with_digest(location, digest_of(content)), content[100:]), ("PUT", location, b"")]
    for method, target, body in tries:
        bob.send(method, target, body=body).expect_error(404, "BLOB_UPLOAD_UNKNOWN")

    assert alice.upload_range(location) == "0-99"
    alice.send("PUT", with_digest(location, digest_of(content)), body=content[100:]).expect(201)


def test_a_session_of_nobody_goes_on_after_a_login_is_wanted(tmp_path: Path) -> None:
    """A registry gets users, or comes from a version that did not note whose a session is, while clients push."""
    content = random_content()
    before, after = RegistryProcess(tmp_path), LockedRegistry(tmp_path)
    try:
        before.start()
        location = Repository(before.wire, "team/app").start_upload()
        before.stop()
        after.start()
        alice, _ = users_of(after, "team/app")
        alice.send("PUT", with_digest(location, digest_of(content)), body=content).expect(201)
        after.stop()
    finally:
        before.kill()
        after.kill()
