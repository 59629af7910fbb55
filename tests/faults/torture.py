"""Clients that torture the collector: few layers, which all of them push, mount, drop and push again all the time.

Leases, undo windows and delays are milliseconds, so that what one client lets go is being collected while another one
takes it up. Each client is the only one to write to its repositories, and knows which manifests it was answered 201
for: until it deletes them itself, they have all that they name, byte for byte. Blobs are promised by nothing else.
"""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.capability.content import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of, encode
from tests.faults.operating import Operator
from tests.wire import Wire

INLINE_BYTES = 512
"""The server's limit in these runs: half of the shared layers are rows, half are files."""
LAYERS, FASHION = 60, 10
"""There are so many shared layers, and all clients use the same few of them at a time, one after another."""
_LAYER_MUTATIONS = 20
REPOSITORIES = 4
IMAGES = 2
TAGS = tuple(f"v{number}" for number in range(4))
REPLY_SECONDS = 30.0
MOST_TRIES = 200
LEAN_SECONDS = 0.15
"""Longer than any push here, and than the collector needs to look at a layer."""
_OCTETS = "application/octet-stream"


class Cut(Exception):  # noqa: N818 - no error of the test, but what it is about
    """The connection ended before the reply did."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply, read whole."""

    status: int
    location: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that can be pushed, with the digests of the blobs that it names, and of its children."""

    payload: bytes
    media_type: str
    blobs: tuple[str, ...] = ()
    children: tuple[str, ...] = ()


@dataclass(slots=True)
class Repository:
    """What a repository must hold: its live manifests, and the manifest of each tag."""

    name: str
    live: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


class Line:
    """One kept connection. It speaks as little HTTP as the registry's own replies need: clients are to be cheap."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._socket: socket.socket | None = None

    def ask(self, method: str, target: str, body: bytes | None = None, media_type: str = _OCTETS) -> Answer:
        """Send one request, and return its reply.

        Raises:
            Cut: the server is not there, or went away meanwhile.

        """
        head = f"{method} {target} HTTP/1.1\r\nHost: registry\r\n"
        if body is not None:
            head += f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
        try:
            if self._socket is None:
                self._socket = socket.create_connection((self._wire.host, self._wire.port), REPLY_SECONDS)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(head.encode() + b"\r\n" + (body or b""))
            return self._answer(self._socket, method)
        except TimeoutError:
            raise AssertionError(f"{method} {target}: no answer within {REPLY_SECONDS} s") from None
        except OSError as error:
            self.close()
            raise Cut from error

    def _answer(self, connection: socket.socket, method: str) -> Answer:
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _some(connection)
        status, fields = int(received[9:12]), received[:end].lower()
        location = _field(received[:end], fields, b"\r\nlocation: ")
        length = int(_field(fields, fields, b"\r\ncontent-length: ") or b"0")
        body = received[end + 4 :]
        if method == "HEAD" or status in {204, 304}:
            length = 0
        while len(body) < length:
            body += _some(connection)
        if b"\r\nconnection: close" in fields:
            self.close()
        return Answer(status, location.decode(), body)

    def close(self) -> None:
        """Close the connection; the next request opens one, to any worker."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _some(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionResetError
    return piece


def _field(head: bytes, lowered: bytes, name: bytes) -> bytes:
    at = lowered.find(name)
    return head[at + len(name) :].partition(b"\r\n")[0] if at >= 0 else b""


class Client:
    """One client with its repositories, its plan made from a seed, and its record of what was accepted.

    `refusals` counts manifests that came too late for a blob of theirs, which is right with leases shorter than a push.
    """

    def __init__(self, wire: Wire, number: int, *, seed: str, shared: Sequence[bytes]) -> None:
        self.repositories = [Repository(f"torture{number}/app{which}") for which in range(REPOSITORIES)]
        self.neighbours: Sequence[str] = ()
        self.mutations = 0
        self.refusals = 0
        self.cuts = 0
        self.restored = 0
        self.lean_seconds = LEAN_SECONDS
        self.operator: Operator | None = None
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._line = Line(wire)
        self._random = random.Random(seed)
        self._shared = [digest_of(content) for content in shared]
        self._contents = {digest_of(content): content for content in shared}
        self._manifests: dict[str, Manifest] = {}
        self._stopping: Callable[[], bool] = lambda: False
        self._at = self.repositories[0]
        self._actions: Sequence[tuple[Callable[[], None], int]] = (
            (self._push_image, 30),
            (self._push_again, 10),
            (self._push_index, 4),
            (self._push_referrer, 4),
            (self._lean, 3),
            (self._move_tag, 10),
            (self._pull, 12),
            (self._delete_manifest, 34),
            (self._delete_tag, 6),
            (self._delete_blob, 6),
            (self._delete_repository, 4),
            (self._restore_tag, 8),
            (self._lose_repository, 2),
        )

    def run(self, stopping: Callable[[], bool]) -> None:
        """Do one thing after another until told to stop; when a request is cut off, see first what became of it."""
        self._stopping = stopping
        actions, weights = zip(*self._actions, strict=True)
        try:
            while not stopping():
                if self._random.random() < 0.01:  # the next request may reach another worker
                    self._line.close()
                self._at = self._random.choice(self.repositories)
                (action,) = self._random.choices(actions, weights)
                self._guarded(action)
        except AssertionError as error:
            self.faults.append(str(error))
        except Exception as error:  # noqa: BLE001 - a client that dies is not to be overlooked
            self.faults.append(repr(error))
        finally:
            self._line.close()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
            self.done[action.__name__.strip("_")] += 1
        except Cut:
            self.cuts += 1
            self._line.close()
            time.sleep(0.02)

    # Pushes

    def _push_image(self) -> None:
        config, *layers = self._some_layers(self._random.randint(2, 3))
        mark = self._random.randrange(4)  # the same image comes again and again, often while it is being collected
        self._put(self._image(config, layers, mark=mark), self._some_tag())
        if self._random.random() < 0.3:
            self._pull()
        if len(self._at.live) > IMAGES:
            self._delete_manifest()

    def _push_again(self) -> None:
        """Push what was deleted: a hidden row comes back, or a new one, while the old one's blobs may be going."""
        if self._at.gone:
            self._put(self._manifests[self._random.choice(self._at.gone)], self._some_tag())

    def _push_index(self) -> None:
        images = [digest for digest in self._at.live if not self._manifests[digest].children]
        if images:
            children = self._random.sample(sorted(images), min(2, len(images)))
            document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*map(self._described, children)]}
            self._put(Manifest(encode(document), OCI_INDEX, children=tuple(children)), self._some_tag())

    def _push_referrer(self) -> None:
        if self._at.live:
            subject = self._random.choice(sorted(self._at.live))
            config, layer = self._some_layers(2)
            self._put(self._image(config, [layer], subject=self._described(subject)), None)

    def _lean(self) -> None:
        """Push an image nobody has, and let its manifest come much later than its layers: a lease has to keep them."""
        contents = [self._random.randbytes(size) for size in (INLINE_BYTES // 4, INLINE_BYTES * 2)]
        config, layer = map(digest_of, contents)
        self._contents.update(zip((config, layer), contents, strict=True))
        image = self._image(config, [layer])
        self._bring_blobs(image)
        time.sleep(self.lean_seconds)
        self._put(image, self._some_tag(), blobs_are_there=True)

    def _some_layers(self, count: int) -> list[str]:
        first = self.mutations // _LAYER_MUTATIONS
        return [self._shared[(first + step) % LAYERS] for step in self._random.sample(range(FASHION), count)]

    def _image(self, config: str, layers: Sequence[str], **fields: object) -> Manifest:
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._descriptor(config, OCI_CONFIG),
            "layers": [self._descriptor(layer, OCI_LAYER) for layer in layers],
            **({"annotations": {"mark": str(fields["mark"])}} if "mark" in fields else fields),
        }
        return Manifest(encode(document), OCI_MANIFEST, (config, *layers))

    def _descriptor(self, digest: str, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest, "size": len(self._contents[digest])}

    def _described(self, digest: str) -> dict[str, object]:
        manifest = self._manifests[digest]
        return {"mediaType": manifest.media_type, "digest": digest, "size": len(manifest.payload)}

    def _some_tag(self) -> str | None:
        return self._random.choice(TAGS) if self._random.random() < 0.8 else None

    def _put(self, manifest: Manifest, tag: str | None, *, blobs_are_there: bool = False) -> None:
        """Push a manifest after its blobs; push those again for as long as it comes too late for one of them."""
        digest = digest_of(manifest.payload)
        self._manifests[digest] = manifest
        if not set(manifest.children) <= self._at.live:  # a child that was deleted: this one would be refused for good
            return
        for _ in range(MOST_TRIES):
            if not blobs_are_there:
                self._bring_blobs(manifest)
            blobs_are_there = False
            answer = self._change_manifest("PUT", digest, tag, manifest)
            if answer.status == 201:
                return
            assert answer.status == 400, f"PUT manifest {self._at.name}@{digest}: {answer}"
            assert b"MANIFEST_BLOB_UNKNOWN" in answer.body, f"PUT manifest {self._at.name}@{digest}: {answer}"
            assert manifest.blobs, f"PUT {self._at.name}@{digest}: its children are live, and it was refused: {answer}"
            assert digest not in self._at.live, f"PUT {self._at.name}@{digest}: refused, and it is live: {answer}"
            self.refusals += 1
        raise AssertionError(f"PUT {self._at.name}@{digest}: refused {MOST_TRIES} times")

    def _bring_blobs(self, manifest: Manifest) -> None:
        ways = (self._by_head, self._by_mount, self._by_post, self._by_post_and_put)
        for blob in manifest.blobs:
            self._random.choices(ways, (3, 3, 4, 1))[0](blob)

    def _by_head(self, blob: str) -> None:
        """As clients do that look first: what is there is leased by the answer."""
        status = self._line.ask("HEAD", f"/v2/{self._at.name}/blobs/{blob}").status
        assert status in {200, 404}, f"HEAD {self._at.name} {blob}: {status}"
        if status == 404:
            self._assert_unneeded(blob, "HEAD")
            self._by_post(blob)

    def _by_mount(self, blob: str) -> None:
        source = f"&from={self._random.choice(self.neighbours)}" if self._random.random() < 0.7 else ""
        answer = self._mutate("POST", f"blobs/uploads/?mount={blob}{source}", b"", (201, 202))
        if answer.status == 202:
            self._finish(answer.location, blob)

    def _by_post(self, blob: str) -> None:
        self._mutate("POST", f"blobs/uploads/?digest={blob}", self._contents[blob], (201,))

    def _by_post_and_put(self, blob: str) -> None:
        self._finish(self._mutate("POST", "blobs/uploads/", b"", (202,)).location, blob)

    def _finish(self, location: str, blob: str) -> None:
        self._mutate("PUT", f"{location}?digest={blob}", self._contents[blob], (201,))

    # Tags, deletes

    def _move_tag(self) -> None:
        # An index that has lost a child may stay, but not be pushed again.
        whole = [digest for digest in self._at.live if self._at.live.issuperset(self._manifests[digest].children)]
        if whole:
            digest = self._random.choice(sorted(whole))
            answer = self._change_manifest("PUT", digest, self._random.choice(TAGS), self._manifests[digest])
            assert answer.status == 201, f"a live manifest was tagged: {self._at.name}@{digest} {answer}"

    def _delete_manifest(self) -> None:
        if self._at.live:
            digest = self._random.choice(sorted(self._at.live))
            answer = self._change_manifest("DELETE", digest, None, self._manifests[digest])
            assert answer.status == 202, f"DELETE {self._at.name}@{digest}: {answer}"

    def _delete_tag(self) -> None:
        if self._at.tags:
            tag = self._random.choice(sorted(self._at.tags))
            answer = self._change_manifest("DELETE", self._at.tags[tag], tag, self._manifests[self._at.tags[tag]])
            assert answer.status == 202, f"DELETE {self._at.name}:{tag}: {answer}"

    def _delete_blob(self) -> None:
        blob = self._random.choice(self._shared)
        status = 405 if self._is_needed(blob) else None
        answer = self._mutate("DELETE", f"blobs/{blob}", None, (status,) if status else (202, 404))
        self.mutations -= answer.status != 202

    def _change_manifest(self, method: str, digest: str, tag: str | None, manifest: Manifest) -> Answer:
        """PUT or DELETE a manifest; if the answer is cut off, find out which side of it the registry is on."""
        place, target = self._at, f"/v2/{self._at.name}/manifests/{tag or digest}"
        before = tag and place.tags.get(tag)
        try:
            answer = self._line.ask(method, target, manifest.payload if method == "PUT" else None, manifest.media_type)
        except Cut:
            self._settle(place, digest, tag, {before, digest if method == "PUT" else None})
            raise
        if answer.status in {201, 202}:
            self.mutations += 1
            self._keep(place, digest, tag, method)
        return answer

    def _keep(self, place: Repository, digest: str, tag: str | None, method: str) -> None:
        if method == "PUT":
            place.live.add(digest)
            place.gone = [gone for gone in place.gone if gone != digest]
            if tag:
                place.tags[tag] = digest
        elif tag:
            del place.tags[tag]
        else:
            place.live.discard(digest)
            place.gone = [*place.gone[-8:], digest]
            place.tags = {name: named for name, named in place.tags.items() if named != digest}

    def _settle(self, place: Repository, digest: str, tag: str | None, allowed: set[str | None]) -> None:
        """Ask until there is an answer: the manifest is there or not, the tag is where it was or where it should go."""
        found = self._ask_patiently("GET", f"/v2/{place.name}/manifests/{digest}").status == 200
        (place.live.add if found else place.live.discard)(digest)
        place.tags = {name: named for name, named in place.tags.items() if named in place.live}
        if tag:
            answer = self._ask_patiently("GET", f"/v2/{place.name}/manifests/{tag}")
            now = digest_of(answer.body) if answer.status == 200 else None
            assert now in allowed, f"{place.name}:{tag} is {now}, expected one of {allowed}"
            place.tags.pop(tag, None)
            if now:
                place.tags[tag] = now

    def _ask_patiently(self, method: str, target: str) -> Answer:
        end = time.monotonic() + REPLY_SECONDS
        while True:
            try:
                return self._line.ask(method, target)
            except Cut:
                assert time.monotonic() < end, f"{method} {target}: the server does not come back"
                time.sleep(0.02)

    def _mutate(self, method: str, tail: str, body: bytes | None, expected: Sequence[int]) -> Answer:
        target = tail if tail.startswith("/") else f"/v2/{self._at.name}/{tail}"
        answer = self._line.ask(method, target, body)
        assert answer.status in expected, f"{method} {target}: {answer}, expected {expected}"
        self.mutations += 1
        return answer

    # What must be there

    def _pull(self) -> None:
        if self._at.live:
            self._check(self._at, self._random.choice(sorted(self._at.live)))

    def check_all(self) -> None:
        """Pull every accepted image with all its blobs, and every tag."""
        for place in self.repositories:
            for digest in sorted(place.live):
                self._check(place, digest)
            for tag in TAGS:
                answer = self._line.ask("GET", f"/v2/{place.name}/manifests/{tag}")
                now = digest_of(answer.body) if answer.status == 200 else None
                assert now == place.tags.get(tag), f"{place.name}:{tag} is {now}, expected {place.tags.get(tag)}"

    def _check(self, place: Repository, digest: str) -> None:
        manifest = self._manifests[digest]
        answer = self._line.ask("GET", f"/v2/{place.name}/manifests/{digest}")
        assert answer.status == 200, f"accepted and not deleted: {place.name}@{digest} {answer}"
        assert answer.body == manifest.payload, f"other bytes: {place.name}@{digest}"
        for blob in manifest.blobs:
            answer = self._line.ask("GET", f"/v2/{place.name}/blobs/{blob}")
            assert answer.status == 200, f"accepted without its blob: {place.name}@{digest} {blob} {answer}"
            assert answer.body == self._contents[blob], f"other bytes: {place.name} {blob}"

    def _is_needed(self, blob: str) -> bool:
        return any(blob in self._manifests[digest].blobs for digest in self._at.live)

    def _assert_unneeded(self, blob: str, method: str) -> None:
        assert not self._is_needed(blob), f"{method} {self._at.name} {blob}: 404, and a live manifest names it"

    def _delete_repository(self) -> None:
        """Delete every manifest: the repository is collected, and made anew by the next push."""
        while self._at.live:
            self._delete_manifest()

    # What comes back

    def _restore_tag(self) -> None:
        """Bring back what was deleted just now, if the collector has not been quicker."""
        if self.operator is None or not self._at.gone:
            return
        digest, tag = self._random.choice(self._at.gone), self._random.choice(TAGS)
        if self.operator.restore_tag(self._at.name, tag, digest):
            self.restored += 1
            self.mutations += 1
            for child in self._manifests[digest].children:  # an index comes back with what it lists
                self._keep(self._at, child, None, "PUT")
            self._keep(self._at, digest, tag, "PUT")
        else:
            assert digest not in self._at.live, f"{self._at.name}@{digest} is gone for good, and it is live"

    def _lose_repository(self) -> None:
        """Delete the whole repository, and have it restored: each manifest is back, or gone for good."""
        place = self._at
        if self.operator is None or not place.live:
            return
        children = {child for digest in place.live for child in self._manifests[digest].children}
        candidates, tags = place.live | children, place.tags
        assert self.operator.delete_repository(place.name), f"{place.name} has manifests, and is not known"
        self.mutations += 1
        place.live, place.tags = set(), {}
        self._observe(place, candidates, {})
        assert not place.live, f"{place.name} was deleted, and has {place.live}"
        if self._random.random() < 0.8 and self.operator.restore_repository(place.name):
            self.mutations += 1
            self._observe(place, candidates, tags)
            self.restored += len(place.live)

    def _observe(self, place: Repository, candidates: set[str], tags: Mapping[str, str]) -> None:
        """Take the repository as it is: it may have these manifests, and these tags."""
        for digest in sorted(candidates):
            if self._ask_patiently("GET", f"/v2/{place.name}/manifests/{digest}").status == 200:
                self._keep(place, digest, None, "PUT")
            else:
                place.gone = [*(gone for gone in place.gone if gone != digest), digest]
        for tag in TAGS:
            answer = self._ask_patiently("GET", f"/v2/{place.name}/manifests/{tag}")
            if answer.status == 200:
                assert tags.get(tag) == digest_of(answer.body), f"{place.name}:{tag} is not what it was"
                place.tags[tag] = digest_of(answer.body)

    def delete_all(self) -> None:
        """Delete every manifest of every repository."""
        for place in self.repositories:
            self._at = place
            self._delete_repository()
        self._line.close()

    def catch_up(self) -> None:
        """Wait for the server."""
        self._ask_patiently("GET", "/v2/")


def new_clients(wire: Wire, count: int, *, seed: str) -> list[Client]:
    """Return clients that share some layers, and mount from each other's repositories."""
    source = random.Random(seed)
    sizes = [source.randint(16, INLINE_BYTES) if number % 2 else source.randint(600, 4000) for number in range(LAYERS)]
    shared = [source.randbytes(size) for size in sizes]
    clients = [Client(wire, number, seed=f"{seed} {number}", shared=shared) for number in range(count)]
    for client in clients:
        client.neighbours = [place.name for other in clients if other is not client for place in other.repositories]
    return clients


class Load:
    """Clients at work in threads, until they have made so many mutations together or time is over."""

    def __init__(self, clients: Sequence[Client], mutations: int, seconds: float = float("inf")) -> None:
        self.clients = clients
        self._wanted = sum(client.mutations for client in clients) + mutations
        self._seconds = seconds
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=client.run, args=(self._is_over,)) for client in clients]

    @property
    def mutations(self) -> int:
        """How many changes were acknowledged."""
        return sum(client.mutations for client in self.clients)

    @property
    def refusals(self) -> int:
        """How many manifests came too late for a blob."""
        return sum(client.refusals for client in self.clients)

    def _is_over(self) -> bool:
        if not self._ended.is_set() and (
            self.mutations >= self._wanted
            or time.monotonic() > self._end
            or any(client.faults for client in self.clients)
        ):
            self._ended.set()
        return self._ended.is_set()

    @property
    def running(self) -> bool:
        """Whether clients are at work."""
        return not self._ended.is_set()

    def __enter__(self) -> Self:
        self._end = time.monotonic() + self._seconds
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._ended.set()
        for thread in self._threads:
            thread.join()

    def assert_faultless(self) -> None:
        """Assert that no client saw what may not be."""
        faults = [fault for client in self.clients for fault in client.faults]
        assert not faults, json.dumps(faults, indent=1)
