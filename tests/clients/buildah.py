"""buildah of Debian 12, with a store of its own; it shares podman's memory of which layer lies where."""

from pathlib import Path

from tests.clients.client import Client, held_in_layout
from tests.clients.registry import Held


class Buildah(Client):
    name = "buildah"
    programs = ("buildah", "crun")

    def version(self) -> str:
        return self.run("buildah", "--version").split()[2]

    def login(self, host: str, user: str, password: str) -> None:
        self._buildah("login", "--tls-verify=false", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self._buildah("logout", host)

    def push(self, reference: str) -> str:
        self._buildah("tag", self._load("amd64"), reference)
        digest_file = self.scratch / "digest"
        self._buildah("push", "-q", "--tls-verify=false", "--digestfile", digest_file, reference)
        return digest_file.read_text().strip()

    def pull(self, reference: str, platform: str | None = None) -> Held:
        self._buildah("rmi", "--all", "--force")
        chosen = ["--platform", platform] if platform else []
        pulled = self._buildah("pull", "-q", "--tls-verify=false", *chosen, reference).strip()
        folder = self.empty_folder()
        self._buildah("push", "-q", pulled, f"oci:{folder}:pulled")
        digest = self._buildah("inspect", "--type", "image", "--format", "{{.FromImageDigest}}", pulled).strip()
        return Held(digest, held_in_layout(folder).contents)

    def push_index(self, reference: str) -> str:
        manifest_list = "lading.test/list:1"
        self._buildah("manifest", "create", manifest_list)
        for arch in ("amd64", "arm64"):
            self._buildah("manifest", "add", manifest_list, self._load(arch))
        digest_file = self.scratch / "digest"
        options = ("--all", "--tls-verify=false", "--digestfile", digest_file)
        self._buildah("manifest", "push", "-q", *options, manifest_list, f"docker://{reference}")
        return digest_file.read_text().strip()

    def push_elsewhere(self, source: str, target: str) -> str:
        self._buildah("tag", source, target)
        digest_file = self.scratch / "digest"
        self._buildah("push", "-q", "--tls-verify=false", "--digestfile", digest_file, target)
        return digest_file.read_text().strip()

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "XDG_RUNTIME_DIR": str(self.scratch),
            "BUILDAH_ISOLATION": "chroot",
        }

    def _load(self, arch: str) -> str:
        return self._buildah("pull", "-q", f"oci:{self.fixture.layout}:{arch}").strip()

    def _buildah(self, *words: str | Path) -> str:
        store = ("--root", self.scratch / "store", "--runroot", self.scratch / "run", "--storage-driver", "vfs")
        return self.run("buildah", *store, *words)
