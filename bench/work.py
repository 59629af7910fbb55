"""The work that is measured: pushes and pulls of a big layer, pushes of small images, and storms of small requests."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from peers import HOST, Peer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
OCTETS = "application/octet-stream"

# What docker and every other Go client puts into one frame of a chunked body.
FRAME_BYTES = 32 * 1024
PUSHERS = 8
SMALL_LAYER_BYTES = 4096
SMALL_REPOSITORIES = 20
CONNECTIONS = 16
PULLERS = 16
REQUEST_SECONDS = 300.0
WARM_BYTES = 256 * 1024 * 1024
# As long as that of an ordinary image.
PADDING = "x" * 900


class WorkFailedError(Exception):
    """A server did not do what was asked, so there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Done:
    """How much was done, in whatever unit, and in how many seconds of the clock."""

    amount: float
    seconds: float


@dataclass(slots=True)
class Layer:
    """A big layer. `renew` makes another one of it, cheaply."""

    content: bytearray
    digest: str = ""
    version: int = 0

    @classmethod
    def random(cls, size_bytes: int) -> "Layer":
        """Return a layer that does not compress."""
        layer = cls(bytearray(os.urandom(size_bytes)))
        layer.renew()
        return layer

    def renew(self) -> None:
        """Become content that no server has."""
        self.version += 1
        self.content[:8] = self.version.to_bytes(8)
        self.digest = digest_of(self.content)

    @property
    def gigabytes(self) -> float:
        """The size, in units of 10^9 bytes."""
        return len(self.content) / 1e9


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob."""

    media_type: str
    digest: str
    size: int

    def document(self) -> dict[str, str | int]:
        """Return the JSON object."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def digest_of(content: bytes | bytearray) -> str:
    """Return the sha256 digest of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest_of(config: Descriptor, layers: Sequence[Descriptor], note: str) -> bytes:
    """Compose an image manifest; `note` makes it one of its own."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
        "annotations": {"note": note, "padding": PADDING},
    }
    return json.dumps(document).encode()


def warm_memory(folder: Path) -> None:
    """Write and delete a file: in a virtual machine, who first needs more memory waits for the host to give it."""
    piece = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(WARM_BYTES // len(piece)):
            file.write(piece)


# Big layers


def push(peer: Peer, repository: str, layer: Layer, *, framed: bool) -> Done:
    """Push a layer as docker does: POST, PATCH in chunked frames or with a length, PUT without a body."""
    connection = http.client.HTTPConnection(HOST, peer.port, timeout=REQUEST_SECONDS)
    body: bytearray | Iterator[bytes] = _frames(layer.content) if framed else layer.content
    began = time.perf_counter()
    try:
        location = _ask(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"", expect=202)
        location = _ask(connection, "PATCH", location, body, expect=202)
        _ask(connection, "PUT", _with_digest(location, layer.digest), b"", expect=201)
    finally:
        connection.close()
    return Done(layer.gigabytes, time.perf_counter() - began)


def _frames(content: bytearray) -> Iterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(view), FRAME_BYTES):
        yield bytes(view[start : start + FRAME_BYTES])


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | bytearray | Iterator[bytes],
    *,
    expect: int,
) -> str:
    """Send a request; return the path and query of the Location that comes back."""
    connection.request(method, target, body, {"Content-Type": OCTETS}, encode_chunked=isinstance(body, Iterator))
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != expect:
        raise WorkFailedError(f"{method} {target}: {reply.status} {text[:300]!r}")
    location = urlsplit(reply.headers.get("Location", ""))
    return f"{location.path}?{location.query}" if location.query else location.path


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def pull(peer: Peer, path: str, layer: Layer, *, clients: int, times: int) -> Done:
    """Pull the layer with so many curls at the same time, and so many times in a row."""
    command = ["curl", "-s", "-w", "%{http_code} %{size_download}\\n", *["-o", os.devnull, peer.url + path] * times]
    began = time.perf_counter()
    curls = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    outputs = [curl.communicate(timeout=REQUEST_SECONDS)[0] for curl in curls]
    took = time.perf_counter() - began
    if set(outputs) != {f"200 {len(layer.content)}\n" * times}:
        raise WorkFailedError(f"{peer.name}, GET {path}: {set(outputs)}")
    return Done(layer.gigabytes * clients * times, took)


# Small images and tags


