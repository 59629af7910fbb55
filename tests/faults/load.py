"""Mixed load: clients that push, mount, tag, pull and delete, and know at every moment what they were promised.

Each client is the only one to write to its repository, so what that must hold is known exactly: the state after the
last acknowledged request or, where one was cut off, that before it or after it, and never one between (V3, V4).
"""

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from tests.capability.content import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    descriptor,
    digest_of,
    encode,
    manifest_of,
)
from tests.faults.checker import RepositoryState
from tests.wire import FRAME_BYTES, Wire

INLINE_BYTES = 16 * 1024
SMALLEST_BYTES = 16
LARGE_BYTES = 120_000
SHARED_CONTENTS = 12
TAGS = tuple(f"v{number}" for number in range(5))
REPLY_SECONDS = 30.0
CUT = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply, read whole."""

    status: int
    location: str
    range: str
    body: bytes


@dataclass(slots=True)
class OpenSession:
    """An upload that was begun: the content on its way, and how many bytes of it were acknowledged."""

    content: bytes
    acknowledged: int = 0
    ending: bool = False  # a commit or a cancel was sent, and not answered yet


class Client:
    """One client with its repository, its plan made from a seed, and its record of what was acknowledged."""

    def __init__(self, wire: Wire, repository: str, *, seed: str, shared: Sequence[bytes]) -> None:
        self.repository = repository
        self.neighbours: Sequence[str] = ()
        self.state = RepositoryState()
        self.pending: RepositoryState | None = None
        self.sessions: dict[str, OpenSession] = {}
        self.faults: list[str] = []
        self.acknowledged = 0
        self.cut_changes = 0
        self._wire = wire
        self._random = random.Random(seed)
        self._shared = {digest_of(content): content for content in shared}
        self._contents: dict[str, bytes] = {}
        self._payloads: dict[str, bytes] = {}
        self._connection: http.client.HTTPConnection | None = None

    # The load

    def run(self, stop: threading.Event) -> None:
        """Do one thing after another until told to stop; when a request is cut off, look first what became of it."""
        plan = self._plan()
        try:
            while not stop.is_set():
                try:
                    next(plan)()
                except TimeoutError:
                    self.faults.append(f"{self.repository}: no answer within {REPLY_SECONDS} s")
                    return
                except CUT:
                    self._settle(stop)
        except AssertionError as error:
            self.faults.append(f"{self.repository}: {error}")
        finally:
            self.disconnect()

    def work(self, steps: int) -> None:
        """Do so many things, with nobody killing anything."""
        for action in itertools.islice(self._plan(), steps):
            action()

    def push_image(self) -> None:
        """Push one image with a config in the database, a layer that is a file, and a tag."""
        contents = [self._random.randbytes(size) for size in (SMALLEST_BYTES, LARGE_BYTES)]
        for content in contents:
            self._push_whole(content)
        config, layer = contents
        payload = encode(manifest_of(descriptor(config, OCI_CONFIG), [descriptor(layer, OCI_LAYER)]))
        self._payloads[digest_of(payload)] = payload
        self._put(payload, TAGS[0])

    def _plan(self) -> Iterator[Callable[[], None]]:
        ways = (self._push, self.put_manifest, self._move_tag, self._mount, self._pull, self.cancel, *self._deletes())
        while True:
            if self._random.random() < 0.1:
                self.disconnect()  # the next request may reach another worker
            (action,) = self._random.choices(ways, (8, 5, 3, 3, 4, 1, 1, 1, 1, 1))
            yield action

    def _deletes(self) -> Sequence[Callable[[], None]]:
        return (self.delete_tag, self.delete_manifest, self.delete_blob, self._delete_blob_in_use)

    def _settle(self, stop: threading.Event) -> None:
        """Find out which side of the cut request the registry is on; it must be one of the two."""
        while not stop.is_set():
            self.disconnect()
            try:
                self.verify()
            except CUT:
                time.sleep(0.05)
            else:
                return

    # Uploads

    def _push(self) -> None:
        content = self._content()
        self._random.choice((self.push_in_parts, self._push_whole, self.push_at_once, self.begin))(content)

    def push_in_parts(self, content: bytes) -> None:
        """As docker does: POST, PATCH in chunked frames, PUT without a body."""
        location = self._start(content)
        self._append(location, content)
        self._commit(location, content, b"")

    def _push_whole(self, content: bytes) -> None:
        self._commit(self._start(content), content, content)

    def push_at_once(self, content: bytes) -> None:
        after = self._with_blob(content)
        self._change(after, 201, "POST", f"blobs/uploads/?digest={digest_of(content)}", content)

    def begin(self, content: bytes) -> None:
        """Leave a session open in the middle."""
        self._append(self._start(content), content[: len(content) // 2])

    def _start(self, content: bytes) -> str:
        answer = self._ask("POST", "blobs/uploads/", b"", expect=(202,))
        self.sessions[answer.location] = OpenSession(content)
        return answer.location

    def _append(self, location: str, part: bytes) -> None:
        self._ask("PATCH", location, _frames(part), expect=(202,))
        self.sessions[location].acknowledged += len(part)

    def _commit(self, location: str, content: bytes, body: bytes) -> None:
        self.sessions[location].ending = True
        self._change(self._with_blob(content), 201, "PUT", f"{location}?digest={digest_of(content)}", body)
        del self.sessions[location]

    def cancel(self) -> None:
        """End a session without a commit."""
        if open_sessions := [location for location, session in self.sessions.items() if not session.ending]:
            location = self._random.choice(open_sessions)
            self.sessions[location].ending = True
            self._ask("DELETE", location, expect=(204,))
            del self.sessions[location]
            self._ask("GET", location, expect=(404,))

    def _mount(self) -> None:
        digest, content = self._random.choice(list(self._shared.items()))
        source = (
            f"&from={self._random.choice(self.neighbours)}" if self.neighbours and self._random.random() < 0.7 else ""
        )
        self.pending = self._with_blob(content)
        answer = self._ask("POST", f"blobs/uploads/?mount={digest}{source}", b"", expect=(201, 202))
        if answer.status == 201:
            self.state = self.pending
        else:
            self.sessions[answer.location] = OpenSession(content)
        self.pending = None

    # Manifests and tags

    def put_manifest(self) -> None:
        if not self.state.blobs:
            return
        config, *layers = (self._contents[digest] for digest in self._sample(self.state.blobs, 4))
        document = manifest_of(
            descriptor(config, OCI_CONFIG),
            [descriptor(layer, OCI_LAYER) for layer in layers],
            annotations={"random": f"{self._random.getrandbits(64):x}"},
        )
        payload = encode(document)
        self._payloads[digest_of(payload)] = payload
        self._put(payload, self._random.choice((*TAGS, digest_of(payload))))

    def _move_tag(self) -> None:
        if self.state.manifests:
            self.tag(self._one(self.state.manifests), self._random.choice(TAGS))

    def tag(self, digest: str, tag: str) -> None:
        """Have a tag name a manifest that was pushed before."""
        self._put(self._payloads[digest], tag)

    def _put(self, payload: bytes, target: str) -> None:
        after = self.state.copy()
        after.manifests.add(digest_of(payload))
        if ":" not in target:
            after.tags[target] = digest_of(payload)
        self._change(after, 201, "PUT", f"manifests/{target}", payload)

    def _pull(self) -> None:
        if not self.state.tags:
            return
        tag = self._one(self.state.tags)
        answer = self._ask("GET", f"manifests/{tag}", expect=(200,))
        assert digest_of(answer.body) == self.state.tags[tag], f"GET {tag} is not what was put last"
        self._get_blob(json.loads(answer.body)["config"]["digest"])

    def _get_blob(self, digest: str) -> bool:
        answer = self._ask("GET", f"blobs/{digest}", expect=(200, 404))
        assert answer.status == 404 or answer.body == self._contents[digest], f"GET {digest}: other bytes"
        return answer.status == 200

    # Deletes

    def delete_tag(self) -> None:
        if self.state.tags:
            tag = self._one(self.state.tags)
            after = self.state.copy()
            del after.tags[tag]
            self._change(after, 202, "DELETE", f"manifests/{tag}")

    def delete_manifest(self) -> None:
        if self.state.manifests:
            self._delete_manifest(self._one(self.state.manifests))

    def delete_untagged(self) -> None:
        """Delete the manifests that no tag names."""
        for digest in sorted(self.state.manifests.difference(self.state.tags.values())):
            self._delete_manifest(digest)

    def delete_unused(self) -> None:
        """Delete the blobs that no manifest names."""
        while self.state.blobs - self._blobs_in_use():
            self.delete_blob()

    def delete_all(self) -> None:
        """Delete everything."""
        while self.state.manifests:
            self.delete_manifest()
        self.delete_unused()

    def _delete_manifest(self, digest: str) -> None:
        after = self.state.copy()
        after.manifests.discard(digest)
        after.tags = {tag: named for tag, named in after.tags.items() if named != digest}
        self._change(after, 202, "DELETE", f"manifests/{digest}")

    def delete_blob(self) -> None:
        if unused := self.state.blobs - self._blobs_in_use():
            digest = self._one(unused)
            after = self.state.copy()
            after.blobs.discard(digest)
            self._change(after, 202, "DELETE", f"blobs/{digest}")

    def _delete_blob_in_use(self) -> None:
        if used := self._blobs_in_use():
            self._ask("DELETE", f"blobs/{self._one(used)}", expect=(405,))

    def _blobs_in_use(self) -> set[str]:
        documents = [json.loads(self._payloads[digest]) for digest in self.state.manifests]
        return {item["digest"] for document in documents for item in (document["config"], *document["layers"])}

    # Afterwards

    def verify(self) -> None:
        """Read all that was ever pushed; assert that it is the state before or after the request that was cut off."""
        seen = self.observe()
        self.cut_changes += self.pending is not None
        allowed = [self.state] if self.pending is None else [self.state, self.pending]
        assert seen in allowed, f"{self.repository}\nholds    {seen}\nexpected {' or '.join(map(str, allowed))}"
        self.state, self.pending = seen, None

    def observe(self) -> RepositoryState:
        """Return what the repository holds by its own answers, every byte compared."""
        seen = RepositoryState(blobs={digest for digest in self._contents if self._get_blob(digest)})
        for digest, payload in self._payloads.items():
            answer = self._ask("GET", f"manifests/{digest}", expect=(200, 404))
            if answer.status == 200:
                assert answer.body == payload, f"GET {digest}: other bytes"
                seen.manifests.add(digest)
        for tag in TAGS:
            answer = self._ask("GET", f"manifests/{tag}", expect=(200, 404))
            if answer.status == 200:
                seen.tags[tag] = digest_of(answer.body)
        answer = self._ask("GET", "tags/list", expect=(200, 404))
        listed = json.loads(answer.body)["tags"] if answer.status == 200 else []
        assert sorted(seen.tags) == sorted(listed or []), f"listed {listed}, readable {sorted(seen.tags)}"
        return seen

    def resume(self) -> None:
        """Go on with every session that was left open: what was acknowledged is there, and the rest can follow.

        One whose end was cut off may be over; if it is not, it is whole as well.
        """
        for location, session in list(self.sessions.items()):
            answer = self._ask("GET", location, expect=(204, 404) if session.ending else (204,))
            if answer.status == 404:
                del self.sessions[location]
                continue
            end = int(answer.range.rpartition("-")[2])
            offset = end + 1 if end else 0  # 0-0 stands for nothing; no client here sends a single byte
            assert session.acknowledged <= offset, f"{location}: {offset} of {session.acknowledged} bytes"
            assert offset <= len(session.content), f"{location}: more bytes than were sent"
            self._commit(location, session.content, session.content[offset:])

    def push_again(self) -> None:
        """Push all that the repository holds once more, as a client does that does not know it: it is taken (V9)."""
        for digest in sorted(self.state.blobs):
            self._push_whole(self._contents[digest])
        for tag, digest in sorted(self.state.tags.items()):
            self._put(self._payloads[digest], tag)

    # One request

    def _change(self, after: RepositoryState, status: int, method: str, path: str, body: bytes | None = None) -> None:
        """Send a request that leads to the state `after`, and keep that once it was acknowledged."""
        self.pending = after
        self._ask(method, path, body, expect=(status,))
        self.state, self.pending = after, None

    def _ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, *, expect: Sequence[int]
    ) -> Answer:
        target = path if path.startswith("/") else f"/v2/{self.repository}/{path}"
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._wire.host, self._wire.port, timeout=REPLY_SECONDS)
        headers = {"Content-Type": OCI_MANIFEST if "/manifests/" in target else "application/octet-stream"}
        self._connection.request(method, target, body, headers, encode_chunked=isinstance(body, Iterator))
        response = self._connection.getresponse()
        answer = Answer(
            response.status, response.headers.get("Location", ""), response.headers.get("Range", ""), response.read()
        )
        assert answer.status in expect, f"{method} {target}: {answer.status} {answer.body!r}, expected {expect}"
        self.acknowledged += 1
        return answer

    def disconnect(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # What to send

    def _content(self) -> bytes:
        if self._random.random() < 0.3:
            return self._random.choice(list(self._shared.values()))
        return some_content(self._random)

    def _with_blob(self, content: bytes) -> RepositoryState:
        self._contents[digest_of(content)] = content
        after = self.state.copy()
        after.blobs.add(digest_of(content))
        return after

    def _one(self, names: set[str] | dict[str, str]) -> str:
        return self._random.choice(sorted(names))

    def _sample(self, names: set[str], at_most: int) -> list[str]:
        return self._random.sample(sorted(names), self._random.randint(1, min(at_most, len(names))))


def some_content(source: random.Random) -> bytes:
    """Return content for the database or for a file, often at the border between the two."""
    sizes = (
        source.randint(SMALLEST_BYTES, INLINE_BYTES),
        INLINE_BYTES,
        INLINE_BYTES + 1,
        source.randint(INLINE_BYTES, LARGE_BYTES),
    )
    (size,) = source.choices(sizes, (5, 1, 1, 5))
    return source.randbytes(size)


def new_clients(wire: Wire, count: int, *, prefix: str, seed: str) -> list[Client]:
    """Return clients that share some contents, and mount from each other's repositories."""
    source = random.Random(seed)
    shared = [some_content(source) for _ in range(SHARED_CONTENTS)]
    clients = [
        Client(wire, f"{prefix}/client{number}", seed=f"{seed} {number}", shared=shared) for number in range(count)
    ]
    for client in clients:
        client.neighbours = [other.repository for other in clients if other is not client]
    return clients


class Load:
    """Clients at work in threads, until `stop`."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=client.run, args=(self._stop,)) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let each client finish its request, or notice that it is cut."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def faults(self) -> list[str]:
        """Return what clients saw that no kill explains."""
        return [fault for client in self._clients for fault in client.faults]


def _frames(content: bytes) -> Iterator[bytes]:
    return iter([content[at : at + FRAME_BYTES] for at in range(0, len(content), FRAME_BYTES)])
