"""What the tests push: digests, descriptors, manifests and indexes, as plain documents that a test may spoil."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_JSON = b"{}"

# Blobs up to 16 KiB live in the database, larger ones are files: both ways are walked wherever content matters.
SMALL_BYTES = 1_000
LARGE_BYTES = 100_000


def random_content(size_bytes: int = SMALL_BYTES) -> bytes:
    """Return content that nobody else has."""
    return os.urandom(size_bytes)


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of `content`."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def encode(document: object) -> bytes:
    """Return the document as the bytes to push."""
    return json.dumps(document).encode()


def descriptor(content: bytes, media_type: str = OCI_LAYER, algorithm: str = "sha256", **fields: object) -> Json:
    """Describe `content`."""
    return {"mediaType": media_type, "digest": digest_of(content, algorithm), "size": len(content), **fields}


def manifest_of(config: Json, layers: Sequence[Json], **fields: object) -> Json:
    """Compose an image manifest, of the OCI type unless `fields` say otherwise."""
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers), **fields}


def index_of(children: Sequence[Json], **fields: object) -> Json:
    """Compose an index, of the OCI type unless `fields` say otherwise."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children), **fields}


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it was pushed: the manifest's bytes, and the blobs that they name."""

    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return digest_of(self.manifest)

    def document(self) -> Json:
        """Return the manifest, parsed."""
        document: Json = json.loads(self.manifest)
        return document


def new_image(layer_bytes: int = SMALL_BYTES, **fields: object) -> Image:
    """Make an image of one config and one layer that nobody else has."""
    config, layer = encode({"created_by": random_content(8).hex()}), random_content(layer_bytes)
    document = manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer)], **fields)
    return Image(encode(document), config, (layer,))
