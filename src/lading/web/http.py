"""The HTTP/1.1 protocol of a connection, at uvicorn's `http=` seam: strict and small.

    waiting for a head -> receiving a body, while the application works -> replying -> waiting for a head, or
    dropping: what still comes is thrown away for a moment, so that the client gets to read the last reply

One request is looked at at a time: what comes behind it stays unread until its reply is whole. It is no
`asyncio.Protocol`: to one of those uvloop would not let us say where bytes are received.
"""

import asyncio
from typing import Any, ClassVar

import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from lading.oci.errors import Busy, ClientGone, Internal, RegistryError, RequestInvalid
from lading.web import errors
from lading.web.http_body import SMALL_BYTES, Incoming
from lading.web.http_crowd import Awaits, Crowd, Seat
from lading.web.http_exchange import Endpoints, Exchange
from lading.web.http_head import MAX_HEAD_BYTES, parse, problem
from lading.web.http_outlet import SEND_SECONDS, Outlet
from lading.web.http_reply import HttpReply, whole_reply

log = structlog.get_logger(__name__)

HEAD_SECONDS = 10.0
_HEAD_END = b"\r\n\r\n"
_MAX_EMPTY_LINES = 4
_MAX_DROPPED_BYTES = 8 * 1024 * 1024
_DROP_SECONDS = 2.0
_LOOK_SECONDS = 10.0

# Bytes lie here only between the loop's two calls for one read, so all connections can share it.
_scratch = memoryview(bytearray(SMALL_BYTES))


