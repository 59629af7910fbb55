"""The operations of the matrix: what a client is asked to do, and how it is judged."""

import json
from collections.abc import Callable
from enum import Enum

from tests.clients.client import Client, NotOfferedError
from tests.clients.recorder import Recorder, uploaded_bytes
from tests.clients.registry import Held, MismatchError, Registry

TAG = "1.0.0"


class Operation(Enum):
    """A column of the matrix, in the order in which a client goes through them."""

    PUSH = "push"
    PUSH_AGAIN = "push again"
    PULL_DIGEST = "pull digest"
    PULL_TAG = "pull tag"
    MOUNT = "mount"
    MULTI_ARCH = "multi-arch"
    DELETE = "delete"


class Operations:
    """One client going through the operations; each compares what the client says with what the registry holds."""

    def __init__(self, client: Client, registry: Registry, recorder: Recorder, namespace: str) -> None:
        self._client = client
        self._registry = registry
        self._recorder = recorder
        # helm names the last part of a repository after the chart, so all of them end alike.
        self._repository = f"{namespace}/{client.name}/fixture"
        self._elsewhere = f"{namespace}/{client.name}/elsewhere/fixture"
        self._indexes = f"{namespace}/{client.name}/index"
        self._deleted = f"{namespace}/{client.name}/deleted/fixture"
        self._stored: Held | None = None

    def steps(self) -> dict[Operation, Callable[[], None]]:
        """Return what is to be done for each column."""
        return {
            Operation.PUSH: self._push,
            Operation.PUSH_AGAIN: self._push_again,
            Operation.PULL_DIGEST: lambda: self._pull(f"@{self._pushed().digest}"),
            Operation.PULL_TAG: lambda: self._pull(f":{TAG}"),
            Operation.MOUNT: self._mount,
            Operation.MULTI_ARCH: self._multi_arch,
            Operation.DELETE: self._delete,
        }

    def _reference(self, rest: str, repository: str | None = None) -> str:
        return f"{self._recorder.address}/{repository or self._repository}{rest}"

    def _pushed(self) -> Held:
        """Return what the registry held after the push; it is read once, for what a digest names does not change."""
        if not self._stored:
            raise MismatchError("there is nothing to work with, since the push failed")
        return self._stored

    def _push(self) -> None:
        self._recorder.take()
        said = self._client.push(self._reference(f":{TAG}"))
        passed = self._recorder.take()
        stored = self._registry.held(self._repository, TAG)
        _require_equal("the pushed image", stored, Held(said, self._client.contents))
        layers = json.loads(self._registry.manifest(self._repository, TAG).body)["layers"]
        if (moved := uploaded_bytes(passed)) < sum(layer["size"] for layer in layers):
            raise MismatchError(f"the push uploaded only {moved} bytes of {layers}")
        self._stored = stored

    def _push_again(self) -> None:
        first = self._pushed().digest
        self._recorder.take()
        said = self._client.push(self._reference(f":{TAG}"))
        passed = self._recorder.take()
        if moved := uploaded_bytes(passed):
            uploads = [str(each) for each in passed if each.is_upload and each.request_body_bytes]
            raise MismatchError(f"the second push uploaded {moved} bytes: {uploads}")
        if said != first:
            raise MismatchError(f"the second push made {said}, the first {first}")

    def _pull(self, rest: str) -> None:
        self._recorder.take()
        pulled = self._client.pull(self._reference(rest))
        _require_equal("the pulled image", pulled, self._pushed())
        self._require_fetched(self._repository, pulled.digest)

    def _multi_arch(self) -> None:
        repository = self._indexes
        said = self._client.push_index(self._reference(f":{TAG}", repository))
        children = self._registry.children(repository, TAG)
        stored = {arch: self._registry.held(repository, child) for arch, child in children.items()}
        for arch, child in children.items():
            _require_equal(f"the pushed {arch} image", stored[arch], Held(child, self._client.fixture.contents[arch]))
        if set(children) != {"amd64", "arm64"}:
            raise MismatchError(f"the index has the platforms {sorted(children)}")
        _require_digest("the pushed index", said, self._registry.manifest(repository, TAG).headers)

        self._recorder.take()
        pulled = self._client.pull(self._reference(f":{TAG}", repository), "linux/arm64/v8")
        # Some clients keep the index and name that, some go on to the child and name it.
        if pulled.digest not in {said, children["arm64"]}:
            raise MismatchError(f"the pulled image is {pulled.digest}, not {children['arm64']}, nor the index {said}")
        _require_equal("the pulled arm64 image", Held(children["arm64"], pulled.contents), stored["arm64"])
        self._require_fetched(repository, children["arm64"])

    def _mount(self) -> None:
        source, target = self._reference(f":{TAG}"), self._reference(f":{TAG}", self._elsewhere)
        pushed = self._pushed()
        self._recorder.take()
        said = self._client.push_elsewhere(source, target)
        passed = self._recorder.take()
        stored = self._registry.held(self._elsewhere, TAG)
        _require_equal("the mounted image", stored, pushed)
        if said != stored.digest:
            raise MismatchError(f"the client names {said}, the registry {stored.digest}")

        asked = [each for each in passed if each.method == "POST" and "mount" in each.query]
        if not asked:
            raise NotOfferedError
        manifest = json.loads(self._registry.manifest(self._elsewhere, TAG).body)
        mounted = {each.query["mount"] for each in asked if each.status == 201}
        if missed := {layer["digest"] for layer in manifest["layers"]} - mounted:
            raise MismatchError(f"not mounted: {sorted(missed)}; {[str(each) for each in asked]}")
        # Docker sends the config again, and no client more than that.
        if (moved := uploaded_bytes(passed)) > manifest["config"]["size"]:
            raise MismatchError(f"{moved} bytes were uploaded beside the mounts")

    def _delete(self) -> None:
        if type(self._client).delete is Client.delete:
            raise NotOfferedError
        # In a repository of its own, for a delete that takes more than it should is seen there and nowhere else.
        repository = self._deleted
        said = self._client.push(self._reference(f":{TAG}", repository))
        self._registry.manifest(repository, said)
        self._client.delete(self._reference(f"@{said}", repository))
        for name in (said, TAG):
            path = f"/v2/{repository}/manifests/{name}"
            if (status := self._registry.answer("GET", path).status) != 404:
                raise MismatchError(f"after the delete GET {path} is {status}")

    def _require_fetched(self, repository: str, digest: str) -> None:
        # A pull that found the layers on its own disk would prove nothing.
        manifest = json.loads(self._registry.manifest(repository, digest).body)
        fetched: dict[str, int] = {}
        for each in self._recorder.take():
            if each.method == "GET" and "/blobs/" in each.path:
                name = each.path.rpartition("/")[2]
                fetched[name] = fetched.get(name, 0) + each.answer_body_bytes
        for layer in manifest["layers"]:
            if fetched.get(layer["digest"], 0) < layer["size"]:
                raise MismatchError(f"of {layer} only {fetched.get(layer['digest'], 0)} bytes were fetched")


def _require_equal(what: str, found: Held, expected: Held) -> None:
    if found != expected:
        raise MismatchError(f"{what} is {found}, not {expected}")


def _require_digest(what: str, said: str, headers: dict[str, str]) -> None:
    if said != headers.get("docker-content-digest"):
        raise MismatchError(f"{what} is {headers.get('docker-content-digest')}, but the client names {said}")
