"""`lading usage`, beside a running server: who takes the room, and what a deletion would free."""

import json
from typing import Any

from tests.capability.content import (
    LARGE_BYTES,
    OCI_CONFIG,
    OCI_MANIFEST,
    Image,
    descriptor,
    encode,
    index_of,
    manifest_of,
    new_image,
    random_content,
)
from tests.capability.preloaded import Outcome
from tests.capability.repository import Repository, new_name
from tests.capability.server import RegistryProcess


def run(registry: RegistryProcess, *arguments: str) -> Outcome:
    return registry.run("usage", *arguments)


def told(registry: RegistryProcess, *arguments: str) -> Any:
    return json.loads(run(registry, *arguments, "--json").output)


def test_room_is_told_by_repository_and_by_tag_and_what_a_deletion_frees(
    registry: RegistryProcess, repository: Repository
) -> None:
    """Two images share a layer, one of them with another repository; an index has a child of its own."""
    first = repository.push_image("v1", new_image(LARGE_BYTES))
    config, layer = b'{"second":true}' + random_content(5).hex().encode(), random_content(LARGE_BYTES + 5)
    document = manifest_of(descriptor(config, OCI_CONFIG), [descriptor(first.layers[0]), descriptor(layer)])
    repository.push_image("v2", Image(encode(document), config, (first.layers[0], layer)))
    child = repository.push_image(None, new_image(LARGE_BYTES + 7))
    repository.push_index(index_of([descriptor(child.manifest, OCI_MANIFEST)]), "multi")
    other = Repository(registry.wire, new_name())
    other.push_image("v1", Image(first.manifest, first.config, first.layers))
    own = len(layer) + len(config)
    shared = len(first.layers[0]) + len(first.config)
    below = len(child.layers[0]) + len(child.config)

    survey = told(registry)
    tags = told(registry, repository.name)
    deletion = told(registry, repository.name, "--if-deleted", "v2", "--if-deleted", "multi")
    said = run(registry, repository.name, "--if-deleted", "v1").output

    rows = {row["repository"]: row for row in survey["repositories"]}
    mine = rows[repository.name]
    assert (mine["bytes"], mine["exclusive_bytes"]) == (own + shared + below, own + below)
    assert (mine["shared_bytes"], mine["live_bytes"]) == (shared, own + shared + below)
    assert (mine["manifests"], mine["tags"], mine["pulls"], mine["last_pull"]) == (4, 3, 0, None)
    assert (rows[other.name]["exclusive_bytes"], rows[other.name]["shared_bytes"]) == (0, shared)
    assert survey["bytes"] >= own + shared + below
    assert {(tag["tag"], tag["bytes"], tag["exclusive_bytes"]) for tag in tags["by_tag"]} == {
        ("v1", shared, 0),
        ("v2", own + len(first.layers[0]), own),
        ("multi", below, below),
    }
    assert deletion["bytes"] == own + below
    assert len(deletion["manifests"]) == 3
    assert f"  {first.digest}\n" in said
    assert said.endswith("frees nothing: other manifests need the same blobs\n")


def test_what_was_deleted_is_told_as_in_the_undo_window(registry: RegistryProcess, repository: Repository) -> None:
    """The room comes back when nobody can bring the image back any more, and not before."""
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    repository.request("DELETE", f"manifests/{image.digest}").expect(202)

    document = told(registry, repository.name)
    lines = run(registry).output

    assert document["undo_bytes"] == document["bytes"] == len(image.layers[0]) + len(image.config)
    assert document["by_tag"] == []
    assert any(line.startswith(f"{repository.name}  ") and line.endswith("  never") for line in lines.splitlines())
    assert "\nwaiting to be deleted: " in lines


def test_what_is_not_there_is_refused(registry: RegistryProcess, repository: Repository) -> None:
    """A sum of nothing would look like an answer."""
    repository.push_image("v1")

    no_tag = run(registry, repository.name, "--if-deleted", "v1", "--if-deleted", "v2")
    bad_name = run(registry, "\x1b[31mred")
    no_name = run(registry, "--if-deleted", "v1")

    assert (no_tag.code, bad_name.code, no_name.code) == (1, 1, 2)
    assert no_tag.errors.startswith(f"error: {repository.name} has no tag v2\n")
    assert "\x1b" not in bad_name.errors
