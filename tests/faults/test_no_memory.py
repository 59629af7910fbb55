"""A server that may use no more memory: the kernel kills a worker in the middle of its work, and nothing is lost."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name
from tests.capability.server import LADING, RegistryProcess, until
from tests.faults.checker import Checker
from tests.faults.verifying import assert_verified
from tests.wire import Wire, WireError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MEMORY = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20
CLIENTS = 8
SECONDS_TO_STARVE = 60.0
GREED = """
import sys, time
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1], "w").write("0")
taken = []
while True:
    taken.append(b"x" * (1 << 20))
    time.sleep(0.01)
"""


@dataclass(frozen=True, slots=True)
class Group:
    """A memory group of the kernel's (cgroup v1, as this machine has it)."""

    folder: Path

    @property
    def needed_bytes(self) -> int:
        """What the processes hold that cannot be dropped."""
        lines = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(lines["total_rss"])

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        lines = dict(line.split() for line in (self.folder / "memory.oom_control").read_text().splitlines())
        return int(lines["oom_kill"])

    def limit(self, most_bytes: int) -> None:
        """Let the group have no more, as soon as it can do with that; -1 is no limit."""
        with contextlib.suppress(OSError):  # it cannot yet
            (self.folder / "memory.limit_in_bytes").write_text(str(most_bytes))

    @property
    def is_empty(self) -> bool:
        """Whether all its processes are gone."""
        return not (self.folder / "cgroup.procs").read_text()


@pytest.fixture
def group() -> Iterator[Group]:
    """Make a memory group."""
    group = Group(MEMORY / f"lading-test-{os.getpid()}")
    group.folder.mkdir()
    try:
        yield group
    finally:
        assert until(lambda: group.is_empty)
        group.folder.rmdir()


@pytest.fixture
def server(tmp_path: Path, group: Group) -> Iterator[RegistryProcess]:
    """Return a server, not started, that will be in the group with all its workers."""
    join = f'echo $$ > {group.folder}/cgroup.procs && exec "$@"'
    process = RegistryProcess(tmp_path, program=("sh", "-c", join, "sh", *LADING))
    try:
        yield process
    finally:
        process.kill()


@dataclass
class Pusher:
    """A client that pushes large blobs, and keeps those that were acknowledged."""

    wire: Wire
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    name: str = field(default_factory=new_name)

    def run(self, stop: threading.Event) -> None:
        """Push one blob after the other; a connection that is cut acknowledges nothing."""
        repository = Repository(self.wire, self.name)
        while not stop.is_set():
            content = random_content(4 * MIB)
            try:
                self.acknowledged[repository.push_blob(content)] = content
            except (WireError, OSError):
                time.sleep(0.05)


@contextlib.contextmanager
def at_work(pushers: list[Pusher]) -> Iterator[None]:
    """Let all push while the block lasts."""
    stop = threading.Event()
    threads = [threading.Thread(target=pusher.run, args=(stop,)) for pusher in pushers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def starve(group: Group) -> None:
    """Let a neighbour whom the kernel spares take more and more, until it kills somebody else."""
    group.limit(group.needed_bytes + 64 * MIB)
    neighbour = subprocess.Popen([sys.executable, "-c", GREED, str(group.folder / "cgroup.procs")])
    try:
        assert until(lambda: group.killed > 0, seconds=SECONDS_TO_STARVE), "nothing was killed"
    finally:
        neighbour.kill()
        neighbour.wait()
        group.limit(-1)


def test_a_worker_that_gets_no_memory_is_replaced_and_nothing_is_lost(server: RegistryProcess, group: Group) -> None:
    """What it had acknowledged is there, what it had not is absent or whole, and the server is soon as it was."""
    server.start()
    for worker in server.tree()[1:]:
        Path(f"/proc/{worker}/oom_score_adj").write_text("500")  # the kernel's choice between equals is a lottery
    workers = set(server.tree()[1:])
    pushers = [Pusher(server.wire) for _ in range(CLIENTS)]

    with at_work(pushers):
        assert until(lambda: all(pusher.acknowledged for pusher in pushers), seconds=60)
        starve(group)
        assert until(lambda: len(server.tree()) == 3 and set(server.tree()[1:]) != workers)
        before = sum(len(pusher.acknowledged) for pusher in pushers)
        assert until(lambda: sum(len(pusher.acknowledged) for pusher in pushers) > before, seconds=30)

    for pusher in pushers:
        repository = Repository(server.wire, pusher.name)
        for digest, content in pusher.acknowledged.items():
            assert digest_of(repository.request("GET", f"blobs/{digest}").expect(200).body) == digest_of(content)
    assert Checker(server.data).problems(rehash=True) == []
    assert_verified(server.data, waste=True)
