"""cosign 3: signatures and attestations, as referrers today and as tags before; with a key of its own, and no log."""

import json
from collections.abc import Callable
from typing import Any

from tests.clients.client import Program
from tests.clients.recorder import Recorder
from tests.clients.registry import OCI_MANIFEST, MismatchError, Registry, digest_of

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
HTTP = "--allow-http-registry"
UNLOGGED = "--insecure-ignore-tlog"


class Cosign(Program):
    name = "cosign"
    programs = ("cosign",)
    dear = True

    def version(self) -> str:
        return next(line for line in self.run("cosign", "version").splitlines() if "GitVersion" in line).split()[-1]

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "COSIGN_PASSWORD": "as good as any",
            "DOCKER_CONFIG": str(self.scratch / "docker"),
        }

    def make_key(self) -> None:
        """Make a key, and an empty choice of services: it would ask those of the internet."""
        self.run("cosign", "generate-key-pair")
        self.run("cosign", "signing-config", "create", "--out", "signing.json")
        self.run("cosign", "trusted-root", "create", "--out", "root.json")


def steps(cosign: Cosign, registry: Registry, recorder: Recorder, namespace: str) -> dict[str, Callable[[], None]]:
    """Return what is to be proven, in the order in which it is done."""
    image = _Signed(cosign, registry, f"{namespace}/cosign/image", recorder)
    return {
        "a signature is pushed as a referrer, and verified": image.sign,
        "a signature is pushed as a tag of old, and verified": image.sign_by_tag,
        "an attestation is pushed, and verified": image.attest,
        "the tree has them": image.tree,
        "a copy takes the signatures along, and is verified": image.copy,
        "clean takes the signatures away, and no more": image.clean,
    }


class _Signed:
    def __init__(self, cosign: Cosign, registry: Registry, repository: str, recorder: Recorder) -> None:
        self._cosign = cosign
        self._registry = registry
        self._repository = repository
        self._address = recorder.address
        self._digest = ""

    @property
    def _image(self) -> str:
        return f"{self._address}/{self._repository}@{self._digest}"

    @property
    def _old_tag(self) -> str:
        return self._digest.replace(":", "-") + ".sig"

    def sign(self) -> None:
        self._cosign.make_key()
        self._digest = self._push_image()
        self._cosign.run("cosign", "sign", *_SIGNING, self._image)
        self._cosign.run("cosign", "verify", *_VERIFYING, "--trusted-root", "root.json", self._image)
        if (found := self._referrers()) != [BUNDLE]:
            raise MismatchError(f"after one signature the referrers are {found}")

    def sign_by_tag(self) -> None:
        unbundled = ("--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=false")
        self._cosign.run("cosign", "sign", "--key", "cosign.key", "-y", HTTP, *unbundled, self._image)
        self._cosign.run("cosign", "verify", *_VERIFYING, "--new-bundle-format=false", self._image)
        self._registry.manifest(self._repository, self._old_tag)

    def attest(self) -> None:
        (self._cosign.scratch / "predicate.json").write_text('{"checked": true}')
        said = ("--type", "custom", "--predicate", "predicate.json")
        self._cosign.run("cosign", "attest", *_SIGNING, *said, self._image)
        verify = ("--type", "custom", "--trusted-root", "root.json")
        self._cosign.run("cosign", "verify-attestation", *_VERIFYING, *verify, self._image)
        if (found := self._referrers()) != [BUNDLE, BUNDLE]:
            raise MismatchError(f"after a signature and an attestation the referrers are {found}")

    def tree(self) -> None:
        printed = self._cosign.run("cosign", "tree", HTTP, self._image)
        if self._old_tag not in printed:
            raise MismatchError(f"the tree has no {self._old_tag}: {printed}")

    def copy(self) -> None:
        target = f"{self._address}/{self._repository}/copied"
        self._cosign.run("cosign", "copy", "-f", HTTP, self._image, f"{target}:1.0.0")
        copied = f"{target}@{self._digest}"
        self._cosign.run("cosign", "verify", *_VERIFYING, "--new-bundle-format=false", copied)
        self._registry.held(f"{self._repository}/copied", "1.0.0")

    def clean(self) -> None:
        self._cosign.run("cosign", "clean", "--type", "all", "-f", HTTP, self._image)
        path = f"/v2/{self._repository}/manifests/{self._old_tag}"
        if (status := self._registry.answer("GET", path).status) != 404:
            raise MismatchError(f"after it GET {path} is {status}")
        self._registry.held(self._repository, self._digest)

    def _push_image(self) -> str:
        config, layer = b'{"architecture": "amd64", "os": "linux"}', self._repository.encode()
        for content in (config, layer):
            self._registry.put_blob(self._repository, content)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _described("application/vnd.oci.image.config.v1+json", config),
            "layers": [_described("application/vnd.oci.image.layer.v1.tar", layer)],
        }
        body = json.dumps(document).encode()
        self._registry.put_manifest(self._repository, "1.0.0", body, OCI_MANIFEST)
        return digest_of(body)

    def _referrers(self) -> list[str]:
        answer = self._registry.answer("GET", f"/v2/{self._repository}/referrers/{self._digest}")
        return [entry["artifactType"] for entry in json.loads(answer.body)["manifests"]]


_SIGNING = ("--key", "cosign.key", "-y", HTTP, "--signing-config", "signing.json", "--trusted-root", "root.json")
_VERIFYING = ("--key", "cosign.pub", HTTP, UNLOGGED)


def _described(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}
