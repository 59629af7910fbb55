"""Content that comes after the manifest that names it: from then on the manifest holds it like any other (I3)."""

import pytest

from tests.capability.content import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
    random_content,
)
from tests.capability.repository import Repository, new_name
from tests.capability.server import StartRegistry

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def test_a_layer_from_elsewhere_is_held_once_it_is_here(repository: Repository) -> None:
    """Its manifest may be accepted without it, but must not lose it again."""
    config, layer = encode({"made": "here"}), random_content()
    repository.push_blob(config)
    document = manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer, FOREIGN)])
    repository.put_manifest("latest", document).expect(201)

    repository.push_blob(layer)

    repository.request("DELETE", f"blobs/{digest_of(layer)}").expect_error(405, "UNSUPPORTED")


@pytest.mark.parametrize("by_mount", [False, True], ids=["pushed", "mounted"])
def test_a_sparse_image_holds_its_late_layer(start_registry: StartRegistry, *, by_mount: bool) -> None:
    """A sparse copy is filled later, layer by layer, and each layer counts from then on."""
    registry = start_registry({"LADING_MANIFESTS__SPARSE_INDEXES": "true"})
    repository, other = Repository(registry.wire, new_name()), Repository(registry.wire, new_name())
    config, layer = encode({"made": "here"}), random_content()
    repository.push_blob(config)
    repository.put_manifest("latest", manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer)])).expect(201)
    other.push_blob(layer)
    digest = digest_of(layer)

    if by_mount:
        repository.request("POST", f"blobs/uploads/?mount={digest}&from={other.name}", body=b"").expect(201)
    else:
        repository.push_blob(layer)

    repository.request("DELETE", f"blobs/{digest}").expect_error(405, "UNSUPPORTED")
    other.request("DELETE", f"blobs/{digest}").expect(202)


def test_a_sparse_index_serves_its_late_child(start_registry: StartRegistry) -> None:
    """Mirrors copy the platforms they need after the index."""
    registry = start_registry({"LADING_MANIFESTS__SPARSE_INDEXES": "true"})
    repository = Repository(registry.wire, new_name())
    config = encode({"made": "here"})
    child = encode(manifest_of(descriptor(config, OCI_CONFIG), []))
    repository.push_index(index_of([descriptor(child, OCI_MANIFEST)]), "latest")

    repository.push_blob(config)
    repository.put_manifest(digest_of(child), child).expect(201)

    assert repository.request("GET", f"manifests/{digest_of(child)}").expect(200).body == child
    repository.request("GET", "manifests/latest").expect(200, {"Content-Type": OCI_INDEX})
