"""Deleting: what goes, what stays, and that both are true at once."""

import json
from functools import partial

import pytest

from tests.capability.content import (
    LARGE_BYTES,
    OCI_MANIFEST,
    SMALL_BYTES,
    descriptor,
    digest_of,
    index_of,
    new_image,
    random_content,
)
from tests.capability.racing import race
from tests.capability.repository import Repository, new_name
from tests.capability.server import StartRegistry
from tests.wire import Reply

both_sizes = pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES], ids=["in the database", "as a file"])


def delete(repository: Repository, tail: str) -> Reply:
    return repository.request("DELETE", tail)


def assert_gone(repository: Repository, *tags_or_digests: str) -> None:
    for name in tags_or_digests:
        repository.request("HEAD", f"manifests/{name}").expect(404)
        repository.request("GET", f"manifests/{name}").expect_error(404, "MANIFEST_UNKNOWN")


@pytest.mark.case(135)
def test_deleting_a_tag_takes_only_the_tag(repository: Repository) -> None:
    """A tag is a name; what it named has others and may be in use by digest."""
    image = repository.push_image("one")
    repository.put_manifest("two", image.manifest).expect(201)

    reply = delete(repository, "manifests/one")

    reply.expect(202)
    assert_gone(repository, "one")
    assert repository.tags() == ["two"]
    for name in ("two", image.digest):
        assert repository.request("GET", f"manifests/{name}").expect(200).body == image.manifest


def test_deleting_the_last_tag_keeps_the_manifest(repository: Repository) -> None:
    """Whoever deploys by digest does not care what it was called."""
    image = repository.push_image("only")

    delete(repository, "manifests/only").expect(202)

    assert repository.tags() == []
    assert repository.request("GET", f"manifests/{image.digest}").expect(200).body == image.manifest


@pytest.mark.case(136)
def test_deleting_a_digest_takes_its_tags_along(repository: Repository) -> None:
    """A tag that leads nowhere is what other registries leave behind."""
    image, other = repository.push_image("one"), repository.push_image("other")
    repository.put_manifest("two", image.manifest).expect(201)

    reply = delete(repository, f"manifests/{image.digest}")

    reply.expect(202)
    assert_gone(repository, "one", "two", image.digest)
    assert repository.tags() == ["other"]
    assert repository.request("GET", "manifests/other").expect(200).body == other.manifest


@pytest.mark.case(137)
def test_deleting_what_is_not_there_says_so(repository: Repository) -> None:
    """A repeated delete is told apart from one that worked."""
    image = repository.push_image("latest")
    delete(repository, f"manifests/{image.digest}").expect(202)

    for name in ("latest", image.digest, "never", digest_of(b"never")):
        delete(repository, f"manifests/{name}").expect_error(404, "MANIFEST_UNKNOWN")
    unknown = Repository(repository.wire, new_name())
    delete(unknown, "manifests/latest").expect_error(404, "NAME_UNKNOWN")


@pytest.mark.case(138)
def test_deleting_a_child_keeps_its_index(repository: Repository) -> None:
    """One platform may be withdrawn while the others go on being served."""
    gone, stays = repository.push_image(), repository.push_image()
    children = [descriptor(image.manifest, OCI_MANIFEST) for image in (gone, stays)]
    index = repository.push_index(index_of(children), "latest")

    reply = delete(repository, f"manifests/{gone.digest}")

    reply.expect(202)
    assert_gone(repository, gone.digest)
    assert repository.request("GET", "manifests/latest").expect(200).body == index
    assert repository.request("GET", f"manifests/{stays.digest}").expect(200).body == stays.manifest


