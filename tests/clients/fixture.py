"""The image that all clients push: real files of this machine, several layers, one of them above 100 MB, two platforms.

It is written as one OCI image layout, and the same layout as one archive that `docker load` and `ctr import` read.
Every layer is new each time: what a registry holds already need not be sent, and some clients ask by digest alone. But
only its first entry is; the rest of a layer is packed once, for packing takes longer than most clients do.
"""

import gzip
import io
import json
import os
import secrets
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from tests.clients.registry import OCI_INDEX, OCI_MANIFEST, Summed, digest_of

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
LARGE_FILE_BYTES = 104 * 1024 * 1024

# The name under which the archive's images are known to who loads it.
ARCHIVE_NAME = "lading.test/fixture"


@dataclass(frozen=True)
class Fixture:
    """Where the image lies, and what it holds."""

    layout: Path
    """An OCI image layout with the tags `amd64`, `arm64` and `index`."""

    single: dict[str, Path]
    """For each tag a layout that holds nothing else, for clients that know no tags in a layout."""

    digests: dict[str, str]
    """The digest of the manifest or index of each tag."""

    contents: dict[str, tuple[str, ...]]
    """The digests of the uncompressed layers of each architecture, lowest first."""

    docker: list[dict[str, Any]]
    """The images once more, as `docker load` wants them described."""

    @cached_property
    def archive(self) -> Path:
        """The same as a tar file, readable as OCI layout and by `docker load`; few clients want it."""
        archive = self.layout.with_name("archive.tar")
        with tarfile.open(archive, "w") as tar:
            for path in sorted(self.layout.rglob("*")):
                tar.add(path, str(path.relative_to(self.layout)), recursive=False)
            _add_bytes(tar, "manifest.json", json.dumps(self.docker).encode())
        return archive

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.layout / _blob_path(digest)

    def config(self, tag: str) -> Path:
        """Return the file of an image's config."""
        manifest = json.loads(self.blob(self.digests[tag]).read_bytes())
        return self.blob(manifest["config"]["digest"])

    def layers(self, tag: str) -> list[Path]:
        """Return the compressed files of an image's layers, lowest first."""
        manifest = json.loads(self.blob(self.digests[tag]).read_bytes())
        return [self.blob(descriptor["digest"]) for descriptor in manifest["layers"]]


def make(folder: Path, *, lean: bool = False) -> Fixture:
    """Write the fixture into `folder`; a lean one has the same layers, with next to nothing in them."""
    writer = _Writer(folder / "layout")
    standard_library = writer.layer(_nothing if lean else _standard_library)
    weights = writer.layer(_nothing if lean else _large_file)
    small = {arch: writer.layer(fill) for arch, fill in _ODDITIES.items()}
    # Only one platform carries the large layer: pulling the other one by platform must not move it.
    writer.image("amd64", {"architecture": "amd64", "os": "linux"}, [standard_library, weights, small["amd64"]])
    writer.image("arm64", {"architecture": "arm64", "os": "linux", "variant": "v8"}, [standard_library, small["arm64"]])
    writer.index("index", ["amd64", "arm64"])
    return writer.finish()


@dataclass(frozen=True, slots=True)
class _Layer:
    descriptor: dict[str, Any]
    content_digest: str


