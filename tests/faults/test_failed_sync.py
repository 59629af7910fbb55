"""A disk that fails to sync: what was sent is not believed afterwards, and the session cannot be led astray."""

from pathlib import Path

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess
from tests.faults.trace import Trace

pytestmark = pytest.mark.slow
ONE_MB = 1_000_000


def failing(server: RegistryProcess, call: str, error: str, notes: Path) -> Trace:
    """Have each `call` of the workers fail with `error` while the block lasts."""
    return Trace(notes, server.tree()[1:], call.split(","), fault=f"error={error}")


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_what_a_failed_sync_left_is_not_believed(server: RegistryProcess, tmp_path: Path, error: str) -> None:
    """The kernel forgets what it could not write, so a second sync would succeed over bytes that are gone."""
    server.start()
    repository = Repository(server.wire, new_name())
    content = random_content(ONE_MB)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)

    with failing(server, "fsync", error, tmp_path / "notes"):
        refused = repository.send("PUT", with_digest(location, digest_of(content)), body=b"")

    assert refused.status == 500, f"{refused}"
    assert server.staging_files() == []
    again = repository.send("PUT", with_digest(location, digest_of(content)), body=b"")
    assert again.status in {400, 404}, f"{again}"  # the database may have failed too, and then the session is empty
    assert server.objects_of(digest_of(content)) == []
    repository.push_blob(content)
    assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content


def test_bytes_that_take_the_place_of_lost_ones_do_not_inherit_their_digest(server: RegistryProcess) -> None:
    """Otherwise a client could have any bytes stored under a digest, and every later push of the true ones dropped."""
    server.start()
    repository = Repository(server.wire, new_name())
    good, bad = random_content(ONE_MB), random_content(ONE_MB)

    for _ in range(10):  # a connection each: between them they reach both workers
        location = repository.start_upload()
        repository.send("PATCH", location, body=good).expect(202)
        for lost in server.staging_files():
            lost.unlink()
        repository.send("PATCH", location, body=bad).expect(202)

        reply = repository.send("PUT", with_digest(location, digest_of(good)), body=b"")

        reply.expect_error(400, "DIGEST_INVALID")
    server.stop()


def test_a_commit_that_lacks_a_descriptor_can_be_tried_again(server: RegistryProcess, tmp_path: Path) -> None:
    """A moment without descriptors must not cost the client the gigabytes it has sent."""
    server.start()
    repository = Repository(server.wire, new_name())
    content = random_content(ONE_MB)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)

    with failing(server, "link,linkat", "EMFILE", tmp_path / "notes"):
        repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect_error(503, "UNAVAILABLE")

    repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect(201)
    assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
