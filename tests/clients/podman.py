"""podman of Debian 12, with a store of its own.

Which layer lies in which repository it remembers for the whole machine, in /var/lib/containers/cache, by host and port.
"""

from pathlib import Path

from tests.clients.client import Client, held_in_layout
from tests.clients.registry import Held


class Podman(Client):
    name = "podman"
    programs = ("podman", "crun")

    def version(self) -> str:
        return self.run("podman", "--version").split()[-1]

    def login(self, host: str, user: str, password: str) -> None:
        self._podman("login", "--tls-verify=false", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self._podman("logout", host)

    def push(self, reference: str) -> str:
        self._podman("tag", self._load("amd64"), reference)
        return self._push("push", reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        self._podman("rmi", "--all", "--force")
        chosen = ["--platform", platform] if platform else []
        pulled = self._podman("pull", "-q", "--tls-verify=false", *chosen, reference).strip()
        digest = self._podman("image", "inspect", "--format", "{{.Digest}}", pulled).strip()
        folder = self.empty_folder()
        self._podman("save", "-q", "--format", "oci-dir", "-o", folder, pulled)
        return Held(digest, held_in_layout(folder).contents)

    def push_index(self, reference: str) -> str:
        manifest_list = "lading.test/list:1"
        self._podman("manifest", "create", manifest_list)
        for arch in ("amd64", "arm64"):
            self._podman("manifest", "add", manifest_list, f"containers-storage:{self._load(arch)}")
        return self._push("manifest", "push", "--all", manifest_list, f"docker://{reference}")

    def push_elsewhere(self, source: str, target: str) -> str:
        self._podman("tag", source, target)
        return self._push("push", target)

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "XDG_RUNTIME_DIR": str(self.scratch),
        }

    def _load(self, arch: str) -> str:
        return self._podman("pull", "-q", f"oci:{self.fixture.layout}:{arch}").strip()

    def _push(self, *words: str) -> str:
        digest_file = self.scratch / "digest"
        # The options stand behind the words of the command, and before the names.
        verb = [word for word in words if word in {"manifest", "push"}]
        self._podman(*verb, "-q", "--tls-verify=false", "--digestfile", digest_file, *words[len(verb) :])
        return digest_file.read_text().strip()

    def _podman(self, *words: str | Path) -> str:
        store = ("--root", self.scratch / "store", "--runroot", self.scratch / "run", "--storage-driver", "vfs")
        return self.run("podman", *store, "--cgroup-manager", "cgroupfs", "--events-backend", "file", *words)
