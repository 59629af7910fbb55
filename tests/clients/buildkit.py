"""buildkit: what `docker build` is today, with attestations and with its cache in the registry. Needs root and runc."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.client import Program
from tests.clients.processes import daemon
from tests.clients.recorder import Recorder
from tests.clients.registry import MismatchError, Registry

TAG = "1.0.0"
CONFIGURATION = """\
root = "{scratch}/root"
[grpc]
address = ["unix://{scratch}/buildkit.sock"]
[worker.oci]
enabled = true
snapshotter = "native"
[worker.containerd]
enabled = false
[registry."{address}"]
http = true
"""
DOCKERFILE = "FROM {base}\nCOPY large /large\nCOPY small /small\n"


class Buildkit(Program):
    name = "buildkit"
    programs = ("buildkitd", "buildctl", "runc")
    dear = True

    def version(self) -> str:
        return self.run("buildctl", "--version").split()[2]

    @contextmanager
    def serving(self, address: str) -> Iterator[None]:
        """Run a daemon of its own that speaks plain HTTP with `address`."""
        configuration = self.scratch / "buildkitd.toml"
        configuration.write_text(CONFIGURATION.format(scratch=self.scratch, address=address))
        command: list[str | Path] = [self.program("buildkitd"), "--config", configuration]
        answers = lambda: self.succeeds(lambda: self.buildctl("debug", "workers"))  # noqa: E731
        with daemon(command, self.environment(), self.scratch / "buildkitd.log", answers):
            yield

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "DOCKER_CONFIG": str(self.scratch / "docker")}

    def buildctl(self, *words: str | Path) -> str:
        """Run a command of the daemon's client; builds tell their progress on standard error."""
        return self.run("buildctl", "--addr", f"unix://{self.scratch}/buildkit.sock", *words, with_errors=True)

    def build(self, folder: Path, *options: str) -> tuple[str, str]:
        """Build for two platforms with attestations; return the digest of what was pushed, and what was told."""
        told = self.scratch / "metadata.json"
        where = ("--frontend", "dockerfile.v0", "--local", f"context={folder}", "--local", f"dockerfile={folder}")
        asked = ("--opt", "platform=linux/amd64,linux/arm64", "--opt", "attest:provenance=mode=max")
        printed = self.buildctl("build", *where, *asked, "--progress", "plain", "--metadata-file", told, *options)
        return json.loads(told.read_text())["containerimage.digest"], printed


def steps(buildkit: Buildkit, registry: Registry, recorder: Recorder, namespace: str) -> dict[str, Callable[[], None]]:
    """Return what is to be proven, in the order in which it is done."""
    built = _Built(buildkit, registry, recorder, f"{namespace}/buildkit")
    return {
        "two platforms are built and pushed, each with its attestation": built.push,
        "what was pushed is built upon": built.build_upon,
        "the cache in the registry is found again, and spares the build": built.cache,
    }


class _Built:
    def __init__(self, buildkit: Buildkit, registry: Registry, recorder: Recorder, repository: str) -> None:
        self._buildkit = buildkit
        self._registry = registry
        self._recorder = recorder
        self._repository = repository
        self._folder = buildkit.empty_folder()
        (self._folder / "large").write_bytes(os.urandom(3_000_000))
        (self._folder / "small").write_bytes(os.urandom(300))

    def push(self) -> None:
        with self._buildkit.serving(self._recorder.address):
            digest, _ = self._build("base", "scratch")
        self._check("base", digest)

    def build_upon(self) -> None:
        # A daemon without what it built before: the base has to come from the registry.
        self._forget()
        self._recorder.take()
        with self._buildkit.serving(self._recorder.address):
            digest, _ = self._build("upon", f"{self._recorder.address}/{self._repository}/base:{TAG}")
        self._check("upon", digest)
        asked = f"/v2/{self._repository}/base/manifests/"
        if not any(each.path.startswith(asked) and each.status == 200 for each in self._recorder.take()):
            raise MismatchError("the base was not asked for")

    def cache(self) -> None:
        reference = f"type=registry,ref={self._recorder.address}/{self._repository}/cache:{TAG}"
        exported = ("--export-cache", f"{reference},mode=max,image-manifest=true,oci-mediatypes=true")
        self._forget()
        with self._buildkit.serving(self._recorder.address):
            first, _ = self._build("cached", "scratch", *exported)
        self._registry.manifest(f"{self._repository}/cache", TAG)
        self._forget()
        with self._buildkit.serving(self._recorder.address):
            again, told = self._build("cached", "scratch", "--import-cache", reference)
        if told.count(" CACHED") < 2:
            raise MismatchError(f"nothing was taken from the cache: {told[-600:]}")
        self._check("cached", again)
        images = [
            {name: digest for name, digest in self._platforms("cached", each).items() if "unknown" not in name}
            for each in (first, again)
        ]
        if images[0] != images[1]:
            raise MismatchError(f"the build from the cache has other images: {images}")

    def _build(self, name: str, base: str, *options: str) -> tuple[str, str]:
        (self._folder / "Dockerfile").write_text(DOCKERFILE.format(base=base))
        pushed = (
            f"type=image,name={self._recorder.address}/{self._repository}/{name}:{TAG},push=true,oci-mediatypes=true"
        )
        return self._buildkit.build(self._folder, "--output", pushed, *options)

    def _forget(self) -> None:
        shutil.rmtree(self._buildkit.scratch / "root", ignore_errors=True)

    def _check(self, name: str, said: str) -> None:
        repository = f"{self._repository}/{name}"
        if (stored := self._registry.manifest(repository, TAG).headers["docker-content-digest"]) != said:
            raise MismatchError(f"buildkit names {said}, the registry {stored}")
        platforms = self._platforms(name, said)
        for digest in platforms.values():
            self._registry.held(repository, digest)
        if len(platforms) != 4:
            raise MismatchError(f"two images and two attestations were meant, but there are {platforms}")

    def _platforms(self, name: str, digest: str) -> dict[str, str]:
        """Return the digest of each image, and that of the attestation that is about it."""
        index = json.loads(self._registry.manifest(f"{self._repository}/{name}", digest).body)
        found = {}
        for child in index["manifests"]:
            about = child.get("annotations", {}).get("vnd.docker.reference.digest", "")
            found[f"{child['platform']['architecture']} {about}"] = child["digest"]
        return found
