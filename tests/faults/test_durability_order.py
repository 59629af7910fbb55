"""In which order the server writes, syncs and answers: seen from outside, one system call after the other (I1).

A kill does not show a missing sync, since the kernel keeps what it was given. The order of the calls does.
"""

import hashlib
import http.client
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.capability.content import OCI_CONFIG, OCI_MANIFEST, descriptor, digest_of, encode, manifest_of
from tests.capability.server import RegistryProcess
from tests.faults.conftest import FULL
from tests.faults.trace import Trace

ORDER = ("fsync", "fdatasync", "link", "linkat", "pwrite64", "pwritev", "pwritev2")
SOCKET = ("read", "readv", "recvfrom", "recvmsg", "write", "writev", "sendto", "sendmsg")
OPENING = ("open", "openat", "openat2", "creat")
READING = ("read", "readv", "pread64", "preadv", "preadv2", "mmap", "sendfile", "splice", "copy_file_range")
WRITING = r"pwrite64|pwritev|pwritev2|write|writev"
REPLYING = r"write|writev|sendto|sendmsg"
RECEIVING = r"read|readv|recvfrom|recvmsg"
LOG = "lading.db-wal"

BLOB_BYTES = 100_000
PAGE_BYTES = 4096
BIG_BYTES = (2048 if FULL else 512) * 1024 * 1024
PIECE_BYTES = 1024 * 1024
MAX_CONNECTIONS = 200

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def connect(server: RegistryProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.wire.host, server.wire.port, timeout=120)


def ask(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | Iterator[bytes] | None = None
) -> http.client.HTTPResponse:
    headers = {"Content-Type": OCI_MANIFEST if "/manifests/" in target else "application/octet-stream"}
    connection.request(method, target, body, headers, encode_chunked=isinstance(body, Iterator))
    reply = connection.getresponse()
    reply.read()
    return reply


def start_upload(connection: http.client.HTTPConnection) -> str:
    reply = ask(connection, "POST", "/v2/order/blobs/uploads/", b"")
    assert reply.status == 202
    return reply.headers["Location"]


def push(connection: http.client.HTTPConnection, content: bytes) -> None:
    """Push a blob, POST then PUT."""
    target = f"{start_upload(connection)}?digest={digest_of(content)}"
    assert ask(connection, "PUT", target, content).status == 201


def put_manifest(connection: http.client.HTTPConnection, config: bytes, tag: str) -> None:
    manifest = encode(manifest_of(descriptor(config, OCI_CONFIG), []))
    assert ask(connection, "PUT", f"/v2/order/manifests/{tag}", manifest).status == 201


def assert_row_synced(trace: Trace, row: bytes, *, after: int, before: int) -> None:
    """Assert that the transaction with this in a row was written and synced as a whole between two lines of the trace.

    The server's own jobs may have transactions of theirs at the same time.
    """
    written = [call for call in trace.calls if re.fullmatch(WRITING, call.name) and LOG in call.text and call.has(row)]
    assert written, f"no row was written before the reply\n{trace}"
    early = [str(call) for call in written if call.begin < after]
    assert not early, f"the row was written before its bytes were durable: {early}\n{trace}"
    later = [call for call in trace.calls if call.begin > written[0].begin and call.thread == written[0].thread]
    then = next((call for call in later if LOG in call.text and not re.fullmatch(WRITING, call.name)), None)
    assert then is not None, f"the row was not synced\n{trace}"
    assert then.is_sync, f"the row was not synced: {then}\n{trace}"
    assert then.end < before, f"the row was synced after the reply: {then}\n{trace}"


@pytest.mark.parametrize("server", [1], indirect=True)
def test_a_blob_is_durable_before_its_row_and_its_row_before_the_reply(server: RegistryProcess, tmp_path: Path) -> None:
    """Any other order loses, at a power cut, a blob for which the client has a 201."""
    content = os.urandom(BLOB_BYTES)
    server.start()
    with closing(connect(server)) as connection:
        push(connection, os.urandom(BLOB_BYTES))  # so that all threads are there
        location = start_upload(connection)
        upload_id = location.rpartition("/")[2]
        with Trace(tmp_path / "trace", server.tree()[1:], [*ORDER, *SOCKET], shown=PAGE_BYTES) as trace:
            assert ask(connection, "PUT", f"{location}?digest={digest_of(content)}", content).status == 201

    bytes_synced = trace.first("fsync|fdatasync", f"uploads/{upload_id}>")
    linked = trace.first(r"link(at)?", f".{upload_id}", after=bytes_synced.end)
    folder = f"objects/{digest_of(content).partition(':')[2][:2]}>"
    name_synced = trace.first("fsync", folder, after=linked.end)
    reply = trace.first(REPLYING, "HTTP/1.1 201", after=name_synced.end)
    for call in (bytes_synced, linked, name_synced):
        assert call.result == "0", call
    written = [
        call for call in trace.calls if re.fullmatch(WRITING, call.name) and f"uploads/{upload_id}>" in call.text
    ]
    assert written[-1].end < bytes_synced.begin, f"written after the sync: {written[-1]}"
    row = bytes.fromhex(digest_of(content).partition(":")[2])
    assert_row_synced(trace, row, after=name_synced.end, before=reply.begin)
    server.stop()


