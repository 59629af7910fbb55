"""A data directory as real pushes leave it, with something of everything that the registry keeps: to be damaged."""

import contextlib
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pysqlite3 import dbapi2

from tests.capability.content import (
    OCI_CONFIG,
    OCI_MANIFEST,
    descriptor,
    digest_of,
    encode,
    index_of,
    manifest_of,
)
from tests.capability.repository import Repository, with_digest
from tests.capability.server import RegistryProcess
from tests.faults.checker import DATABASE

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
APP, COPY = "team/app", "team/copy"
# Large enough that the session's row remembers the digest of what has come so far.
OPEN_BYTES = 300_000

_source = random.Random("sound")
CONFIG, OTHER_CONFIG, DELETED_CONFIG = (encode({"number": number}) for number in range(3))
EMPTY = b"{}"
LAYER, HEALED, STRONG = (_source.randbytes(size) for size in (100_000, 40_000, 50_000))
SIGNATURE = _source.randbytes(200)
OPEN = _source.randbytes(OPEN_BYTES)
FIRST = encode(manifest_of(descriptor(CONFIG, OCI_CONFIG), [descriptor(LAYER)]))
SECOND = encode(manifest_of(descriptor(OTHER_CONFIG, OCI_CONFIG), [descriptor(LAYER), descriptor(HEALED)]))
INDEX = encode(index_of([descriptor(FIRST, OCI_MANIFEST), descriptor(SECOND, OCI_MANIFEST)]))
REFERRER = encode(
    manifest_of(
        descriptor(EMPTY, "application/vnd.oci.empty.v1+json"),
        [descriptor(SIGNATURE, "application/x-signature")],
        artifactType="application/x-signed",
        subject=descriptor(FIRST, OCI_MANIFEST),
        annotations={"made": "here"},
    )
)
STRONG_IMAGE = encode(manifest_of(descriptor(CONFIG, OCI_CONFIG), [descriptor(STRONG, algorithm="sha512")]))
AWAITING = encode(manifest_of(descriptor(CONFIG, OCI_CONFIG), [descriptor(b"elsewhere", FOREIGN)]))
DELETED = encode(manifest_of(descriptor(DELETED_CONFIG, OCI_CONFIG), [descriptor(LAYER)]))
NAMES: Mapping[str, str] = {
    "config": digest_of(CONFIG),
    "layer": digest_of(LAYER),
    "healed": digest_of(HEALED),
    "strong": digest_of(STRONG, "sha512"),
    "first": digest_of(FIRST),
    "second": digest_of(SECOND),
    "index": digest_of(INDEX),
    "referrer": digest_of(REFERRER),
}


@contextlib.contextmanager
def written(folder: Path) -> Iterator["Sound"]:
    """Have a server write the directory, and stop it; remove all of it at the end."""
    server = RegistryProcess(folder)
    try:
        server.start()
        upload_id = _write(server)
        server.stop()
        yield Sound(server.data, upload_id)
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Sound:
    """The directory, and the id of the upload that is open in it."""

    data: Path
    upload_id: str

    def copy(self, to: Path) -> "Sound":
        """Copy it."""
        return Sound(shutil.copytree(self.data, to), self.upload_id)

    def object_of(self, digest: str) -> Path:
        """Return the file that has the bytes of a blob."""
        encoded = digest.partition(":")[2]
        (path,) = (self.data / "objects" / encoded[:2]).glob(f"{encoded}.*")
        return path

    def change(self, statements: str) -> None:
        """Change the tables by statements split at `;`, held back by no foreign key; the server must be stopped."""
        with contextlib.closing(dbapi2.connect(str(self.data / DATABASE), isolation_level=None)) as connection:
            for statement in statements.split(";"):
                assert connection.execute(statement).rowcount != 0, f"changed nothing: {statement}"

    def contents(self) -> dict[str, tuple[int, int]]:
        """Return every file and folder with its length and time."""
        status = {path.relative_to(self.data): path.lstat() for path in self.data.rglob("*")}
        return {str(path): (one.st_size, one.st_mtime_ns) for path, one in status.items()}


def _write(server: RegistryProcess) -> str:
    """Do it all on a running server; return the id of the open upload."""
    app, copy = Repository(server.wire, APP), Repository(server.wire, COPY)
    for content in (CONFIG, OTHER_CONFIG, DELETED_CONFIG, EMPTY, SIGNATURE, LAYER, HEALED):
        app.push_blob(content)
    app.push_blob(STRONG, "sha512")
    for tag, payload in (("latest", FIRST), ("latest", SECOND), ("latest", FIRST), ("v1", FIRST), ("gone", SECOND)):
        app.put_manifest(tag, payload).expect(201)
    app.put_manifest("multi", INDEX, "application/vnd.oci.image.index.v1+json").expect(201)
    app.put_manifest(digest_of(REFERRER), REFERRER).expect(201)
    app.put_manifest("strong", STRONG_IMAGE).expect(201)
    app.put_manifest("awaiting", AWAITING).expect(201)
    _delete_some(app)
    _heal(server, app)
    for content in (CONFIG, LAYER):
        target = f"blobs/uploads/?mount={digest_of(content)}&from={APP}"
        copy.request("POST", target, body=b"").expect(201)
    copy.put_manifest("copied", FIRST).expect(201)
    app.send("DELETE", app.start_upload()).expect(204)
    location = app.start_upload()
    app.send("PATCH", location, body=OPEN).expect(202)
    return location.rpartition("/")[2]


def _delete_some(app: Repository) -> None:
    """Delete a tag for good, one that comes back, and a manifest with its blob."""
    app.request("DELETE", "manifests/gone").expect(202)
    app.put_manifest("back", FIRST).expect(201)
    app.request("DELETE", "manifests/back").expect(202)
    app.put_manifest("back", SECOND).expect(201)
    app.put_manifest("deleted", DELETED).expect(201)
    app.request("DELETE", f"manifests/{digest_of(DELETED)}").expect(202)
    app.request("DELETE", f"blobs/{digest_of(DELETED_CONFIG)}").expect(202)


def _heal(server: RegistryProcess, app: Repository) -> None:
    """Lose a file and push it again: its blob has a new object, and the old one is doomed."""
    for path in server.objects_of(digest_of(HEALED)):
        path.unlink()
    app.send("PUT", with_digest(app.start_upload(), digest_of(HEALED)), body=HEALED).expect(201)