class _Writer:
    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._blobs = layout / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._descriptors: dict[str, dict[str, Any]] = {}
        self._contents: dict[str, tuple[str, ...]] = {}
        self._docker: list[dict[str, Any]] = []

    def layer(self, fill: Callable[[tarfile.TarFile], None]) -> _Layer:
        unnamed = self._layout / "layer"
        # A gzip stream may have several members, and parallel compressors write such.
        with unnamed.open("wb") as packed:
            packed.write(gzip.compress(_unique_entry(), mtime=0))
            packed.write(_packed(fill))
        with unnamed.open("rb") as stored:
            summed = Summed.of_file(stored)
        unnamed.rename(self._blobs / summed.digest.removeprefix("sha256:"))
        return _Layer(
            {"mediaType": OCI_LAYER, "digest": summed.digest, "size": summed.size_bytes}, summed.content_digest
        )

    def image(self, tag: str, platform: dict[str, str], layers: list[_Layer]) -> None:
        contents = tuple(layer.content_digest for layer in layers)
        config = {
            **platform,
            "config": {"Cmd": ["/bin/true"], "Labels": {"org.opencontainers.image.title": "fixture"}},
            "rootfs": {"type": "layers", "diff_ids": list(contents)},
            "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
        }
        config_descriptor = self._blob(OCI_CONFIG, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config_descriptor,
            "layers": [layer.descriptor for layer in layers],
        }
        self._descriptors[tag] = {**self._blob(OCI_MANIFEST, manifest), "platform": platform}
        self._contents[tag] = contents
        self._docker.append(
            {
                "Config": _blob_path(config_descriptor["digest"]),
                "RepoTags": [f"{ARCHIVE_NAME}:{tag}"],
                "Layers": [_blob_path(layer.descriptor["digest"]) for layer in layers],
            }
        )

    def index(self, tag: str, children: list[str]) -> None:
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [self._descriptors[child] for child in children],
        }
        self._descriptors[tag] = self._blob(OCI_INDEX, index)

    def finish(self) -> Fixture:
        single = {tag: self._layout.with_name(f"layout-{tag}") for tag in self._descriptors}
        _write_index(self._layout, self._descriptors)
        for tag, layout in single.items():
            layout.mkdir()
            (layout / "blobs").symlink_to(self._layout / "blobs")
            _write_index(layout, {tag: self._descriptors[tag]})
        digests = {tag: descriptor["digest"] for tag, descriptor in self._descriptors.items()}
        return Fixture(self._layout, single, digests, self._contents, self._docker)

    def _blob(self, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(value).encode()
        digest = digest_of(content)
        (self._blobs / digest.removeprefix("sha256:")).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _write_index(layout: Path, descriptors: dict[str, dict[str, Any]]) -> None:
    named = [
        {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
        for tag, descriptor in descriptors.items()
    ]
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": named}))


def _unique_entry() -> bytes:
    """Return how a tar file begins that nobody has seen before."""
    entry = tarfile.TarInfo("etc/unique")
    entry.size = tarfile.BLOCKSIZE
    return entry.tobuf() + secrets.token_bytes(tarfile.BLOCKSIZE)


@cache
def _packed(fill: Callable[[tarfile.TarFile], None]) -> bytes:
    packed = io.BytesIO()
    # What cannot be made smaller is stored as it is by every level; the lowest does not try.
    level = 0 if fill is _large_file else 1
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=level, mtime=0) as compressor,
        tarfile.open(fileobj=compressor, mode="w|") as tar,
    ):
        fill(tar)
    return packed.getvalue()


def _nothing(tar: tarfile.TarFile) -> None:
    _add_bytes(tar, "etc/nothing", b"")


def _standard_library(tar: tarfile.TarFile) -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".txt"} and "site-packages" not in path.parts:
            tar.add(path, f"usr/lib/python/{path.relative_to(folder)}", recursive=False, filter=_nobody)
    tar.add(Path(sys.executable).resolve(), "usr/bin/python", filter=_nobody)


def _large_file(tar: tarfile.TarFile) -> None:
    # Bytes that no compressor makes smaller, like those of a model's weights: above 100 MB on the wire too.
    entry = tarfile.TarInfo("srv/weights")
    entry.size = LARGE_FILE_BYTES
    tar.addfile(entry, io.BytesIO(os.urandom(LARGE_FILE_BYTES)))


def _oddities(tar: tarfile.TarFile, architecture: str) -> None:
    """Fill a layer with what a careless reader of tar files loses: links, modes, long names and a whiteout."""
    _add_bytes(tar, "etc/architecture", architecture.encode())
    _add_bytes(tar, f"srv/{'long-' * 40}name/ünïcode", b"a name of more than 100 bytes")
    _add_bytes(tar, "usr/lib/python/.wh.turtle.py", b"")
    program = tarfile.TarInfo("bin/true")
    program.mode = 0o4755
    tar.addfile(program, io.BytesIO())
    for kind, name, target in (
        (tarfile.SYMTYPE, "bin/sh", "true"),
        (tarfile.LNKTYPE, "bin/false", "bin/true"),
    ):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, target
        tar.addfile(link)


_ODDITIES = {arch: partial(_oddities, architecture=arch) for arch in ("amd64", "arm64")}


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
