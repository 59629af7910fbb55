"""containerd 2 by its own ctr: what Kubernetes pulls with. Images keep their digests on the way in and out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients.client import Client, held_in_layout
from tests.clients.processes import daemon
from tests.clients.registry import Held

IMPORTED_AS = "lading.test/fixture"
CONFIGURATION = """\
version = 3
root = "{scratch}/root"
state = "{scratch}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{scratch}/c.sock"
[ttrpc]
address = "{scratch}/c.sock.ttrpc"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "{snapshotter}"
"""


class Containerd(Client):
    name = "containerd"
    programs = ("containerd", "ctr")

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._user: tuple[str, ...] = ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a containerd of its own, beside any other on the machine."""
        configuration = self.scratch / "containerd.toml"
        configuration.write_text(CONFIGURATION.format(scratch=self.scratch, snapshotter=self._snapshotter))
        command: list[str | Path] = [self.program("containerd"), "-c", configuration]
        with daemon(command, self.environment(), self.scratch / "containerd.log", lambda: self.succeeds(self.version)):
            yield

    def version(self) -> str:
        return self._ctr("version").split("Server:")[1].split()[1].partition("+")[0]

    def login(self, host: str, user: str, password: str) -> None:  # noqa: ARG002 - it is shown to whom the command names
        self._user = ("--user", f"{user}:{password}")

    def logout(self, host: str) -> None:  # noqa: ARG002 - likewise
        self._user = ()

    def push(self, reference: str) -> str:
        self._ctr("images", "tag", "--force", self._load("amd64"), reference)
        return self._push(reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        self._forget_all()
        chosen = ["--platform", platform] if platform else []
        self._ctr("images", "pull", "--plain-http", *self._user, "--snapshotter", self._snapshotter, *chosen, reference)
        digest = self._digest(reference)
        return Held(digest, held_in_layout(self._content, self._child(digest, platform)).contents)

    def push_index(self, reference: str) -> str:
        self._ctr("images", "tag", "--force", self._load("index"), reference)
        return self._push(reference)

    def push_elsewhere(self, source: str, target: str) -> str:
        # A pull writes into the labels of each blob where it came from; a push asks to mount it from there.
        self._ctr("images", "tag", source, target)
        return self._push(target)

    def pull_by_hosts(self, reference: str, hosts: Path, platform: str) -> Held:
        """Pull one platform by what the hosts.toml below `hosts` say, into an empty store."""
        self._forget_all()
        chosen = ("--snapshotter", self._snapshotter, "--platform", platform)
        self._ctr("images", "pull", "--hosts-dir", hosts, *chosen, reference)
        digest = self._digest(reference)
        return Held(digest, held_in_layout(self._content, digest).contents)

    def push_by_hosts(self, source: str, target: str, hosts: Path) -> str:
        """Push what was just pulled, by what the hosts.toml below `hosts` say."""
        self._ctr("images", "tag", source, target)
        self._ctr("images", "push", "--hosts-dir", hosts, target)
        return self._digest(target)

    @property
    def _snapshotter(self) -> str:
        return "overlayfs" if self.overlays else "native"

    @property
    def _content(self) -> Path:
        # The content store keeps blobs under the same names as an OCI layout does.
        return self.scratch / "root" / "io.containerd.content.v1.content"

    def _load(self, tag: str) -> str:
        options = ("--all-platforms", "--no-unpack", "--base-name", IMPORTED_AS)
        self._ctr("images", "import", *options, self.fixture.archive)
        return f"{IMPORTED_AS}:{tag}"

    def _push(self, reference: str) -> str:
        self._ctr("images", "push", "--plain-http", *self._user, reference)
        return self._digest(reference)

    def _forget_all(self) -> None:
        known = self._ctr("images", "ls", "-q").split()
        if known:
            self._ctr("images", "rm", "--sync", *known)

    def _digest(self, reference: str) -> str:
        (row,) = self._ctr("images", "ls", f"name=={reference}").splitlines()[1:]
        return row.split()[2]

    def _child(self, digest: str, platform: str | None) -> str:
        if platform is None:
            return digest
        index = json.loads((self._content / "blobs" / digest.replace(":", "/")).read_bytes())
        architecture = platform.split("/")[1]
        (child,) = (each["digest"] for each in index["manifests"] if each["platform"]["architecture"] == architecture)
        return str(child)

    def _ctr(self, *words: str | Path) -> str:
        return self.run("ctr", "-a", self.scratch / "c.sock", *words)
