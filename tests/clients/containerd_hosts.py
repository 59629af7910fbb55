"""containerd 2 as Kubernetes sets it up: by hosts.toml, for a registry of its own name and as a mirror of another's."""

from collections.abc import Callable
from pathlib import Path

from tests.clients.containerd import Containerd
from tests.clients.recorder import Exchange, Recorder
from tests.clients.registry import OCI_MANIFEST, Held, MismatchError, Registry

TAG = "1.0.0"
SERVER = """\
server = "http://{address}"
[host."http://{address}"]
  capabilities = ["pull", "resolve", "push"]
"""
MIRROR = """\
[host."http://{address}"]
  capabilities = ["pull", "resolve"]
"""


def steps(
    containerd: Containerd, registry: Registry, recorder: Recorder, namespace: str
) -> dict[str, Callable[[], None]]:
    """Return what is to be proven, each with its proof."""
    hosts = _Hosts(containerd, registry, recorder, namespace)
    return {
        "by hosts.toml an image is pulled, and pushed": hosts.server,
        "as a mirror of docker.io an image is pulled, with ns on every request": hosts.mirror,
    }


class _Hosts:
    def __init__(self, containerd: Containerd, registry: Registry, recorder: Recorder, namespace: str) -> None:
        self._containerd = containerd
        self._registry = registry
        self._recorder = recorder
        self._repository = f"{namespace}/containerd/hosts"
        self._folder = containerd.scratch / "certs.d"

    def server(self) -> None:
        expected = self._stored()
        _write(self._folder / self._recorder.address.replace(":", "_") / "hosts.toml", SERVER, self._recorder.address)
        _write(self._folder / self._recorder.address / "hosts.toml", SERVER, self._recorder.address)
        source = f"{self._recorder.address}/{self._repository}:{TAG}"
        self._pull(source, expected)
        pushed = self._containerd.push_by_hosts(
            source, f"{self._recorder.address}/{self._repository}/pushed:{TAG}", self._folder
        )
        if self._registry.held(f"{self._repository}/pushed", TAG) != Held(pushed, expected.contents):
            raise MismatchError(f"containerd pushed {pushed}, not {expected}")

    def mirror(self) -> None:
        expected = self._stored()
        _write(self._folder / "docker.io" / "hosts.toml", MIRROR, self._recorder.address)
        passed = self._pull(f"docker.io/{self._repository}:{TAG}", expected)
        if without := [str(each) for each in passed if each.query.get("ns") != "docker.io"]:
            raise MismatchError(f"without ns=docker.io: {without}")

    def _stored(self) -> Held:
        fixture = self._containerd.fixture
        for path in [*fixture.layers("arm64"), fixture.config("arm64")]:
            self._registry.put_blob(self._repository, path.read_bytes())
        body = fixture.blob(fixture.digests["arm64"]).read_bytes()
        self._registry.put_manifest(self._repository, TAG, body, OCI_MANIFEST)
        return self._registry.held(self._repository, TAG)

    def _pull(self, reference: str, expected: Held) -> list[Exchange]:
        self._recorder.take()
        pulled = self._containerd.pull_by_hosts(reference, self._folder, "linux/arm64/v8")
        passed = self._recorder.take()
        if pulled != expected:
            raise MismatchError(f"containerd pulled {pulled}, not {expected}")
        if not any(each.method == "GET" and "/blobs/" in each.path and each.status in {200, 206} for each in passed):
            raise MismatchError(f"no layer came from here: {[str(each) for each in passed]}")
        return passed


def _write(path: Path, text: str, address: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(address=address))
