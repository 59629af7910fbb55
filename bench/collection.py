"""Measures what clients notice of a collection: the same load without one, while one removes much, and without again.

    python bench/collection.py [--manifests 10000] [--data DIRECTORY]

The load is at a steady rate, below what the machine can do: pulls of a manifest and a blob, and pushes of a small
image, each on kept connections. The table that is printed is Markdown: milliseconds, and the ratio of the two.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOST, PORT = "127.0.0.1", 5077
LADING = Path(sys.executable).with_name("lading")
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = b"{}"
INLINE_BYTES, FILE_BYTES = 1_000, 20_000
FILLERS = 8
PULLERS, PUSHERS = 4, 2
PULLS_PER_SECOND, PUSHES_PER_SECOND = 20.0, 5.0
"""Of each client."""
QUIET_SECONDS = 30.0
LEASE_SECONDS = 20.0
"""Of what will be removed: over before it is, and longer than a push."""
LONGEST_SECONDS = 900.0
KEPT_IMAGES = 50
Latencies = dict[str, list[float]]


class Client:
    """One client with one connection."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self._connection = http.client.HTTPConnection(HOST, PORT, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/octet-stream") -> bytes:
        """Make a request that succeeds."""
        self._connection.request(method, f"/v2/{self.repository}/{path}", body, {"Content-Type": kind})
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status >= 300:
            raise SystemExit(f"{method} {path}: {reply.status} {content!r}")
        return content

    def push(self, layer_bytes: int) -> str:
        """Push an image of one layer that nobody has; return its digest."""
        layer = os.urandom(layer_bytes)
        for blob in (CONFIG, layer):
            self.ask("POST", f"blobs/uploads/?digest={digest_of(blob)}", blob)
        described = [
            {"mediaType": kind, "digest": digest_of(blob), "size": len(blob)}
            for kind, blob in (("application/vnd.oci.image.config.v1+json", CONFIG), (LAYER_TYPE, layer))
        ]
        document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described[0], "layers": described[1:]}
        payload = json.dumps(document).encode()
        self.ask("PUT", f"manifests/{digest_of(payload)}", payload, MANIFEST_TYPE)
        return digest_of(payload)

    def pull(self, digest: str) -> None:
        """Pull an image."""
        document = json.loads(self.ask("GET", f"manifests/{digest}"))
        self.ask("GET", f"blobs/{document['layers'][0]['digest']}")


def digest_of(content: bytes) -> str:
    """Return the digest of the content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextlib.contextmanager
def registry(data: Path, collection: Mapping[str, float]) -> Iterator[None]:
    """Run a server on the data directory."""
    settings = {f"LADING_COLLECTION__{name.upper()}": str(value) for name, value in collection.items()}
    command = [LADING, "serve", "--data", data, "--host", HOST, "--port", str(PORT)]
    with (data.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        wait_until_ready(process)
        yield
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the server."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(HOST, PORT, timeout=10)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def fill(manifests: int) -> list[str]:
    """Push what will be removed, and delete it; push what stays, and return that."""

    def push_and_delete(count: int) -> None:
        client = Client("bench/gone")
        digests = [client.push(INLINE_BYTES if number % 2 else FILE_BYTES) for number in range(count)]
        for digest in digests:
            client.ask("DELETE", f"manifests/{digest}")

    with ThreadPoolExecutor(FILLERS) as threads:
        list(threads.map(push_and_delete, [manifests // FILLERS] * FILLERS))
    client = Client("bench/kept")
    return [client.push(INLINE_BYTES if number % 2 else FILE_BYTES) for number in range(KEPT_IMAGES)]


def work(role: str, kept: Sequence[str], stop: threading.Event, out: "multiprocessing.Queue[Latencies]") -> None:
    """Pull or push at a steady rate, in a process of its own; a late request is counted from when it was due."""
    client = Client("bench/kept" if role == "pull" else "bench/new")
    rate = PULLS_PER_SECOND if role == "pull" else PUSHES_PER_SECOND
    milliseconds: list[float] = []
    due = time.monotonic()
    while not stop.is_set():
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        if role == "pull":
            client.pull(kept[len(milliseconds) % len(kept)])
        else:
            client.push(INLINE_BYTES if len(milliseconds) % 2 else FILE_BYTES)
        milliseconds.append((time.monotonic() - due) * 1000)
    out.put({role: milliseconds})


@contextlib.contextmanager
def load(kept: Sequence[str], into: Latencies) -> Iterator[None]:
    """Have all clients at work for the length of the block."""
    stop = multiprocessing.Event()
    out: multiprocessing.Queue[Latencies] = multiprocessing.Queue()
    roles = ["pull"] * PULLERS + ["push"] * PUSHERS
    processes = [multiprocessing.Process(target=work, args=(role, kept, stop, out)) for role in roles]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for _ in processes:
            for role, milliseconds in out.get(timeout=120).items():
                into.setdefault(role, []).extend(milliseconds)
        for process in processes:
            process.join()


def left(data: Path) -> int:
    """Return how much there is to collect: deleted manifests, blobs to look at, files to delete."""
    from pysqlite3 import dbapi2  # noqa: PLC0415 - of the environment that runs Lading

    with contextlib.closing(dbapi2.connect(f"file:{data}/lading.db?mode=ro", uri=True, timeout=10)) as connection:
        counts = (
            "SELECT (SELECT count(*) FROM manifests WHERE deleted_us IS NOT NULL)"
            " + (SELECT count(*) FROM doomed_objects)"
            " + (SELECT count(*) FROM gc_blob_queue WHERE review_after_us <= (unixepoch() - 1) * 1000000)"
        )
        return int(connection.execute(counts).fetchone()[0])


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent are not above."""
    return statistics.quantiles(values, n=100)[percent - 1]


def main() -> None:
    """Fill, measure three times, and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--manifests", type=int, default=10_000)
    options.add_argument("--data", type=Path, help="where the data directory is made; a temporary one by default")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        data = Path(folder) / "data"
        without: Latencies = {}
        during: Latencies = {}
        # The collector comes at the start of a server, so this one leaves what is deleted while it runs.
        with registry(data, {"lease_seconds": LEASE_SECONDS, "undo_seconds": 0, "every_seconds": 86400}):
            print(f"pushing and deleting {arguments.manifests} manifests ...", file=sys.stderr)
            kept = fill(arguments.manifests)
            with load(kept, without):
                time.sleep(QUIET_SECONDS)
        at_first, began = left(data), time.monotonic()
        with registry(data, {"undo_seconds": 0, "delay_seconds": 0, "every_seconds": 1}):
            with load(kept, during):
                while (now := left(data)) and time.monotonic() < began + LONGEST_SECONDS:
                    time.sleep(0.5)
            print(f"{at_first} rows were due, {now} when {time.monotonic() - began:.0f} s were over", file=sys.stderr)
            with load(kept, without):
                time.sleep(QUIET_SECONDS)
    report(without, during)


def report(without: Latencies, during: Latencies) -> None:
    """Print the table."""
    print("| | without | during a collection | ratio |\n| --- | --- | --- | --- |")
    for role in ("pull", "push"):
        for percent in (50, 99):
            quiet, busy = (percentile(latencies[role], percent) for latencies in (without, during))
            print(f"| {role}, p{percent} | {quiet:.1f} ms | {busy:.1f} ms | {busy / quiet:.2f}x |")


if __name__ == "__main__":
    main()