class Http(asyncio.BufferedProtocol):
    """One connection."""

    crowd: ClassVar[Crowd] = Crowd()

    transport: asyncio.Transport
    _outlet: Outlet
    _endpoints: Endpoints

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 - uvicorn's signature
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._keep_alive_seconds = config.timeout_keep_alive
        self._state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._seat = Seat(self._overdue, self._make_way)
        self._pending = bytearray()  # of heads that are not parsed yet
        self._looked_at = 0
        self._empty_lines = 0
        self._exchange: Exchange | None = None
        self._body: Incoming | None = None  # of the exchange, until its end has come
        self._receives_in_place = False
        self._paused = False
        self._dropping = False
        self._dropped_bytes = 0

    # What the loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place in the crowd, and give the first head its deadline."""
        self.transport = transport
        self._outlet = Outlet(transport, self._loop)
        self._endpoints = Endpoints.of(transport)
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._seat.deadline = self._loop.time() + HEAD_SECONDS
        if self.crowd.admit(self._seat, self._loop):
            return
        if self.crowd.overflows:
            transport.abort()
        else:
            self._refuse(Busy("too many clients are connected; try again"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - who left, left
        """End what waits for the client."""
        self._state.connections.discard(self)
        self.crowd.leave(self._seat)
        self._dropping = True
        self._outlet.lose()
        if self._exchange is not None:
            self._exchange.lose()

    def eof_received(self) -> None:
        """Let the transport close: no client of a registry half-closes and waits for its reply."""

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - we know better
        """Say where the next bytes go: into the body's buffer, where it has one."""
        room = None if self._body is None or self._dropping else self._body.room()
        self._receives_in_place = room is not None
        return _scratch if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that were received."""
        if self._dropping:
            self._drop(nbytes)
        elif self._body is None:
            self._gather(bytes(_scratch[:nbytes]))
        else:
            try:
                rest = self._body.filled(nbytes) if self._receives_in_place else self._feed(_scratch[:nbytes])
            except RegistryError as error:
                self._refuse(error)
            else:
                self._took_body(rest)

    def pause_writing(self) -> None:
        """Hold back what is to be sent."""
        self._outlet.pause()

    def resume_writing(self) -> None:
        """Send on."""
        self._outlet.resume()

    # What uvicorn calls

    def shutdown(self) -> None:
        """Close now if no request is at work, else after its reply."""
        if self._exchange is None:
            self._close()
        else:
            self._exchange.reply.keep_alive = False

    # Heads

    def _gather(self, data: bytes) -> None:
        """Take bytes that belong to heads; start the request when one is whole and its turn has come."""
        pending = self._pending
        if not pending and self._seat.awaits is Awaits.HEAD:
            self._seat.deadline = min(self._seat.deadline, self._loop.time() + HEAD_SECONDS)
        pending += data
        if self._exchange is not None:
            if len(pending) >= SMALL_BYTES:
                self._pause()
            return
        while pending[:2] == b"\r\n":  # some clients end a body with one (RFC 9112, 2.2)
            del pending[:2]
            self._empty_lines += 1
        if self._empty_lines > _MAX_EMPTY_LINES:
            self._refuse(RequestInvalid("a request begins with its request line"))
            return
        if not pending or pending == b"\r":
            return
        end = pending.find(_HEAD_END, max(0, self._looked_at - len(_HEAD_END)))
        error = problem(pending, self._looked_at) if end < 0 or end > MAX_HEAD_BYTES else None
        self._looked_at = len(pending)
        if error is not None:
            self._refuse(error)
        elif end >= 0:
            end += len(_HEAD_END)
            head = bytes(pending[:end])
            del pending[:end]
            self._start(head)

    def _start(self, raw: bytes) -> None:
        """Hand a request to the application."""
        self._looked_at = self._empty_lines = 0
        try:
            head = parse(raw)
        except RegistryError as error:
            self._refuse(error)
            return
        reply = HttpReply(
            self._outlet,
            self._state.default_headers,
            method=head.method,
            version=head.version,
            keep_alive=head.keep_alive,
        )
        exchange = self._exchange = Exchange(head, reply, self._outlet, loop=self._loop, resume=self._resume)
        now = self._loop.time()
        self._seat.deadline = now + _LOOK_SECONDS
        self._seat.wait_for(Awaits.US, now)
        if not exchange.body.ended:
            self._body = exchange.body
            self._seat.wait_for(Awaits.BODY, now)
            rest, self._pending = bytes(self._pending), bytearray()
            try:
                self._took_body(self._feed(rest))
            except RegistryError as error:
                self._exchange = self._body = None
                self._refuse(error)
                return
        task = self._loop.create_task(self._run(exchange))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    # Bodies

    def _feed(self, data: bytes | memoryview) -> bytes:
        assert self._body is not None, "no body is expected"
        return self._body.feed(bytes(data))

    def _took_body(self, rest: bytes) -> None:
        body, exchange = self._body, self._exchange
        assert body is not None, "no body is expected"
        assert exchange is not None, "no request is at work"
        if body.ended:
            self._body = None
            self._seat.wait_for(Awaits.US, 0.0)
            self._pending += rest
        elif body.is_full:
            self._pause()
        else:
            self._seat.since = self._loop.time()
        exchange.came()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._seat.awaits = Awaits.US
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()
            if self._body is not None:
                self._seat.wait_for(Awaits.BODY, self._loop.time())

    # Replies

    async def _run(self, exchange: Exchange) -> None:
        """Let the application answer, then go on as its reply says."""
        try:
            await self._app(exchange.scope(self._endpoints), exchange.receive, exchange.send)
        except (ClientGone, OSError, TimeoutError) as error:  # the application has logged it
            log.debug("a reply was cut off", error=repr(error))
        except Exception:
            log.exception("fault in the application")
        finally:
            exchange.body.close()
            self._outlet.finish_files()
            self._exchange = self._body = None
            self._state.total_requests += 1
            self._go_on(exchange)

    def _go_on(self, exchange: Exchange) -> None:
        reply = exchange.reply
        if self._dropping:
            return
        if not reply.started:
            self._refuse(Internal())
        elif not reply.ended:
            self.transport.abort()  # a reply that is too short must be seen to be
        elif not exchange.body.ended or (self._pending and not reply.keep_alive):
            self._drop_the_rest()
        elif not reply.keep_alive:
            self._close()
        else:
            now = self._loop.time()
            self._seat.deadline = now + self._keep_alive_seconds
            self._seat.wait_for(Awaits.HEAD, now)
            self._resume()
            if self._pending:
                self._looked_at = 0
                pending, self._pending = bytes(self._pending), bytearray()
                self._gather(pending)

    # Ends

    def _refuse(self, error: RegistryError) -> None:
        """Answer without the application, unless it is answering already, and end the connection."""
        exchange = self._exchange
        if exchange is not None:
            exchange.reply.keep_alive = False
            self._body = None
            exchange.lose()
            if exchange.reply.started:
                self._dropping = True
                return
            exchange.silenced = True
        reply = errors.render(error)
        headers = (*self._state.default_headers, *reply.raw_headers(), errors.API_VERSION)
        self.transport.write(whole_reply(reply.status, headers, reply.body if isinstance(reply.body, bytes) else b""))
        self._drop_the_rest()

    def _drop_the_rest(self) -> None:
        """End our side; throw away what still comes, within bounds, so that the reply is not lost to a reset."""
        self._dropping = True
        self._seat.wait_for(Awaits.US, 0.0)
        self._seat.deadline = self._loop.time() + _DROP_SECONDS
        self._resume()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _drop(self, count: int) -> None:
        self._dropped_bytes += count
        if self._dropped_bytes > _MAX_DROPPED_BYTES:
            self.transport.abort()

    def _close(self) -> None:
        """Close, when the client has taken what was written; it has a deadline for that."""
        self._dropping = True
        self._seat.deadline = self._loop.time() + SEND_SECONDS
        self.transport.close()

    def _overdue(self) -> None:
        """End a connection whose client is too late; but while the application is at work, only it knows."""
        now = self._loop.time()
        if self._exchange is not None and self._outlet.stalls_at > now:
            self._seat.deadline = now + _LOOK_SECONDS
        elif self._exchange is not None or self.transport.is_closing():
            self.transport.abort()
        else:
            self._close()

    def _make_way(self) -> None:
        """End a connection that has said nothing for longer than the others, when its place is needed."""
        self.transport.abort()
