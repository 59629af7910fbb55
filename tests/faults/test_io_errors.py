"""A disk that fails: no 2xx for what is not durable, nothing wrong is served, and later requests work (Proof 4).

The errors are strace's, answered to the system calls of a running worker; short writes are the kernel's own.
"""

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import LADING, RegistryProcess, until
from tests.faults.checker import Checker
from tests.faults.trace import Call, Trace
from tests.faults.verifying import assert_verified
from tests.wire import Reply, WireError

pytestmark = pytest.mark.slow
BLOB_BYTES = 600_000
READS = ("pread64", "preadv", "preadv2", "sendfile")
WRITES = ("pwrite64", "pwritev", "pwritev2")
SYNCS = ("fsync", "fdatasync")
DESCRIPTORS = 64


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryProcess]:
    """Return a server with one worker, not started: the first call that fails is known to be that one's."""
    process = RegistryProcess(tmp_path, workers=1)
    try:
        yield process
    finally:
        process.kill()


def is_quiet(server: RegistryProcess) -> bool:
    """Tell whether the collector has written what it writes after a first start, so that clients alone write."""
    with contextlib.closing(dbapi2.connect(server.data / "lading.db", timeout=10)) as connection:
        done = connection.execute("SELECT count(*) FROM passes WHERE finished_us IS NOT NULL").fetchone()
    return bool(done == (3,))


class Push:
    """A blob whose bytes are staged, before its closing PUT."""

    def __init__(self, server: RegistryProcess, *, blob_bytes: int = BLOB_BYTES) -> None:
        assert until(lambda: is_quiet(server))
        self.server = server
        self.repository = Repository(server.wire, new_name())
        self.content = random_content(blob_bytes)
        self.digest = digest_of(self.content)
        self.location = self.repository.start_upload()
        self.repository.send("PATCH", self.location, body=self.content).expect(202)

    @property
    def staging(self) -> Path:
        """The file that the session grows in."""
        return self.server.data / "uploads" / self.location.rpartition("/")[2]

    @property
    def folder(self) -> Path:
        """The folder of the object that the blob becomes."""
        return self.server.data / "objects" / self.digest.partition(":")[2][:2]

    @property
    def log(self) -> Path:
        """The log that the blob's row is written to."""
        return self.server.data / "lading.db-wal"

    def commit(self) -> Reply:
        """Send the closing PUT."""
        return self.repository.send("PUT", with_digest(self.location, self.digest), body=b"")

    def pull(self) -> Reply:
        """Ask for the blob."""
        return self.repository.request("GET", f"blobs/{self.digest}")


def assert_sound(server: RegistryProcess, *pushes: Push) -> None:
    """Kill the server, start it again, and look for all that was acknowledged."""
    server.kill()
    server.start()
    for push in pushes:
        assert push.pull().expect(200).body == push.content
    assert Checker(server.data).problems(rehash=True) == []
    assert_verified(server.data)


@pytest.mark.parametrize("times", ["", ":when=1"], ids=["always", "once"])
@pytest.mark.parametrize("place", ["staging", "folder", "log"])
def test_a_failed_sync_is_no_201(server: RegistryProcess, tmp_path: Path, place: str, times: str) -> None:
    """What the kernel could not write it forgets, and a second sync says that all is well."""
    server.start()
    earlier, push = Push(server), Push(server)
    earlier.commit().expect(201)

    with Trace(
        tmp_path / "trace", server.tree()[1:], SYNCS, only=getattr(push, place), fault=f"error=EIO{times}"
    ) as trace:
        refused = push.commit()
        if not times:
            assert push.commit().status in {404, 500}
            assert push.repository.request("POST", "blobs/uploads/", body=b"").status in {202, 500}
        assert earlier.pull().expect(200).body == earlier.content

    refused.expect_error(500, "UNKNOWN")
    assert any(call.was_made_to_fail for call in trace.calls), f"{trace}"
    assert push.pull().status == 404
    later = Push(server)
    later.commit().expect(201)
    assert later.pull().expect(200).body == later.content
    assert_sound(server, earlier, later)


