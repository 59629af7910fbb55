"""Crash points: the server's tree is killed at one system call of one operation, started again, and looked into."""

import copy
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.capability.preloaded import Preloaded
from tests.capability.server import until
from tests.faults.checker import Checker, expire_leases, expire_sessions
from tests.faults.injector import Injector, When
from tests.faults.load import CUT, INLINE_BYTES, LARGE_BYTES, SMALLEST_BYTES, Client, new_clients
from tests.faults.preloaded import PreloadedRegistry
from tests.faults.restarting import assert_swept, start_in_time

QUIET_SECONDS = 0.1
MAX_MISSES = 3
COLLECT = ("garbage-collect", "--now", "--yes")


def push_an_image(client: Client) -> None:
    """Push a layer in three requests, a config in one, and the manifest."""
    source = random.Random(client.repository)
    client.push_in_parts(source.randbytes(LARGE_BYTES))
    client.push_at_once(source.randbytes(SMALLEST_BYTES))
    client.put_manifest()


def move_a_tag(client: Client) -> None:
    """Have a tag name another manifest than it does."""
    state = client.state
    client.tag(*next((digest, tag) for tag in state.tags for digest in state.manifests if digest != state.tags[tag]))


def delete_everything(client: Client) -> None:
    """Delete a tag, a manifest, and a blob that nothing refers to."""
    client.delete_tag()
    client.delete_manifest()
    client.delete_blob()


@dataclass(frozen=True, slots=True)
class Operation:
    """What the server is doing when it is killed: a client's work, or its own start or stop."""

    name: str
    act: Callable[[Client], None] | None = None
    from_nothing: bool = False
    stopping: bool = False


OPERATIONS = (
    Operation("first start", from_nothing=True),
    Operation("start after a crash"),
    Operation("push", push_an_image),
    Operation("tag move", move_a_tag),
    Operation("delete", delete_everything),
    Operation("upload cancel", Client.cancel),
    Operation("stop", push_an_image, stopping=True),
)


class Ground:
    """Where points of one program are tried: a data directory with something in it, and a server to start on a copy."""

    def __init__(self, folder: Path, parent: Preloaded, seed: str) -> None:
        self._folder = folder.resolve()
        self._base = self._folder / "base"
        self.server = PreloadedRegistry(self._folder, parent)
        (self._client,) = new_clients(self.server.wire, 1, prefix="point", seed=seed)
        self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _prepare(self) -> None:
        """Fill the base, and end with a kill: the log is not merged, a session is open, a staging file has no row."""
        self.server.start()
        self._fill(self._client)
        self._client.begin(bytes(LARGE_BYTES))
        self._client.disconnect()
        (self.server.data / "uploads" / "00000000-0000-4000-8000-000000000000").write_bytes(b"left behind")
        self.server.kill()
        self.server.data.rename(self._base)

    def _fill(self, client: Client) -> None:
        client.push_image()
        client.push_at_once(bytes(INLINE_BYTES))
        client.push_in_parts(bytes(INLINE_BYTES + 1))
        client.put_manifest()

    def calls(self, operation: Operation) -> list[str]:
        """Return the calls that the operation makes, in the order of one run."""
        injector, _ = self._run(operation, None, When.BEFORE)
        return injector.calls

    def try_point(self, operation: Operation, point: int, when: When) -> bool:
        """Kill at call `point` and assert that nothing is amiss; False if the operation was over before that."""
        injector, client = self._run(operation, point, when)
        if not injector.reached:
            return False
        place = f"{operation.name}, killed {when.value} call {point}, {injector.calls[-1]}"
        try:
            self._assert_recovered(client)
        except AssertionError as error:
            raise AssertionError(f"{place}: {error}\nthe calls were\n{chr(10).join(injector.calls)}") from error
        return True

    def _run(self, operation: Operation, point: int | None, when: When) -> tuple[Injector, Client]:
        """Do the operation under an injector until it is killed, by that or in the end."""
        shutil.rmtree(self.server.data, ignore_errors=True)
        client = copy.deepcopy(self._client)
        if operation.from_nothing:
            (client,) = new_clients(self.server.wire, 1, prefix="point", seed="nothing")
        else:
            shutil.copytree(self._base, self.server.data)
        is_start = operation.act is None
        injector = self.server.start_injected(point, when if is_start else None)
        try:
            if operation.act is not None:
                self._act(operation, client, injector, point, when)
            else:
                until(lambda: injector.reached, seconds=QUIET_SECONDS)  # the jobs of the start
        finally:
            self.server.kill()
            injector.close()
            client.disconnect()
        return injector, client

    def _act(self, operation: Operation, client: Client, injector: Injector, point: int | None, when: When) -> None:
        assert operation.act is not None
        time.sleep(QUIET_SECONDS)  # the jobs of the start come first
        if operation.stopping:
            operation.act(client)
            injector.arm(point, when)
            self.server.end()
            return
        injector.arm(point, when)
        try:
            operation.act(client)
        except CUT:
            assert until(lambda: injector.reached), "cut off, and not by the injector"

    def _assert_recovered(self, client: Client) -> None:
        """Assert V1 to V10 after a start without injector: what was acknowledged is there, the rest whole or absent."""
        try:
            start_in_time(self.server)
            client.verify()
            checker = Checker(self.server.data)
            problems = checker.problems()
            assert not problems, problems
            assert_swept(checker)
            client.resume()
            client.push_again()
            client.push_image()
            client.verify()
            problems = checker.problems(rehash=True)
            assert not problems, problems
        finally:
            client.disconnect()
            self.server.kill()
        self.server.assert_verified()


