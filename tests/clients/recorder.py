"""A recording TCP proxy that stands between a client and the registry.

It passes every byte on unchanged and reads along just far enough to know the requests, the answers and how many bytes
of body each carried. So what a client sends is observed, not believed, and the registry needs no part in it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

PIECE_BYTES = 256 * 1024
LONGEST_HEAD_BYTES = 1024 * 1024


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as they passed."""

    method: str
    target: str
    request_body_bytes: int = 0
    status: int = 0
    answer: dict[str, str] = field(default_factory=dict)
    answer_body_bytes: int = 0

    @property
    def path(self) -> str:
        """The path of the target, without its query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; the last of equal names counts."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def is_upload(self) -> bool:
        """Whether this request belongs to the upload of a blob."""
        return self.method in {"POST", "PATCH", "PUT"} and "/blobs/uploads" in self.path

    def __str__(self) -> str:
        return f"{self.method} {self.target} ({self.request_body_bytes} bytes) -> {self.status}"


def uploaded_bytes(exchanges: Iterable[Exchange]) -> int:
    """Count the bytes of body that went into blob uploads."""
    return sum(each.request_body_bytes for each in exchanges if each.is_upload)


class Recorder:
    """The proxy, listening on a free port of the loopback address while the context is open."""

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port = int(port)
        self._exchanges: list[Exchange] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recorder", daemon=True)
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LONGEST_HEAD_BYTES), self._loop
        )
        port = started.result(timeout=10).sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def take(self) -> list[Exchange]:
        """Return what passed since the last call, in the order in which the requests began."""
        taken, self._exchanges = self._exchanges, []
        return taken

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(self._host, self._port, limit=LONGEST_HEAD_BYTES)
        except OSError:
            writer.close()
            return
        waiting: asyncio.Queue[Exchange] = asyncio.Queue()
        # The answers outlive the requests: a registry may answer and close before a body has come to its end.
        requests = asyncio.create_task(_quietly(self._pass_requests(reader, there[1], waiting), there[1]))
        answers = asyncio.create_task(_quietly(_pass_answers(there[0], writer, waiting), writer))
        try:
            # start_server would report a handler that is cancelled at the end of the test as an error.
            with suppress(asyncio.CancelledError):
                await answers
        finally:
            requests.cancel()
            answers.cancel()
            writer.close()
            there[1].close()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: asyncio.Queue[Exchange]
    ) -> None:
        opening = await reader.readexactly(1)
        if not opening.isalpha():
            # A client that tries TLS first must hear from the registry itself that there is none.
            waiting.put_nowait(Exchange("", ""))
            writer.write(opening)
            await _pass_until_end(reader, writer, lambda _: None)
        while True:
            head, first, headers = await _read_head(reader, opening)
            opening = b""
            method, target, _ = first.split(" ", 2)
            exchange = Exchange(method, target)
            self._exchanges.append(exchange)
            waiting.put_nowait(exchange)
            writer.write(head)

            def count(body_bytes: int, exchange: Exchange = exchange) -> None:
                exchange.request_body_bytes += body_bytes

            await _pass_body(reader, writer, headers, count)


async def _pass_answers(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: asyncio.Queue[Exchange]
) -> None:
    while True:
        head, first, headers = await _read_head(reader)
        status = int(first.split(" ", 2)[1])
        if status < 200:
            writer.write(head)
            continue
        # Known before it is passed on: who reads the record after the client ended must find every answer in it.
        exchange = await waiting.get()
        exchange.answer = headers
        exchange.status = status
        writer.write(head)

        def count(body_bytes: int, exchange: Exchange = exchange) -> None:
            exchange.answer_body_bytes += body_bytes

        if exchange.method == "HEAD" or status in {204, 304}:
            continue
        if "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", ""):
            await _pass_until_end(reader, writer, count)
        await _pass_body(reader, writer, headers, count)


async def _read_head(reader: asyncio.StreamReader, opening: bytes = b"") -> tuple[bytes, str, dict[str, str]]:
    head = opening + await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return head, first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _pass_body(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    headers: dict[str, str],
    count: Callable[[int], None],
) -> None:
    if "chunked" not in headers.get("transfer-encoding", ""):
        await _pass_exactly(reader, writer, int(headers.get("content-length", "0")), count)
        await writer.drain()
        return
    while True:
        line = await reader.readuntil(b"\n")
        writer.write(line)
        frame_bytes = int(line.split(b";")[0], 16)
        if frame_bytes == 0:
            break
        await _pass_exactly(reader, writer, frame_bytes, count)
        writer.write(await reader.readexactly(2))
    while line.strip(b"\r\n"):
        line = await reader.readuntil(b"\n")
        writer.write(line)
    await writer.drain()


async def _pass_exactly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int, count: Callable[[int], None]
) -> None:
    while left:
        piece = await reader.read(min(left, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(piece, left)
        count(len(piece))
        left -= len(piece)
        writer.write(piece)
        await writer.drain()


async def _pass_until_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
) -> None:
    while piece := await reader.read(PIECE_BYTES):
        count(len(piece))
        writer.write(piece)
        await writer.drain()
    raise asyncio.IncompleteReadError(b"", None)


async def _quietly(passing: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    # A side that leaves is an ordinary end; the other side is told by closing what leads to it.
    try:
        await passing
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        writer.close()


async def _cancel_all() -> None:
    running = asyncio.all_tasks() - {asyncio.current_task()}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