@pytest.mark.parametrize("server", [1], indirect=True)
def test_a_tag_is_durable_before_the_reply(server: RegistryProcess, tmp_path: Path) -> None:
    """A tag that a power cut takes back sends a deployment to the image of yesterday."""
    config = b"{}"
    server.start()
    with closing(connect(server)) as connection:
        push(connection, config)
        put_manifest(connection, config, "before")
        with Trace(tmp_path / "trace", server.tree()[1:], [*ORDER, *SOCKET], shown=PAGE_BYTES) as trace:
            put_manifest(connection, config, "of-this-moment")

    request = trace.first(RECEIVING, "PUT /v2/order/manifests/of-this-moment")
    reply = trace.first(REPLYING, "HTTP/1.1 201", after=request.end)
    assert_row_synced(trace, b"of-this-moment", after=request.begin, before=reply.begin)
    server.stop()


@pytest.mark.parametrize("server", [1], indirect=True)
def test_a_manifest_is_read_without_opening_a_file(server: RegistryProcess, tmp_path: Path) -> None:
    """The path that every pull and every poll takes is one statement on an open database."""
    config = b"{}"
    server.start()
    with closing(connect(server)) as connection:
        push(connection, config)
        put_manifest(connection, config, "latest")
        assert ask(connection, "GET", "/v2/order/manifests/latest").status == 200
        with Trace(tmp_path / "trace", server.tree()[1:], [*OPENING, *SOCKET]) as trace:
            assert ask(connection, "GET", "/v2/order/manifests/latest").status == 200

    request = trace.first(RECEIVING, "GET /v2/order/manifests/latest")
    reply = trace.first(REPLYING, "HTTP/1.1 200", after=request.end)
    opened = [str(call) for call in trace.between(request.begin, reply.end) if call.name in OPENING]
    assert not opened, f"opened: {opened}"
    server.stop()


@pytest.mark.parametrize("server", [1], indirect=True)
def test_the_closing_put_of_a_big_blob_reads_nothing_again(server: RegistryProcess, tmp_path: Path) -> None:
    """Reading gigabytes back to hash them is the silence in which clients time out."""
    server.start()
    with closing(connect(server)) as connection:
        upload = push_big(connection)

        assert_committed_unread(server, tmp_path, upload, connection)
    server.stop()


def test_the_closing_put_may_go_to_another_worker_and_reads_nothing(server: RegistryProcess, tmp_path: Path) -> None:
    """Behind a load balancer, or after a broken connection, the PUT lands anywhere (I9)."""
    server.start()
    with closing(connect(server)) as connection:
        upload = push_big(connection)
        first = worker_of(connection, server)
        with closing(connect_elsewhere(server, first)) as other:
            assert_committed_unread(server, tmp_path, upload, other)
    server.stop()


@dataclass(frozen=True, slots=True)
class BigUpload:
    """A session that has all of its bytes."""

    location: str
    digest: str


def push_big(connection: http.client.HTTPConnection) -> BigUpload:
    """Send a big blob by one PATCH in chunked frames; the closing PUT is left to do."""
    location = start_upload(connection)
    hasher = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        piece = bytearray(os.urandom(PIECE_BYTES))
        for number in range(BIG_BYTES // PIECE_BYTES):
            piece[:8] = number.to_bytes(8)
            hasher.update(piece)
            yield bytes(piece)

    assert ask(connection, "PATCH", location, pieces()).status == 202
    return BigUpload(location, f"sha256:{hasher.hexdigest()}")


def assert_committed_unread(
    server: RegistryProcess, folder: Path, upload: BigUpload, connection: http.client.HTTPConnection
) -> None:
    """Send the closing PUT; assert that the file was synced, not read, and the answer came within a second more."""
    staging = server.data / "uploads" / upload.location.rpartition("/")[2]
    with Trace(folder / "trace", server.tree()[1:], ["fsync", *READING], only=staging) as trace:
        began = time.monotonic()
        assert ask(connection, "PUT", f"{upload.location}?digest={upload.digest}", b"").status == 201
        took = time.monotonic() - began

    synced = trace.first("fsync", staging.name)
    assert [call for call in trace.calls if call.name in READING] == [], f"read again:\n{trace}"
    assert took < synced.seconds + 1, f"answered after {took:.2f} s, of which the sync took {synced.seconds:.2f} s"


def worker_of(connection: http.client.HTTPConnection, server: RegistryProcess) -> int:
    """Return the process id of the worker at the other end of a connection that has had an answer."""
    port = connection.sock.getsockname()[1]
    ends = (f":{server.wire.port:04X}", f":{port:04X}")
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])]
    (worker,) = [pid for pid in server.tree()[1:] if f"socket:[{inode}]" in open_by(pid)]
    return worker


def open_by(pid: int) -> Sequence[str]:
    """Return what a process has open, by the names that the kernel gives."""
    opened = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            opened.append(str(path.readlink()))
    return opened


def connect_elsewhere(server: RegistryProcess, worker: int) -> http.client.HTTPConnection:
    """Return a connection to another worker than `worker`."""
    for _ in range(MAX_CONNECTIONS):
        connection = connect(server)
        ask(connection, "GET", "/livez")
        if worker_of(connection, server) != worker:
            return connection
        connection.close()
    raise AssertionError(f"{MAX_CONNECTIONS} connections all went to worker {worker}")
