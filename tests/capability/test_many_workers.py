"""Any worker serves any request of anybody's session, and one that is killed takes nothing but its own along (I9)."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.capability.content import digest_of
from tests.capability.program import Serve, Server
from tests.capability.racing import race
from tests.capability.server import LADING, until
from tests.wire import Connection, Headers, Reply, WireError

FULL = os.environ.get("LADING_FULL", "") not in {"", "0"}
SEED = os.environ.get("LADING_SEED") or f"{random.SystemRandom().getrandbits(32):08x}"
WORKERS = 3
MOST_TRIES = 400
RACES = 500 if FULL else 60
KILLS = 100 if FULL else 6


class Desk:
    """A client of one worker, known by its process id; where a reply ends the connection, it finds the worker again."""

    def __init__(self, server: Server, worker: int) -> None:
        self.worker = worker
        self._server = server
        self._port = server.port
        self._connection = self._connect()

    def request(self, method: str, target: str, *, headers: Headers = (), body: bytes | None = None) -> Reply:
        """Send one request to the worker and read its reply."""
        reply = self._connection.request(method, target, headers=headers, body=body)
        if reply.get("Connection") == "close":
            self.close()
            self._connection = self._connect()
        return reply

    def _connect(self) -> Connection:
        """Which worker accepts is the kernel's choice, so it takes tries; those that missed stay open meanwhile."""
        tried: list[Connection] = []
        try:
            while len(tried) < MOST_TRIES:
                tried.append(self._server.wire.connect())
                tried[-1].request("GET", "/livez").expect(200)
                if owner_of(tried[-1], self._server.workers(), self._port) == self.worker:
                    return tried.pop()
        finally:
            for missed in tried:
                missed.close()
        raise AssertionError(f"{MOST_TRIES} connections, and none to worker {self.worker}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


Desks = Sequence[Desk]


@contextlib.contextmanager
def desks_of(server: Server) -> Iterator[Desks]:
    """Open a desk at each worker."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Desk(server, worker))) for worker in server.workers()]


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desks]:
    """Return a desk at each worker of one server."""
    command = [*LADING, "serve", "--port", "0", "--workers", str(WORKERS)]
    server = Server(tmp_path_factory.mktemp("workers"), command)
    try:
        server.wait_until_ready()
        with desks_of(server) as opened:
            yield opened
        assert server.events("a worker ended and is replaced") == []
    finally:
        server.kill_all()


def owner_of(connection: Connection, workers: Sequence[int], port: int) -> int:
    """Return the worker that holds the other end of a connection, as the kernel's tables tell."""
    ends = (f"0100007F:{port:04X}", f"0100007F:{connection.local_port:04X}")
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {row[9] for row in rows if (row[1], row[2]) == ends and row[9] != "0"}
    for worker in workers:
        for descriptor in Path(f"/proc/{worker}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == f"socket:[{inode}]":
                    return worker
    raise AssertionError(f"no worker holds {ends}")


def test_a_session_hops_from_worker_to_worker(desks: Desks) -> None:
    """Each request of an upload meets a worker that knows it only from the database and the disk (I9)."""
    parts = [os.urandom(size) for size in (1, 70_000, 300_000, 1_200_000, 5)]
    content = b"".join(parts)
    location = desks[0].request("POST", "/v2/hop/blobs/uploads/", body=b"").expect(202)["Location"]

    sent = 0
    for at, part in enumerate(parts):
        sent += len(part)
        writer, reader = desks[(at + 1) % WORKERS], desks[(at + 2) % WORKERS]
        location = writer.request("PATCH", location, body=part).expect(202)["Location"]
        location = reader.request("GET", location).expect(204, {"Range": f"0-{sent - 1}"})["Location"]
    digest = digest_of(content)
    desks[0].request("PUT", f"{location}?digest={digest}").expect(201)

    for desk in desks:
        assert desk.request("GET", f"/v2/hop/blobs/{digest}").expect(200).body == content


def test_a_session_that_one_worker_ends_is_over_for_all(desks: Desks) -> None:
    """No worker keeps a session of its own in memory."""
    location = desks[0].request("POST", "/v2/over/blobs/uploads/", body=b"").expect(202)["Location"]
    for desk in desks:
        desk.request("PATCH", location, body=b"x" * 300_000).expect(202)

    desks[-1].request("DELETE", location).expect(204)

    for desk in desks:
        desk.request("PATCH", location, body=b"y").expect_error(404, "BLOB_UPLOAD_UNKNOWN")
        desk.request("GET", location).expect_error(404, "BLOB_UPLOAD_UNKNOWN")


def test_what_one_worker_wrote_every_worker_reads_at_once(desks: Desks) -> None:
    """A client that got its 201 may come back to any of them (I5)."""
    for at in range(5 * WORKERS):
        content = os.urandom(100 if at % 2 else 40_000)
        digest = digest_of(content)
        upload = desks[at % WORKERS].request("POST", "/v2/seen/blobs/uploads/", body=b"").expect(202)["Location"]
        desks[at % WORKERS].request("PUT", f"{upload}?digest={digest}", body=content).expect(201)
        for desk in desks:
            desk.request("HEAD", f"/v2/seen/blobs/{digest}").expect(200)
        desks[(at + 1) % WORKERS].request("DELETE", f"/v2/seen/blobs/{digest}").expect(202)
        for desk in desks:
            desk.request("HEAD", f"/v2/seen/blobs/{digest}").expect(404)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_writers_of_one_session_end_with_one_input(desks: Desks) -> None:
    """Two workers get a chunk for the same place at the same moment: one is taken whole, the other is told 416."""
    source = random.Random(SEED)
    print(f"LADING_SEED={SEED}")
    winners: set[int] = set()
    busy = 0
    for number in range(RACES):
        left, right, third = source.sample(desks, WORKERS)
        location = left.request("POST", "/v2/race/blobs/uploads/", body=b"").expect(202)["Location"]
        size = source.choice((10, 20_000, 70_000, 1_500_000))
        inputs = [source.randbytes(size), source.randbytes(size + source.choice((0, 1)))]

        replies = race(partial(send_chunk, left, location, inputs[0]), partial(send_chunk, right, location, inputs[1]))

        statuses = [reply.status for reply in replies]
        assert sorted(statuses) == [202, 416], f"race {number}: {replies[0]}\n{replies[1]}"
        winner, refused = statuses.index(202), replies[statuses.index(416)]
        winners.add(winner)
        busy += "another request is writing" in refused.body.decode()
        assert refused["Docker-Upload-UUID"] in location
        end = third.request("GET", location).expect(204, {"Range": f"0-{len(inputs[winner]) - 1}"})["Location"]
        digest = digest_of(inputs[winner])
        third.request("PUT", f"{end}?digest={digest}").expect(201)
        assert left.request("GET", f"/v2/race/blobs/{digest}").expect(200).body == inputs[winner]

    print(f"{RACES} races, in {busy} of them the two met while one was writing")
    assert winners == {0, 1}
    assert busy, "no two requests were ever in the session at once: that was no race"


def send_chunk(desk: Desk, location: str, content: bytes) -> Reply:
    return desk.request("PATCH", location, headers={"Content-Range": f"0-{len(content) - 1}"}, body=content)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_costs_only_its_own_requests(serve: Serve) -> None:
    """Again and again: clients of the others see nothing, fresh ones are served on, and soon it is replaced."""
    server = serve("--workers", str(WORKERS))
    server.wait_until_ready()
    source = random.Random(SEED)
    print(f"LADING_SEED={SEED}")
    killed: list[int] = []
    for number in range(KILLS):
        with desks_of(server) as desks:
            killed.append(source.choice(server.workers()))
            with Regulars(desks) as regulars:
                time.sleep(0.1)
                os.kill(killed[-1], signal.SIGKILL)
                assert until(lambda: killed[-1] not in server.workers() and len(server.workers()) == WORKERS)
                for _ in range(20):
                    server.wire.request("GET", "/readyz").expect(200)
        assert {worker for worker, faults in regulars.faults.items() if faults} == {killed[-1]}, f"kill {number}"
        assert all(regulars.answered[desk.worker] > 2 for desk in desks if desk.worker != killed[-1])

    events = server.events("a worker ended and is replaced")
    assert [event["pid"] for event in events] == killed
    assert [line for line in server.events("request") if line["status"] >= 500] == []


class Regulars:
    """Clients that push and pull small blobs, one at each desk, and note what goes wrong by worker."""

    def __init__(self, desks: Desks) -> None:
        self.faults: dict[int, list[str]] = {desk.worker: [] for desk in desks}
        self.answered = {desk.worker: 0 for desk in desks}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._push_and_pull, args=(desk,)) for desk in desks]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _push_and_pull(self, desk: Desk) -> None:
        while not self._over.is_set():
            content = os.urandom(20_000)
            digest = digest_of(content)
            try:
                location = desk.request("POST", "/v2/kill/blobs/uploads/", body=b"").expect(202)["Location"]
                desk.request("PUT", f"{location}?digest={digest}", body=content).expect(201)
                assert desk.request("GET", f"/v2/kill/blobs/{digest}").expect(200).body == content
            except (OSError, WireError, AssertionError) as error:
                self.faults[desk.worker].append(repr(error))
                return
            self.answered[desk.worker] += 1
