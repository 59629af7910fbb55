"""The media types a registry must know by name; all others (configs, layers, artifacts) are the client's own."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

IMAGE_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
DOCKER_TYPES = frozenset({DOCKER_MANIFEST, DOCKER_MANIFEST_LIST})
MANIFESTS = IMAGE_MANIFESTS | INDEXES
SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
GENERIC = frozenset({"", "application/json", "application/octet-stream"})

OCTET_STREAM = "application/octet-stream"
JSON = "application/json"


def without_parameters(content_type: str) -> str:
    """Return the bare media type of a Content-Type value, lowercase: `a/b; charset=utf-8` gives `a/b`."""
    return content_type.partition(";")[0].strip().lower()


def is_foreign_layer(media_type: str) -> bool:
    """Tell whether a layer of this type may be absent, being never pushed (image-spec "Non-Distributable Layers")."""
    return "nondistributable" in media_type or media_type.startswith("application/vnd.docker.image.rootfs.foreign.")
