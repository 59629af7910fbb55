"""crane, the small and exact one: it speaks HTTP to 127.x by itself, other plain registries need --insecure."""

from pathlib import Path

from tests.clients.client import Client, held_in_layout, printed_digest, without_tag
from tests.clients.registry import Held


class Crane(Client):
    name = "crane"
    programs = ("crane",)

    def version(self) -> str:
        return self.run("crane", "version").strip()

    def login(self, host: str, user: str, password: str) -> None:
        self.run("crane", "auth", "login", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("crane", "auth", "logout", host)

    def push(self, reference: str) -> str:
        return self._push("amd64", reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        folder = self.empty_folder()
        chosen = ["--platform", platform] if platform else []
        self.run("crane", "pull", "--insecure", "--format=oci", *chosen, reference, folder)
        return held_in_layout(folder)

    def push_index(self, reference: str) -> str:
        # This index is crane's own: its descriptors carry fields that skopeo 1.9 and Docker 29 stumble over.
        children = [f"{without_tag(reference)}:{arch}" for arch in ("amd64", "arm64")]
        for arch, child in zip(("amd64", "arm64"), children, strict=True):
            self._push(arch, child)
        manifests = [word for child in children for word in ("-m", child)]
        return printed_digest(self.run("crane", "index", "append", "--insecure", *manifests, "-t", reference))

    def push_elsewhere(self, source: str, target: str) -> str:
        self.run("crane", "copy", "--insecure", source, target)
        return printed_digest(self.run("crane", "digest", "--insecure", target))

    def delete(self, reference: str) -> None:
        self.run("crane", "delete", "--insecure", reference)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "DOCKER_CONFIG": str(self.scratch / Path("docker"))}

    def _push(self, tag: str, reference: str) -> str:
        return printed_digest(self.run("crane", "push", "--insecure", self.fixture.single[tag], reference))