def test_what_a_failed_sync_of_the_log_left_is_written_again(server: RegistryProcess, tmp_path: Path) -> None:
    """Were the next commit put behind it, its own sync would vouch for frames that the disk never got."""
    server.start()
    first, second = Push(server), Push(server)

    with Trace(
        tmp_path / "trace",
        server.tree()[1:],
        (*WRITES, *SYNCS),
        only=first.log,
        fault="error=EIO:when=1",
        failing=SYNCS,
    ) as trace:
        first.commit().expect(500)
        second.commit().expect(201)

    failed = next(call for call in trace.calls if call.was_made_to_fail)
    before = [offset_of(call) for call in trace.calls if call.name == "pwrite64" and call.end < failed.begin]
    after = [offset_of(call) for call in trace.calls if call.name == "pwrite64" and call.begin > failed.end]
    assert after[0] == before[0], f"{trace}"
    assert max(before) in after or max(after) > max(before), f"{trace}"
    assert_sound(server, second)
    assert first.pull().status == 404


def offset_of(call: Call) -> int:
    """Return where in the file it writes."""
    return int(call.text.rpartition(") ")[0].rpartition(", ")[2])


def test_a_checkpoint_that_cannot_sync_is_made_again(server: RegistryProcess, tmp_path: Path) -> None:
    """The log stays what is believed until the database file has all of it, for sure."""
    server.start()
    push = Push(server)

    with Trace(
        tmp_path / "trace", server.tree()[1:], SYNCS, only=server.data / "lading.db", fault="error=EIO"
    ) as trace:
        push.commit().expect(201)
        time.sleep(1.5)  # the writer moves its log when it is idle for a second
        assert push.pull().expect(200).body == push.content

    assert any(call.was_made_to_fail for call in trace.calls), f"{trace}"
    later = Push(server)
    later.commit().expect(201)
    time.sleep(1.5)
    assert_sound(server, push, later)


@pytest.mark.parametrize("place", ["staging", "log"])
def test_a_write_that_finds_no_room_once_costs_one_request(server: RegistryProcess, tmp_path: Path, place: str) -> None:
    """A quota that is raised, a log that is rotated: the next request has room, and the session is where it was."""
    server.start()
    push = Push(server)
    rest = random_content(300_000)
    whole = push.content + rest

    with Trace(
        tmp_path / "trace", server.tree()[1:], WRITES, only=getattr(push, place), fault="error=ENOSPC:when=1"
    ) as trace:
        reply = push.repository.send("PUT", with_digest(push.location, digest_of(whole)), body=rest)

    assert any(call.was_made_to_fail for call in trace.calls), f"{trace}"
    if place == "staging":
        reply.expect_error(507, "UNAVAILABLE")
        assert push.repository.upload_range(push.location) == f"0-{BLOB_BYTES - 1}"
        reply = push.repository.send("PUT", with_digest(push.location, digest_of(whole)), body=rest)
    reply.expect(201)  # the database's writer makes room in its log and tries again
    assert push.repository.request("GET", f"blobs/{digest_of(whole)}").expect(200).body == whole
    assert_sound(server)


