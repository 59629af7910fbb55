"""Thousands of connections that come to nothing, and readers that take their time: others are served as ever."""

import contextlib
import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capability.content import random_content
from tests.capability.repository import Repository, new_name
from tests.capability.server import HOST, LADING, RegistryProcess, StartRegistry
from tests.wire import FRAME_BYTES

FULL = bool(os.environ.get("LADING_FULL"))
DESCRIPTORS = 900
EACH = 1500
LAYER_BYTES = (256 if FULL else 64) << 20
PUSHERS = PULLERS = 16
SLOW_READERS = 200
MOST_RESIDENT_BYTES = 200 << 20


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let this process have thousands of sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.own_wire
@pytest.mark.usefixtures("many_descriptors")
def test_silent_and_stalled_connections_keep_nobody_out(tmp_path: Path) -> None:
    """Each costs its sender nothing; a server with far fewer descriptors than that still answers at once."""
    limited = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *LADING)
    server = RegistryProcess(tmp_path, program=limited, workers=1)
    server.start()
    try:
        repository = Repository(server.wire, new_name())
        location = repository.start_upload()
        stalled = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhello".encode()
        longest = 0.0
        with contextlib.ExitStack() as stack:
            for number in range(2 * EACH):
                connection = stack.enter_context(socket.create_connection((HOST, server.wire.port), 10.0))
                if number % 2:
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(stalled)
                if number % 100 == 0:
                    began = time.monotonic()
                    server.wire.request("GET", "/v2/").expect(200)
                    longest = max(longest, time.monotonic() - began)
            repository.push_image("latest")
            assert repository.tags() == ["latest"]
        assert longest < 5.0
        server.stop()
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("many_descriptors")
def test_many_pushes_pulls_and_slow_readers_fit_into_memory(start_registry: StartRegistry) -> None:
    """What a worker holds is bounded by what it does, not by what clients have or how slowly they read (I8)."""
    server = start_registry()
    repository = Repository(server.wire, new_name())
    content = random_content(LAYER_BYTES)
    digest = repository.push_blob(content)
    target = repository.url(f"blobs/{digest}")
    frames = [content[at : at + FRAME_BYTES] for at in range(0, len(content), FRAME_BYTES)]
    failures: list[str] = []

    def push(number: int) -> None:
        body = [number.to_bytes(4, "big"), *frames]  # shared: this process has to fit into memory, too
        hashed = hashlib.sha256(body[0])
        hashed.update(content)
        tail = f"blobs/uploads/?digest=sha256:{hashed.hexdigest()}"
        reply = repository.request("POST", tail, body=body, chunked=True)
        if reply.status != 201:
            failures.append(str(reply))

    def pull(_: int) -> None:
        if repository.send("GET", target).body != content:
            failures.append("a pull came to something else")

    with contextlib.ExitStack() as stack:
        for _ in range(SLOW_READERS):
            reader = stack.enter_context(socket.create_connection((HOST, server.wire.port), 30.0))
            reader.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            reader.recv(1000)
        for work, count in ((push, PUSHERS), (pull, PULLERS)):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        highest = server.peak_memory_of_workers()

    assert not failures, failures[0]
    assert max(highest) < MOST_RESIDENT_BYTES, [f"{size >> 20} MiB" for size in highest]
    print(f"highest resident size of each worker: {', '.join(f'{size >> 20} MiB' for size in highest)}")
