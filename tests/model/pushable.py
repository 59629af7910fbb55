"""What the clients of the state machine push: a handful of contents, and manifests over them.

All of it is marked with its example's name, so that no two examples share a digest: what a server still holds of an
earlier example can never answer for this one. Only the empty content is the same everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tests.capability.content import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Json,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
)

# The names of the contents, and how many bytes each has: on both sides of what lives in the database (16 KiB), and of
# one frame of a chunked body (32 KiB).
SIZES: Mapping[str, int] = {
    "empty": 0,
    "tiny": 12,
    "small": 300,
    "inline": 16_384,
    "file": 16_385,
    "frames": 70_000,
}
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def contents_of(example: str) -> dict[str, bytes]:
    """Return the bytes of each content of an example."""
    return {name: f"{example} {name} ".encode().ljust(size, b".")[:size] for name, size in SIZES.items()}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as a client pushes it, and what a registry has to make of it.

    `blobs` are the digests that must be there, `foreign` those of layers that may be absent; `children` an index's
    manifests. `artifact_type` is what a list of referrers says: the manifest's own type, else that of its config.
    """

    body: bytes
    media_type: str
    blobs: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    children: tuple["Manifest", ...] = ()
    subject: str | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None

    def digest(self, algorithm: str = "sha256") -> str:
        """Return the digest of the body."""
        return digest_of(self.body, algorithm)

    def described(self, digest: str) -> Json:
        """Return the descriptor by which a list of referrers names it."""
        found: Json = {"mediaType": self.media_type, "digest": digest, "size": len(self.body)}
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return found

    @classmethod
    def image(cls, example: str, *, config: bytes, layers: Sequence[bytes], foreign: Sequence[bytes] = ()) -> Self:
        """Compose an image; the foreign layers, which a registry need not have, come last."""
        listed = [descriptor(layer) for layer in layers] + [descriptor(layer, FOREIGN_LAYER) for layer in foreign]
        return cls(
            encode(manifest_of(descriptor(config, OCI_CONFIG), listed, example=example)),
            OCI_MANIFEST,
            blobs=tuple(digest_of(content) for content in (config, *layers)),
            foreign=tuple(digest_of(content) for content in foreign),
            artifact_type=OCI_CONFIG,
        )

    @classmethod
    def docker_image(cls, example: str, *, config: bytes, layers: Sequence[bytes]) -> Self:
        """Compose an image of Docker's schema 2."""
        listed = [descriptor(layer) for layer in layers]
        return cls(
            encode(manifest_of(descriptor(config, DOCKER_CONFIG), listed, mediaType=DOCKER_MANIFEST, example=example)),
            DOCKER_MANIFEST,
            blobs=tuple(digest_of(content) for content in (config, *layers)),
            artifact_type=DOCKER_CONFIG,
        )

    @classmethod
    def artifact(
        cls, example: str, *, layer: bytes, artifact_type: str | None, subject: "Manifest | None", notes: int
    ) -> Self:
        """Compose an artifact as signers and scanners push it, with `notes` annotations; without its own media type."""
        annotations = {f"note.{number}": f"{example} \u00e9" for number in range(notes)}
        document = manifest_of(descriptor(layer, OCI_LAYER), [descriptor(layer)], example=example)
        del document["mediaType"]
        if artifact_type:
            document["artifactType"] = artifact_type
        if subject is not None:
            document["subject"] = descriptor(subject.body, subject.media_type)
        if annotations:
            document["annotations"] = annotations
        return cls(
            encode(document),
            OCI_MANIFEST,
            blobs=(digest_of(layer),),
            subject=None if subject is None else subject.digest(),
            artifact_type=artifact_type or OCI_LAYER,
            annotations=annotations,
        )

    @classmethod
    def index(
        cls,
        example: str,
        *,
        children: Sequence["Manifest"],
        blobs: Sequence[bytes] = (),
        subject: "Manifest | None" = None,
    ) -> Self:
        """Compose an index, which has no artifact type of its own; build caches list blobs in theirs."""
        listed = [descriptor(child.body, child.media_type) for child in children]
        document = index_of([*listed, *map(descriptor, blobs)], example=example)
        if subject is not None:
            document["subject"] = descriptor(subject.body, subject.media_type)
        return cls(
            encode(document),
            OCI_INDEX,
            blobs=tuple(digest_of(content) for content in blobs),
            children=tuple(children),
            subject=None if subject is None else subject.digest(),
        )
