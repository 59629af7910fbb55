"""What the first version of Lading was given, of which tests/data/first-version.tar.xz is what it left on disk.

`python -m tests.capability.first_version PORT` gives the same again to a registry on that port; tests/data/README.md
tells how the archive was made.
"""

import random
import sys

from tests.capability.content import (
    EMPTY_JSON,
    EMPTY_TYPE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
)
from tests.capability.repository import Repository
from tests.wire import Wire

APP, COPY = "first/app", "first/copy"
_source = random.Random("the first version")
SMALL_BYTES, FILE_BYTES = 300, 3_000


def _image(number: int, *layers: bytes) -> Image:
    config = encode({"number": number})
    document = manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer) for layer in layers])
    return Image(encode(document), config, layers)


def _layer(size_bytes: int) -> bytes:
    return _source.randbytes(size_bytes)


SHARED = _layer(FILE_BYTES)
ONE = _image(1, SHARED, _layer(SMALL_BYTES))
TWO = _image(2, SHARED, _layer(FILE_BYTES))
DEAD = _image(3, _layer(FILE_BYTES), _layer(SMALL_BYTES))
INDEX = encode(index_of([descriptor(ONE.manifest, OCI_MANIFEST), descriptor(TWO.manifest, OCI_MANIFEST)]))
SIGNATURE = _layer(SMALL_BYTES)
REFERRER = encode(
    manifest_of(
        descriptor(EMPTY_JSON, EMPTY_TYPE),
        [descriptor(SIGNATURE, "application/x-signature")],
        artifactType="application/x-signed",
        subject=descriptor(ONE.manifest, OCI_MANIFEST),
        annotations={"made": "by the first version"},
    )
)
STRONG = _layer(FILE_BYTES)
STRONG_IMAGE = encode(manifest_of(descriptor(ONE.config, OCI_CONFIG), [descriptor(STRONG, algorithm="sha512")]))
UNFINISHED = _layer(FILE_BYTES)
RECEIVED_BYTES = 1_000
"""How much of the unfinished upload had come."""

BLOBS = (ONE.config, *ONE.layers, TWO.config, TWO.layers[1], EMPTY_JSON, SIGNATURE)
MANIFESTS = {
    "one": (ONE.manifest, OCI_MANIFEST),
    "two": (TWO.manifest, OCI_MANIFEST),
    "latest": (TWO.manifest, OCI_MANIFEST),
    "multi": (INDEX, OCI_INDEX),
    "strong": (STRONG_IMAGE, OCI_MANIFEST),
}
"""The tags at the end, and what each names."""


def give(wire: Wire) -> str:
    """Push it all, move a tag, delete one, a manifest and its blobs, and leave an upload open; return its location."""
    app, copy = Repository(wire, APP), Repository(wire, COPY)
    for image in (ONE, TWO, DEAD):
        app.push_blobs(image)
    app.push_blob(EMPTY_JSON)
    app.push_blob(SIGNATURE)
    app.push_blob(STRONG, "sha512")
    for tag, manifest in (("latest", ONE.manifest), ("gone", ONE.manifest), ("dead", DEAD.manifest)):
        app.put_manifest(tag, manifest).expect(201)
    for tag, (manifest, media_type) in MANIFESTS.items():
        app.put_manifest(tag, manifest, media_type).expect(201)
    app.put_manifest(digest_of(REFERRER), REFERRER).expect(201)
    app.request("DELETE", "manifests/gone").expect(202)
    app.request("DELETE", f"manifests/{DEAD.digest}").expect(202)
    app.request("DELETE", f"blobs/{digest_of(DEAD.layers[0])}").expect(202)
    for content in (ONE.config, *ONE.layers):
        copy.request("POST", f"blobs/uploads/?mount={digest_of(content)}&from={APP}", body=b"").expect(201)
    copy.put_manifest("copied", ONE.manifest).expect(201)
    location = app.start_upload()
    app.send("PATCH", location, body=UNFINISHED[:RECEIVED_BYTES]).expect(202)
    return location


if __name__ == "__main__":
    sys.stdout.write(f"{give(Wire('127.0.0.1', int(sys.argv[1])))}\n")
