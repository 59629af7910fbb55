"""Clients before a registry that wants a password: with it, without it, with a wrong one, and where all may read.

The image is small, for here it is who asks that matters. A refusal counts when the client says that it was refused for
who it is, when what it asked was answered 401, and when nothing is stored.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from tests.clients.client import Client, CommandFailedError, NotOfferedError
from tests.clients.operations import TAG
from tests.clients.processes import lading
from tests.clients.recorder import Recorder
from tests.clients.registry import Held, MismatchError, Registry

READ_BY_ALL = "all read"
USER, PASSWORD = "alice", "a pass phrase: \u00e9"
REFUSED = re.compile(r"401|unauthori[sz]ed|authentication required|credential|username/password", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Locked:
    """Two registries with the same user: one closed, and one that everybody may read."""

    closed: Registry
    readable: Registry


@contextmanager
def locked(scratch: Path) -> Iterator[Locked]:
    """Run both."""
    users = scratch / "users"
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5))
    users.write_bytes(USER.encode() + b":" + hashed + b"\n")
    settings = {"LADING_AUTH__HTPASSWD": str(users)}
    folders = [scratch / "closed", scratch / "readable"]
    for folder in folders:
        folder.mkdir()
    with (
        lading(folders[0], settings) as closed,
        lading(folders[1], {**settings, "LADING_AUTH__ANONYMOUS_PULL": "true"}) as readable,
    ):
        yield Locked(Registry(closed, USER, PASSWORD), Registry(readable, USER, PASSWORD))
    for folder in folders:
        shutil.rmtree(folder)


class LockedOperations:
    """One client going through them; it has been prepared with the lean fixture."""

    def __init__(self, client: Client, registries: Locked, recorders: tuple[Recorder, Recorder]) -> None:
        self._client = client
        self._registries = registries
        self._closed, self._readable = recorders
        self._repository = f"{client.name}/locked/fixture"

    def steps(self) -> dict[str, Callable[[], None]]:
        """Return what is to be done, in order."""
        return {
            "refused": self._refused_without,
            "wrong one": self._refused_with_a_wrong_one,
            "push": self._push,
            "pull": self._pull,
            "logged out": self._refused_after_logout,
            READ_BY_ALL: self._read_by_all,
        }

    def _refused_without(self) -> None:
        self._must_refuse(self._closed, self._registries.closed)

    def _refused_with_a_wrong_one(self) -> None:
        host = self._closed.address
        try:
            self._client.login(host, USER, PASSWORD + "!")
        except CommandFailedError as error:
            _require_clear(error)
        else:
            # One that cannot ask at once must be refused when it comes.
            self._must_refuse(self._closed, self._registries.closed)
        with suppress(CommandFailedError):  # some do not know a host at which no login went well
            self._client.logout(host)

    def _push(self) -> None:
        self._client.login(self._closed.address, USER, PASSWORD)
        said = self._client.push(self._reference(self._closed))
        _require_stored(self._registries.closed.held(self._repository, TAG), Held(said, self._client.contents))

    def _pull(self) -> None:
        pulled = self._client.pull(self._reference(self._closed))
        _require_stored(pulled, self._registries.closed.held(self._repository, TAG))

    def _refused_after_logout(self) -> None:
        self._client.logout(self._closed.address)
        try:
            self._client.pull(self._reference(self._closed))
        except CommandFailedError as error:
            _require_clear(error)
        else:
            raise MismatchError("a pull after the logout was not refused")

    def _read_by_all(self) -> None:
        self._client.login(self._readable.address, USER, PASSWORD)
        self._client.push(self._reference(self._readable))
        self._client.logout(self._readable.address)
        self._readable.take()
        try:
            pulled = self._client.pull(self._reference(self._readable))
        except CommandFailedError as error:
            if self._client.reads_past_a_challenge:
                raise
            _require_clear(error)
            raise NotOfferedError from error
        passed = self._readable.take()
        _require_stored(pulled, self._registries.readable.held(self._repository, TAG))
        if not any(each.method == "GET" and each.status == 200 and "/manifests/" in each.path for each in passed):
            raise MismatchError(f"the manifest was not read: {[str(each) for each in passed]}")
        self._must_refuse(self._readable, self._registries.readable)

    def _must_refuse(self, recorder: Recorder, registry: Registry) -> None:
        """Push where it must be refused."""
        repository = f"nobody/{self._client.name}/fixture"
        recorder.take()
        try:
            self._client.push(f"{recorder.address}/{repository}:{TAG}")
        except CommandFailedError as error:
            _require_clear(error)
        else:
            raise MismatchError("a push was not refused")
        passed = recorder.take()
        if not any(each.status == 401 for each in passed):
            raise MismatchError(f"no answer was 401: {[str(each) for each in passed]}")
        if (status := registry.answer("GET", f"/v2/{repository}/tags/list").status) != 404:
            raise MismatchError(f"something of a refused push is stored: the tags answer {status}")

    def _reference(self, recorder: Recorder) -> str:
        return f"{recorder.address}/{self._repository}:{TAG}"


def _require_clear(error: CommandFailedError) -> None:
    if not REFUSED.search(str(error)):
        raise MismatchError(f"the client does not say that it was refused: {error}")


def _require_stored(found: Held, expected: Held) -> None:
    if found != expected:
        raise MismatchError(f"{found}, not {expected}")
