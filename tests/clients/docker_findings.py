"""Three things that registries got wrong for Docker's engine, each proven with the engine itself.

An engine that reads a wrong offset from an upload answer writes a wrong size into the manifest, and says nothing.
"""

import json
import os
import re
from collections.abc import Callable

from tests.clients.docker import Docker
from tests.clients.recorder import Exchange, Recorder
from tests.clients.registry import DOCKER_MANIFEST, OCI_MANIFEST, Held, MismatchError, Registry

OFFSET = re.compile(r"0-[0-9]+")
TAG = "1.0.0"
# One layer smaller and one larger than the pieces in which the engine sends.
LAYER_BYTES = (300, 5_000_000)


def steps(docker: Docker, registry: Registry, recorder: Recorder, namespace: str) -> dict[str, Callable[[], None]]:
    """Return what is to be proven, each with its proof; the first one pushes what the others look at."""
    findings = _Findings(docker, registry, recorder, namespace)
    return {
        "upload answers give Range without a unit, and the sizes in the manifest are true": findings.ranges,
        "after its PUT each blob is asked for by HEAD, and is there": findings.heads,
        "a manifest answers its own media type, and schema 2 and OCI are both pulled": findings.media_types,
    }


class _Findings:
    def __init__(self, docker: Docker, registry: Registry, recorder: Recorder, namespace: str) -> None:
        self._docker = docker
        self._registry = registry
        self._recorder = recorder
        self._built = f"{namespace}/docker/built"
        self._oci = f"{namespace}/docker/oci"
        self._push: list[Exchange] = []
        self._digest = ""

    def ranges(self) -> None:
        self._recorder.take()
        # New bytes each time: a layer that the registry has already is not uploaded.
        layers = [os.urandom(layer_bytes) for layer_bytes in LAYER_BYTES]
        self._digest = self._docker.build(f"{self._recorder.address}/{self._built}:{TAG}", layers)
        self._push = self._recorder.take()

        answers = [each for each in self._push if each.is_upload and each.method in {"POST", "PATCH"}]
        if len([each for each in answers if each.method == "PATCH"]) < len(layers):
            raise MismatchError(f"the engine uploaded nothing: {[str(each) for each in self._push]}")
        for each in answers:
            if each.status != 202 or not OFFSET.fullmatch(each.answer.get("range", "")):
                raise MismatchError(f"{each} answers Range {each.answer.get('range')!r}")
        # Reading the blobs compares each with the size in its descriptor.
        stored = self._registry.held(self._built, TAG)
        if stored.digest != self._digest:
            raise MismatchError(f"the engine pushed {self._digest}, the registry has {stored.digest}")

    def heads(self) -> None:
        manifest = json.loads(self._registry.manifest(self._built, TAG).body)
        for descriptor in [manifest["config"], *manifest["layers"]]:
            digest = descriptor["digest"]
            put = [
                at for at, each in enumerate(self._push) if each.method == "PUT" and each.query.get("digest") == digest
            ]
            if not put:
                raise MismatchError(f"{digest} was not uploaded")
            asked = [
                each
                for each in self._push[put[0] :]
                if each.method == "HEAD" and each.path == f"/v2/{self._built}/blobs/{digest}"
            ]
            if not asked or asked[0].status != 200:
                raise MismatchError(f"after the PUT of {digest}: {[str(each) for each in asked]}")
            if int(asked[0].answer["content-length"]) != descriptor["size"]:
                raise MismatchError(
                    f"{asked[0]} says {asked[0].answer['content-length']} bytes, not {descriptor['size']}"
                )

    def media_types(self) -> None:
        fixture = self._docker.fixture
        for layer in [*fixture.layers("arm64"), fixture.config("arm64")]:
            self._registry.put_blob(self._oci, layer.read_bytes())
        oci_digest = fixture.digests["arm64"]
        self._registry.put_manifest(self._oci, TAG, fixture.blob(oci_digest).read_bytes(), OCI_MANIFEST)

        for repository, digest, media_type in (
            (self._built, self._digest, DOCKER_MANIFEST),
            (self._oci, oci_digest, OCI_MANIFEST),
        ):
            answered = self._registry.manifest(repository, TAG).headers["content-type"]
            if answered != media_type:
                raise MismatchError(f"the manifest of {repository} is a {media_type}, but is answered as {answered}")
            platform = "linux/arm64/v8" if repository == self._oci else None
            pulled = self._docker.pull(f"{self._recorder.address}/{repository}:{TAG}", platform)
            stored = self._registry.held(repository, TAG)
            if not pulled == stored == Held(digest, stored.contents):
                raise MismatchError(f"of {repository} {pulled} was pulled, {stored} is stored, {digest} was pushed")
