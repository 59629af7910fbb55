"""Docker's classic engine (Debian's docker.io, 20.10), the strictest reader of upload answers.

The engine takes 127.0.0.0/8 for insecure by itself; another plain registry needs `--insecure-registry NAME:PORT`. Its
manifests are Docker's schema 2, whatever the image was made of.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.clients.client import SYSTEM_PATH, Client, printed_digest, without_tag
from tests.clients.fixture import ARCHIVE_NAME
from tests.clients.processes import daemon
from tests.clients.registry import Held, Summed


class Docker(Client):
    name = "docker"
    programs = ("dockerd", "docker", "containerd", "runc")
    # The engine learns at `/v2/` that a password is wanted, and without one it goes no further.
    reads_past_a_challenge = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run an engine of its own, without networks, beside any other on the machine."""
        command: list[str | Path] = [
            self.program("dockerd"),
            *("--data-root", self.scratch / "data", "--exec-root", self.scratch / "exec"),
            *("-p", self.scratch / "docker.pid", "-H", f"unix://{self.scratch}/docker.sock"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            f"--storage-driver={'overlay2' if self.overlays else 'vfs'}",
        ]
        with daemon(command, self.environment(), self.scratch / "dockerd.log", lambda: self.succeeds(self._engine)):
            yield

    def version(self) -> str:
        return self._engine()

    def _engine(self) -> str:
        return self.run("docker", "version", "--format", "{{.Server.Version}}").strip().partition("+")[0]

    def login(self, host: str, user: str, password: str) -> None:
        self.run("docker", "login", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("docker", "logout", host)

    def push(self, reference: str) -> str:
        return self._push("amd64", reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        self._forget_all()
        chosen = ["--platform", platform] if platform else []
        pulled = printed_digest(self.run("docker", "pull", *chosen, reference))
        return Held(pulled, self._saved_layers(reference))

    def push_index(self, reference: str) -> str:
        children = [f"{without_tag(reference)}:{arch}" for arch in ("amd64", "arm64")]
        for arch, child in zip(("amd64", "arm64"), children, strict=True):
            self._push(arch, child)
        self.run("docker", "manifest", "create", "--insecure", reference, *children)
        return printed_digest(self.run("docker", "manifest", "push", "--insecure", "--purge", reference))

    def push_elsewhere(self, source: str, target: str) -> str:
        # The engine remembers the repositories in which it has seen a layer, and asks to mount it from there.
        self.run("docker", "tag", source, target)
        return printed_digest(self.run("docker", "push", target))

    def build(self, reference: str, layers: list[bytes]) -> str:
        """Build an image with one file in each layer, and push it."""
        context = self.empty_folder()
        lines = ["FROM scratch"]
        for number, content in enumerate(layers):
            (context / f"file-{number}").write_bytes(content)
            lines.append(f"COPY file-{number} /file-{number}")
        (context / "Dockerfile").write_text("\n".join(lines))
        self.run("docker", "build", "-q", "-t", reference, context)
        return printed_digest(self.run("docker", "push", reference))

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            # Not the built tools: this engine must start Debian's containerd, not the newer one.
            "PATH": SYSTEM_PATH.replace("/usr/local/sbin:/usr/local/bin:", ""),
            "DOCKER_HOST": f"unix://{self.scratch}/docker.sock",
            "DOCKER_CONFIG": str(self.scratch / "config"),
            # The engine's own builder: the newer one is a plugin that Debian does not bring.
            "DOCKER_BUILDKIT": "0",
        }

    def _push(self, arch: str, reference: str) -> str:
        self.run("docker", "load", "-q", "-i", self.fixture.archive)
        self.run("docker", "tag", f"{ARCHIVE_NAME}:{arch}", reference)
        return printed_digest(self.run("docker", "push", reference))

    def _forget_all(self) -> None:
        known = self.run("docker", "images", "-q").split()
        if known:
            self.run("docker", "rmi", "-f", *sorted(set(known)))

    def _saved_layers(self, reference: str) -> tuple[str, ...]:
        saved = self.empty_folder() / "saved.tar"
        self.run("docker", "save", "-o", saved, reference)
        with tarfile.open(saved) as tar:
            (image,) = json.load(_member(tar, "manifest.json"))
            return tuple(Summed.of_file(_member(tar, name)).content_digest for name in image["Layers"])


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    member = tar.extractfile(name)
    assert member is not None, f"{name} is no file"
    return member