def test_short_writes_are_completed_or_undone(server: RegistryProcess) -> None:
    """A write may take a part of what it is given: the rest is written, or the part is taken back."""
    server.start()
    push = Push(server)
    rest = random_content(BLOB_BYTES)
    whole = push.content + rest
    (worker,) = server.tree()[1:]
    most = BLOB_BYTES + 100_000

    resource.prlimit(worker, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    refused = push.repository.send("PATCH", push.location, body=rest)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    refused.expect_error(500, "UNKNOWN")
    assert push.repository.upload_range(push.location) == f"0-{BLOB_BYTES - 1}"
    push.repository.send("PUT", with_digest(push.location, digest_of(whole)), body=rest).expect(201)
    assert push.repository.request("GET", f"blobs/{digest_of(whole)}").expect(200).body == whole
    assert_sound(server)


@pytest.mark.parametrize("times", ["", ":when=2+"], ids=["from the first byte", "in the middle"])
def test_a_pull_that_cannot_be_read_is_cut(server: RegistryProcess, tmp_path: Path, times: str) -> None:
    """Half a blob must look like half a blob, and a disk that reads again serves it whole."""
    server.start()
    push = Push(server, blob_bytes=5_000_000)
    push.commit().expect(201)
    (stored,) = server.objects_of(push.digest)

    with (
        Trace(tmp_path / "trace", server.tree()[1:], READS, only=stored, fault=f"error=EIO{times}"),
        pytest.raises((WireError, ConnectionError)),
    ):
        push.pull()

    push.repository.request("HEAD", f"blobs/{push.digest}").expect(200, {"Content-Length": "5000000"})
    assert push.pull().expect(200).body == push.content


def test_a_session_that_cannot_be_read_is_kept(server: RegistryProcess, tmp_path: Path) -> None:
    """The closing PUT reads a small session again: that it could not is no reason to drop the bytes."""
    server.start()
    push = Push(server, blob_bytes=200_000)

    with Trace(tmp_path / "trace", server.tree()[1:], ["pread64"], only=push.staging, fault="error=EIO"):
        push.commit().expect_error(500, "UNKNOWN")

    push.commit().expect(201)
    assert push.pull().expect(200).body == push.content
    assert_sound(server, push)


def test_a_database_that_cannot_be_read_is_no_404(server: RegistryProcess, tmp_path: Path) -> None:
    """That something is unknown makes a client push it again: only an answer of the database may say it."""
    server.start()
    repository = Repository(server.wire, new_name())
    image = repository.push_image("v1")
    server.stop()
    server.start()

    with Trace(
        tmp_path / "trace", server.tree()[1:], ["pread64"], only=server.data / "lading.db", fault="error=EIO"
    ) as trace:
        reply = repository.request("GET", "manifests/v1")

    assert any(call.was_made_to_fail for call in trace.calls), f"{trace}"
    reply.expect_error(500, "UNKNOWN")
    assert repository.request("GET", "manifests/v1").expect(200).body == image.manifest


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[RegistryProcess]:
    """Return a server whose processes may open 64 files each."""
    process = RegistryProcess(tmp_path, program=("prlimit", f"--nofile={DESCRIPTORS}", *LADING), workers=1)
    try:
        yield process
    finally:
        process.kill()


def cpu_seconds(pid: int) -> float:
    """Return what the process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def answered(ask: Callable[[], Reply]) -> int:
    """Return the status of the reply, or 0 where the connection was shed."""
    try:
        return ask().status
    except (WireError, OSError):
        return 0


def test_clients_that_take_all_descriptors_are_shed(poor: RegistryProcess) -> None:
    """A hundred idle connections must not make it spin, nor harm what is stored; when they leave, all is as before."""
    poor.start()
    push = Push(poor)
    push.commit().expect(201)
    interrupted = Push(poor)
    (worker,) = poor.tree()[1:]

    with ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(poor.wire.connect())
        before = cpu_seconds(worker)
        time.sleep(2)
        assert cpu_seconds(worker) - before < 0.5
        assert {answered(push.pull) for _ in range(5)} <= {0, 200, 503}
        assert {answered(interrupted.commit) for _ in range(5)} <= {0, 201, 404, 503}  # 404 once it is done

    assert until(lambda: answered(push.pull) == 200)
    assert answered(interrupted.commit) in {201, 404}
    assert interrupted.pull().expect(200).body == interrupted.content
    later = Push(poor)
    later.commit().expect(201)
    assert poor.tree()[1:] == [worker]
    assert_sound(poor, push, interrupted, later)


def test_a_request_that_gets_no_descriptor_is_asked_to_come_again(server: RegistryProcess, tmp_path: Path) -> None:
    """It is a matter of moments, and neither the blob nor the session has anything to do with it."""
    server.start()
    push, open_push = Push(server), Push(server)
    push.commit().expect(201)
    (stored,) = server.objects_of(push.digest)

    for path, ask in ((stored, push.pull), (open_push.staging, open_push.commit)):
        with Trace(tmp_path / "trace", server.tree()[1:], ["open", "openat"], only=path, fault="error=EMFILE"):
            ask().expect_error(503, "UNAVAILABLE")

    assert push.pull().expect(200).body == push.content
    open_push.commit().expect(201)
    assert_sound(server, push, open_push)
