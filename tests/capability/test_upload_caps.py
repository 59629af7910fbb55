"""Caps on unfinished uploads: refused early, in a sentence that names the setting, and open again as they end."""

import time

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess, StartRegistry, until

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
