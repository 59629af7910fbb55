"""The docker SDK for Python: the same engine, driven over its socket by what scripts and test suites use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import docker.errors

from tests.clients.client import COMMAND_WITHIN_SECONDS, CommandFailedError, NotOfferedError
from tests.clients.docker import Docker
from tests.clients.fixture import ARCHIVE_NAME
from tests.clients.registry import Held, MismatchError


class DockerSdk(Docker):
    name = "docker-sdk"

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._sdk: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        with super().running():
            self._connect()
            try:
                yield
            finally:
                self._sdk.close()

    def version(self) -> str:
        version: str = docker.__version__
        return version

    def login(self, host: str, user: str, password: str) -> None:
        with _told("login"):
            self._sdk.login(username=user, password=password, registry=host, reauth=True)

    def logout(self, host: str) -> None:  # noqa: ARG002 - a login is in the object alone
        self._sdk.close()
        self._connect()

    def pull(self, reference: str, platform: str | None = None) -> Held:
        self._forget_all()
        with _told(f"images.pull({reference!r})"):
            image = self._sdk.images.pull(reference, platform=platform)
        (named,) = image.attrs["RepoDigests"]
        return Held(named.partition("@")[2], self._saved_layers(reference))

    def push_index(self, reference: str) -> str:
        raise NotOfferedError(reference)

    def push_elsewhere(self, source: str, target: str) -> str:
        return self._tag_and_push(source, target)

    def _push(self, arch: str, reference: str) -> str:
        with _told("images.load"), self.fixture.archive.open("rb") as archive:
            self._sdk.images.load(archive)
        return self._tag_and_push(f"{ARCHIVE_NAME}:{arch}", reference)

    def _tag_and_push(self, source: str, target: str) -> str:
        repository, _, tag = target.rpartition(":")
        with _told(f"images.push({target!r})"):
            self._sdk.images.get(source).tag(repository, tag)
            said = list(self._sdk.images.push(repository, tag=tag, stream=True, decode=True))
        if errors := [line["error"] for line in said if "error" in line]:
            raise CommandFailedError(f"images.push({target!r}): {errors}")
        digests = [line["aux"]["Digest"] for line in said if "Digest" in line.get("aux", {})]
        if not digests:
            raise MismatchError(f"the engine gave no digest: {said[-3:]}")
        return str(digests[-1])

    def _connect(self) -> None:
        self._sdk = docker.DockerClient(base_url=f"unix://{self.scratch}/docker.sock", timeout=COMMAND_WITHIN_SECONDS)


@contextmanager
def _told(call: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.DockerException as error:
        raise CommandFailedError(f"{call}: {error}") from error
