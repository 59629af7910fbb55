"""The operator's commands beside a running server: what they delete is gone at once, what they restore pulls again."""

import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.capability import preloaded
from tests.capability.content import LARGE_BYTES, OCI_MANIFEST, Image, descriptor, digest_of, index_of, new_image
from tests.capability.operated import COMMAND_SECONDS, OperatedRegistry
from tests.capability.repository import Repository, new_name
from tests.capability.server import LADING, until


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatedRegistry]:
    """Run one server, beside which the tests of this page give commands."""
    server = OperatedRegistry(tmp_path_factory.mktemp("beside"), parent=preloaded.shared())
    server.start()
    try:
        yield server
        server.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture
def repository(beside: OperatedRegistry) -> Repository:
    """Return a repository that no other test uses."""
    return Repository(beside.wire, new_name())


def assert_pulls(repository: Repository, tag_or_digest: str, image: Image) -> None:
    """Assert that every byte of the image is as it was pushed."""
    assert repository.request("GET", f"manifests/{tag_or_digest}").expect(200).body == image.manifest
    for content in (image.config, *image.layers):
        assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content


def test_a_tag_that_was_deleted_or_overwritten_comes_back(beside: OperatedRegistry, repository: Repository) -> None:
    """The two mistakes of every day; each is undone by one command, which is in the history itself."""
    first = repository.push_image("v1", new_image(LARGE_BYTES))
    second = repository.push_image("v1")
    tag = f"{repository.name}:v1"

    assert beside.do("tag", "restore", tag, "--yes", "--json").json() == {
        "restored": tag,
        "digest": first.digest,
        "changed": True,
    }
    assert_pulls(repository, "v1", first)
    beside.do("tag", "delete", tag, "--yes")
    repository.request("GET", "manifests/v1").expect_error(404, "MANIFEST_UNKNOWN")
    beside.do("tag", "restore", tag, "--to", second.digest, "--yes")

    assert_pulls(repository, "v1", second)
    events = beside.do("tag", "history", tag, "--json").json()["events"]
    told = [(event["event"], event["digest"]) for event in events]
    assert told == [
        ("created", second.digest),
        ("deleted", first.digest),
        *(("created", image.digest) for image in (first, second, first)),
    ]
    assert [event["by"].partition(":")[0] for event in events] == ["cli", "cli", "cli", "anonymous", "anonymous"]


def test_an_image_that_was_deleted_by_digest_comes_back(beside: OperatedRegistry, repository: Repository) -> None:
    """With its tags, an index with its children, and everything as it was pushed."""
    images = [repository.push_image(None, new_image(size)) for size in (1000, LARGE_BYTES)]
    index = repository.push_index(index_of([descriptor(image.manifest, OCI_MANIFEST) for image in images]), "v1")
    for digest in (digest_of(index), *(image.digest for image in images)):
        repository.request("DELETE", f"manifests/{digest}").expect(202)
    for image in images:
        repository.request("DELETE", f"blobs/{digest_of(image.config)}").expect(202)

    beside.do("tag", "restore", f"{repository.name}:v1", "--yes")

    assert repository.request("GET", "manifests/v1").expect(200).body == index
    for image in images:
        assert_pulls(repository, image.digest, image)
    listed = beside.do("tag", "ls", repository.name, "--json").json()["tags"]
    assert [(row["tag"], row["digest"]) for row in listed] == [("v1", digest_of(index))]