def collect(_: Client) -> None:
    """Have the collector's command do its work: `CollectionGround` runs it, and no client takes part."""


COLLECTION = Operation("collection", collect)


class CollectionGround(Ground):
    """A ground where much is dead, and the operation is a collection that removes all of it: no server runs."""

    def _fill(self, client: Client) -> None:
        """Leave something for each stage: history, manifests, blobs of both kinds and their files, a repository."""
        other = Client(self.server.wire, "point/other", seed=client.repository, shared=())
        other.push_image()
        other.delete_all()
        other.disconnect()
        for _ in range(3):
            client.push_image()
        super()._fill(client)
        client.delete_untagged()
        client.delete_unused()

    def _prepare(self) -> None:
        super()._prepare()
        expire_leases(self._base)

    def _run(self, _: Operation, point: int | None, when: When) -> tuple[Injector, Client]:
        shutil.rmtree(self.server.data, ignore_errors=True)
        shutil.copytree(self._base, self.server.data)
        return self.server.run_injected(COLLECT, point, when), copy.deepcopy(self._client)

    def _assert_recovered(self, client: Client) -> None:
        """Assert besides that the next collection finds all that this one has left, when the rest is deleted too."""
        super()._assert_recovered(client)
        try:
            self.server.start()
            client.delete_all()
            client.disconnect()
            self.server.kill()
            expire_sessions(self.server.data)
            expire_leases(self.server.data)
            self.server.start()
            checker = Checker(self.server.data)
            assert_swept(checker, of_open_sessions=True)
            self.server.do(*COLLECT)
            assert not (remains := checker.remains()), remains
            assert not (problems := checker.problems()), problems
        finally:
            self.server.kill()
        self.server.assert_verified()


def enumerate_points(ground: Ground, operation: Operation, when: When) -> Iterator[int]:
    """Try every point of an operation, from the first to the last, and yield each when it was clean.

    No two runs are the same to the call, so the last point is where a run ends before it comes there, three times.
    """
    point, misses = 1, 0
    while misses < MAX_MISSES:
        if ground.try_point(operation, point, when):
            yield point
            point, misses = point + 1, 0
        else:
            misses += 1