@pytest.mark.case(139)
@both_sizes
def test_a_blob_is_deleted_unless_a_manifest_needs_it(repository: Repository, size_bytes: int) -> None:
    """Every accepted manifest is complete while it lives, and the refusal names those that stand in the way."""
    loose = random_content(size_bytes)
    digest = repository.push_blob(loose)
    image = repository.push_image("latest", new_image(size_bytes))
    needed = digest_of(image.layers[0])

    first, second = delete(repository, f"blobs/{digest}"), delete(repository, f"blobs/{digest}")
    malformed = delete(repository, "blobs/sha256:abc")
    refused = delete(repository, f"blobs/{needed}")

    first.expect(202)
    second.expect_error(404, "BLOB_UNKNOWN")
    repository.request("HEAD", f"blobs/{digest}").expect(404)
    repository.request("GET", f"blobs/{digest}").expect_error(404, "BLOB_UNKNOWN")
    malformed.expect_error(400, "DIGEST_INVALID")
    refused.expect_error(405, "UNSUPPORTED")
    assert refused["Allow"], str(refused)
    assert image.digest in json.dumps(refused.json()["errors"][0]["detail"]), str(refused)
    assert repository.request("GET", f"blobs/{needed}").expect(200).body == image.layers[0]


def test_a_blob_can_be_deleted_after_its_manifests(repository: Repository) -> None:
    """The order in which the conformance suite and people clean up."""
    image = repository.push_image("latest")

    delete(repository, f"manifests/{image.digest}").expect(202)
    delete(repository, f"blobs/{digest_of(image.layers[0])}").expect(202)

    repository.request("HEAD", f"blobs/{digest_of(image.layers[0])}").expect(404)


@pytest.mark.case(140)
@both_sizes
def test_what_was_deleted_can_be_pushed_again(repository: Repository, size_bytes: int) -> None:
    """Deleting is not a ban: clean-up jobs delete what the next build pushes unchanged."""
    image = new_image(size_bytes)

    for _ in range(10):
        repository.push_image("latest", image)
        assert repository.request("GET", "manifests/latest").expect(200).body == image.manifest
        assert repository.request("GET", f"blobs/{digest_of(image.layers[0])}").expect(200).body == image.layers[0]

        delete(repository, f"manifests/{image.digest}").expect(202)
        for content in (image.config, *image.layers):
            delete(repository, f"blobs/{digest_of(content)}").expect(202)
        assert_gone(repository, "latest", image.digest)


@pytest.mark.case(141)
def test_a_push_races_the_delete_of_its_blob(repository: Repository) -> None:
    """Either the manifest comes first and keeps the blob, or the delete does and the push learns what is missing."""
    repository.push_image("kept")

    for _ in range(60):
        image = new_image()
        repository.push_blobs(image)
        layer = digest_of(image.layers[0])

        pushed, deleted = race(
            partial(repository.put_manifest, "raced", image.manifest), partial(delete, repository, f"blobs/{layer}")
        )

        if pushed.status == 201:
            deleted.expect_error(405, "UNSUPPORTED")
            assert repository.request("GET", f"blobs/{layer}").expect(200).body == image.layers[0]
        else:
            pushed.expect_error(400, "MANIFEST_BLOB_UNKNOWN")
            deleted.expect(202)
            repository.request("HEAD", f"blobs/{layer}").expect(404)


@pytest.mark.case(142)
def test_deleting_can_be_switched_off(start_registry: StartRegistry) -> None:
    """Archives keep everything; uploads are still cancelled, for that destroys nothing."""
    server = start_registry({"LADING_DELETES__ENABLED": "false"})
    repository = Repository(server.wire, new_name())
    image = repository.push_image("latest")
    loose = repository.push_blob(random_content())

    for tail in ("manifests/latest", f"manifests/{image.digest}", f"blobs/{loose}", f"blobs/{digest_of(b'absent')}"):
        reply = delete(repository, tail)
        reply.expect_error(405, "UNSUPPORTED")
        assert "DELETE" not in reply["Allow"], str(reply)

    assert repository.request("GET", "manifests/latest").expect(200).body == image.manifest
    repository.request("HEAD", f"blobs/{loose}").expect(200)
    repository.send("DELETE", repository.start_upload()).expect(204)


@pytest.mark.case(143)
@both_sizes
def test_a_shared_blob_is_deleted_in_one_repository_only(repository: Repository, size_bytes: int) -> None:
    """Stored once is not owned once."""
    content = random_content(size_bytes)
    other = Repository(repository.wire, new_name())
    digest = repository.push_blob(content)
    other.push_blob(content)

    delete(repository, f"blobs/{digest}").expect(202)

    repository.request("GET", f"blobs/{digest}").expect_error(404, "BLOB_UNKNOWN")
    assert other.request("GET", f"blobs/{digest}").expect(200).body == content