def test_a_repository_that_was_deleted_comes_back(beside: OperatedRegistry, repository: Repository) -> None:
    """The mistake that costs most: all tags, what has none, and what refers to others."""
    image, untagged = repository.push_image("v1", new_image(LARGE_BYTES)), repository.push_image()
    signature = repository.push_image(None, new_image(subject=descriptor(image.manifest, OCI_MANIFEST)))
    name = repository.name

    told = beside.do("repo", "delete", name, "--yes", "--json").json()

    assert told == {"deleted": name, "tags": 1, "manifests": 3}
    for tail in ("manifests/v1", f"manifests/{untagged.digest}", "tags/list"):
        repository.request("GET", tail).expect_error(404, "NAME_UNKNOWN")
    repository.request("GET", f"blobs/{digest_of(image.config)}").expect(404)
    (listed,) = (
        row for row in beside.do("repo", "ls", "--deleted", "--json").json()["repositories"] if row["name"] == name
    )
    assert (listed["tags"], listed["manifests"]) == (0, 0)
    beside.do("repo", "restore", name, "--yes")

    assert repository.tags() == ["v1"]
    for digest, pushed in (("v1", image), (untagged.digest, untagged), (signature.digest, signature)):
        assert_pulls(repository, digest, pushed)
    referrers = repository.request("GET", f"referrers/{image.digest}").expect(200).json()["manifests"]
    assert [row["digest"] for row in referrers] == [signature.digest]


def test_a_repository_gets_another_name_with_its_unfinished_uploads(
    beside: OperatedRegistry, repository: Repository
) -> None:
    """A team is renamed; its builds go on under the new name, and the old one finds nothing."""
    image, content = repository.push_image("v1"), os.urandom(5000)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)
    renamed = Repository(beside.wire, f"{repository.name}/new")

    beside.do("repo", "rename", repository.name, renamed.name, "--yes")

    assert_pulls(renamed, "v1", image)
    repository.request("GET", "manifests/v1").expect_error(404, "NAME_UNKNOWN")
    moved = location.replace(repository.name, renamed.name)
    renamed.send("PUT", f"{moved}?digest={digest_of(content)}", body=b"").expect(201)
    assert renamed.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content


def test_nothing_is_changed_while_the_store_is_another_registrys(operated: OperatedRegistry) -> None:
    """Another database has taken over: what this one deleted would be gone here, and there still be served."""
    operated.start()
    repository = Repository(operated.wire, new_name())
    repository.push_image("v1")
    operated.change_marker(epoch=2)

    outcome = operated.run("tag", "delete", f"{repository.name}:v1", "--yes")

    assert (outcome.code, outcome.output) == (1, "")
    assert "error: this registry is read-only" in outcome.errors
    repository.request("GET", "manifests/v1").expect(200)


def test_after_the_window_the_error_names_the_days(operated: OperatedRegistry) -> None:
    """The server's own collector has removed it; commands work as well when the server is stopped."""
    for name, seconds in (("UNDO", "0"), ("EVERY", "0.1")):
        operated.set(f"LADING_COLLECTION__{name}_SECONDS", seconds)
    operated.set("LADING_DELETES__INDEX_CHILDREN", "false")
    operated.start()
    repository = Repository(operated.wire, new_name())
    image = repository.push_image("v1")
    index = repository.push_index(index_of([descriptor(image.manifest, OCI_MANIFEST)]))
    refused = repository.request("DELETE", f"manifests/{image.digest}").expect_error(405, "UNSUPPORTED")
    assert refused.json()["errors"][0]["detail"] == [{"manifest": digest_of(index)}]
    for digest in (digest_of(index), image.digest):
        repository.request("DELETE", f"manifests/{digest}").expect(202)

    assert until(lambda: len(operated.sql("SELECT * FROM feed WHERE kind = 'manifest.collected'")) == 2)
    operated.stop()

    day = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    told = operated.refused("tag", "restore", f"{repository.name}:v1", "--yes")
    assert re.search(rf"v1 named {image.digest} until {day}; it was removed for good on {day}", told)


def test_a_terminal_is_asked_first(beside: OperatedRegistry, repository: Repository) -> None:
    """A command that was recalled by mistake is stopped by one key."""
    repository.push_image("v1")
    for answer, status in (("n", 200), ("y", 404)):
        _on_a_terminal(answer, "tag", "delete", f"{repository.name}:v1", "--data", str(beside.data))
        repository.request("GET", "manifests/v1").expect(status)


def _on_a_terminal(answer: str, *arguments: str) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        subprocess.run([*LADING, *arguments], stdin=theirs, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    finally:
        for descriptor_ in (ours, theirs):
            os.close(descriptor_)
