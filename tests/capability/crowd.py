"""Many clients at once, half of them on a fresh connection for each request, that note everything that goes wrong."""

import os
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.capability.content import digest_of
from tests.wire import Connection, Wire, WireError

PAUSE_SECONDS = 0.2
UPLOAD_PIECES = 60


class Crowd:
    """Clients that ask for `path` again and again, from the entry of the `with` block to its end.

    A kept connection is given up only where the server's reply says so. Half of the clients pause between requests, so
    that there are idle connections at every moment.
    """

    def __init__(self, wires: Sequence[Wire], path: str, content: bytes, *, fresh: int = 16, kept: int = 16) -> None:
        self.refused: list[str] = []
        self.dropped: list[str] = []
        self.wrong: list[str] = []
        self.answered = 0
        self.slowest_seconds = 0.0
        self._path = path
        self._content = content
        self._over = threading.Event()
        self._count = threading.Lock()
        plan = [(index, keep) for keep, number in ((False, fresh), (True, kept)) for index in range(number)]
        self._clients = [
            threading.Thread(
                target=self._ask,
                args=(wires[index % len(wires)],),
                kwargs={"keep": keep, "pause_seconds": index % 4 // 2 * PAUSE_SECONDS},
            )
            for index, keep in plan
        ]

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for client in self._clients:
            client.join()

    def assert_untroubled(self) -> None:
        """Assert that every request was answered, and rightly."""
        problems = [*self.refused, *self.dropped, *self.wrong]
        assert not problems, f"{len(problems)} of {self.answered} requests went wrong: {problems[:5]}"
        assert self.answered > len(self._clients)

    def _ask(self, wire: Wire, *, keep: bool, pause_seconds: float) -> None:
        connection: Connection | None = None
        while not self._over.is_set():
            began = time.monotonic()
            try:
                connection = connection or wire.connect()
                reply = connection.request("GET", self._path)
            except ConnectionRefusedError as error:
                self.refused.append(repr(error))
                time.sleep(0.05)
                continue
            except (OSError, WireError) as error:
                self.dropped.append(f"{'kept' if keep else 'fresh'}: {error!r}")
                if connection is not None:
                    connection.close()
                    connection = None
                continue
            with self._count:
                self.answered += 1
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
            if (reply.status, reply.body) != (200, self._content):
                self.wrong.append(str(reply))
            if not keep or reply.get("Connection") == "close":
                connection.close()
                connection = None
            self._over.wait(pause_seconds)
        if connection is not None:
            connection.close()


class SlowUpload(threading.Thread):
    """A whole blob in one PUT, whose body takes its time."""

    def __init__(self, wire: Wire, seconds: float) -> None:
        super().__init__()
        self.content = os.urandom(600_000)
        self.status: int | str = "not answered"
        self._wire = wire
        self._pause = seconds / UPLOAD_PIECES
        self._location = wire.request("POST", "/v2/slow/blobs/uploads/", body=b"").expect(202)["Location"]
        self.start()
        time.sleep(3 * self._pause)

    def run(self) -> None:
        """Send a piece after each pause."""
        digest, size = digest_of(self.content), len(self.content) // UPLOAD_PIECES
        head = (
            f"PUT {self._location}?digest={digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(self.content)}\r\n\r\n"
        )
        try:
            with self._wire.connect() as connection:
                connection.send(head.encode())
                for at in range(0, len(self.content), size):
                    time.sleep(self._pause)
                    connection.send(self.content[at : at + size])
                self.status = connection.read_reply(head).status
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            self.status = repr(error)

    def assert_stored(self) -> None:
        """Assert that it was acknowledged and that its bytes come back."""
        self.join()
        assert self.status == 201
        path = f"/v2/slow/blobs/{digest_of(self.content)}"
        assert self._wire.request("GET", path).expect(200).body == self.content