@dataclass(slots=True)
class Images:
    """Pushers of small images and of tags, eight at a time, on kept connections."""

    peer: Peer
    prefix: str
    pushed: int = field(default=0)

    def push(self, count: int) -> Done:
        """Push small images: for each a config and a layer (HEAD, POST, PATCH, PUT), then the manifest under a tag."""
        return self._measured(self._push_image, count)

    def tag(self, count: int, repository: str, layers: Sequence[Descriptor]) -> Done:
        """Put manifests of blobs that are there, each under a new tag."""
        config, *others = layers

        async def put(session: aiohttp.ClientSession, number: int) -> None:
            await self._put_manifest(session, repository, f"t{number:07}", manifest_of(config, others, f"t{number}"))

        return self._measured(put, count)

    def _measured(self, one: Callable[[aiohttp.ClientSession, int], Awaitable[None]], count: int) -> Done:
        numbers = iter(range(self.pushed, self.pushed + count))
        self.pushed += count

        async def pusher(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                await one(session, number)

        async def all_pushers() -> float:
            connector = aiohttp.TCPConnector(limit=PUSHERS)
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                began = time.perf_counter()
                await asyncio.gather(*(pusher(session) for _ in range(PUSHERS)))
                return time.perf_counter() - began

        return Done(count, asyncio.run(all_pushers()))

    async def _push_image(self, session: aiohttp.ClientSession, number: int) -> None:
        repository = f"{self.prefix}/r{number % SMALL_REPOSITORIES}"
        config = await self._push_blob(session, repository, json.dumps({"number": number}).encode(), CONFIG_TYPE)
        layer = await self._push_blob(session, repository, os.urandom(SMALL_LAYER_BYTES), LAYER_TYPE)
        await self._put_manifest(session, repository, f"v{number}", manifest_of(config, [layer], str(number)))

    async def _push_blob(
        self, session: aiohttp.ClientSession, repository: str, content: bytes, media_type: str
    ) -> Descriptor:
        digest = digest_of(content)
        base = f"{self.peer.url}/v2/{repository}/blobs"
        await self._request(session, "HEAD", f"{base}/{digest}", expect=(200, 404))
        location = await self._request(session, "POST", f"{base}/uploads/", expect=(202,))
        location = await self._request(session, "PATCH", location, content, OCTETS, expect=(202,))
        await self._request(session, "PUT", _with_digest(location, digest), expect=(201,))
        return Descriptor(media_type, digest, len(content))

    async def _put_manifest(self, session: aiohttp.ClientSession, repository: str, tag: str, manifest: bytes) -> None:
        url = f"{self.peer.url}/v2/{repository}/manifests/{tag}"
        await self._request(session, "PUT", url, manifest, MANIFEST_TYPE, expect=(201,))

    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        body: bytes = b"",
        media_type: str = "",
        *,
        expect: Iterable[int],
    ) -> str:
        """Send a request; return the Location that comes back, as an absolute address."""
        headers = {"Content-Type": media_type} if media_type else {}
        async with session.request(method, url, data=body, headers=headers) as reply:
            if reply.status not in expect:
                raise WorkFailedError(f"{self.peer.name}, {method} {url}: {reply.status} {await reply.text()}")
            location = reply.headers.get("Location", "")
        return location if location.startswith("http") else self.peer.url + location


# Storms of small requests


def storm(peer: Peer, path: str, *, seconds: int) -> Done:
    """GET a path on sixteen kept connections, with wrk."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"Accept: {MANIFEST_TYPE}", peer.url + path]
    output = _output(command)
    if "Non-2xx" in output or "Socket errors" in output:
        raise WorkFailedError(f"{peer.name}, GET {path}: {output}")
    return Done(_number(r"(\d+) requests in", output), _number(r"requests in ([\d.]+)s", output))


def storm_of_heads(peer: Peer, path: str, *, seconds: int) -> Done:
    """HEAD a path on sixteen kept connections, with ab: wrk waits for the body that Content-Length speaks of."""
    command = ["ab", "-q", "-k", "-i", "-c", str(CONNECTIONS), "-t", str(seconds), "-n", "10000000"]
    output = _output([*command, "-H", f"Accept: {MANIFEST_TYPE}", peer.url + path])
    if "Non-2xx" in output or _number(r"Failed requests:\s+(\d+)", output):
        raise WorkFailedError(f"{peer.name}, HEAD {path}: {output}")
    return Done(_number(r"Complete requests:\s+(\d+)", output), _number(r"Time taken for tests:\s+([\d.]+)", output))


def _output(command: Sequence[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=REQUEST_SECONDS, check=False)
    if ended.returncode:
        raise WorkFailedError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")
    return ended.stdout


def _number(pattern: str, text: str) -> float:
    if (found := re.search(pattern, text)) is None:
        raise WorkFailedError(f"no {pattern} in {text}")
    return float(found[1])
