"""One request and its reply, as ASGI sees them: the scope, `receive` and `send`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from starlette.types import Message, Scope
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl

from lading.web.http_body import Incoming, Views
from lading.web.http_head import Head
from lading.web.http_outlet import Outlet
from lading.web.http_reply import HttpReply

VIEWS = "lading.http.request.views"
"""The extension that offers another `receive`: its messages have `views` of the body, valid until its next call."""

FLUSH_SECONDS = 1.0
_MAPPED = "::ffff:"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_GONE: Message = {"type": "http.disconnect"}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Who talks to whom, the same for all requests of a connection."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    scheme: str

    @classmethod
    def of(cls, transport: asyncio.Transport) -> Self:
        """Return those of a connection; a client that came by IPv4 to a socket for both has its IPv4 address."""
        client = get_remote_addr(transport)
        if client is not None and client[0].startswith(_MAPPED) and "." in client[0]:
            client = (client[0].rpartition(":")[2], client[1])
        return cls(client, get_local_addr(transport), "https" if is_ssl(transport) else "http")


class Exchange:
    """One request, from its head to the end of its reply."""

    def __init__(
        self,
        head: Head,
        reply: HttpReply,
        outlet: Outlet,
        *,
        loop: asyncio.AbstractEventLoop,
        resume: Callable[[], None],
    ) -> None:
        self.head = head
        self.reply = reply
        self.body = Incoming(head.body_bytes)
        self.gone = False
        """Whether nothing more comes: the client has left, or its body is broken."""
        self.silenced = False
        """Whether what the application sends is thrown away: another reply has taken its place."""
        self._outlet = outlet
        self._loop = loop
        self._resume = resume
        self._continue = head.expects_continue
        self._given_whole = False
        self._impatient = False
        self._waiter: asyncio.Future[None] | None = None

    def scope(self, endpoints: Endpoints) -> Scope:
        """Return the ASGI scope."""
        extensions: dict[str, dict[str, Any]] = {VIEWS: {"receive": self.receive_views}}
        if self._outlet.can_send_files:
            extensions["http.response.zerocopysend"] = {}
        head = self.head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "scheme": endpoints.scheme,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": endpoints.client,
            "server": endpoints.server,
            "state": {},
            "extensions": extensions,
        }

    async def receive(self) -> Message:
        """Return more of the body, or that the client has gone: ASGI's `receive`."""
        views = await self._more()
        if views is None:
            return _GONE
        return {"type": "http.request", "body": b"".join(views), "more_body": not self._given_whole}

    async def receive_views(self) -> Message:
        """Do the same without a copy: `views` in the place of `body`."""
        views = await self._more()
        if views is None:
            return _GONE
        return {"type": "http.request", "views": views, "more_body": not self._given_whole}

    async def send(self, message: Message) -> None:
        """Send more of the reply: ASGI's `send`."""
        if self.silenced:
            return
        if not (self.reply.started or self.body.ended):
            self.reply.keep_alive = False
        await self.reply.send(message)
        if self.reply.ended:
            self._wake()

    def came(self) -> None:
        """Note that something of the body has come, or its end."""
        body = self.body
        if body.ended or body.is_full or (self._impatient and body.has_some):
            self._wake()

    def lose(self) -> None:
        """Note that nothing more will come."""
        self.gone = True
        self._wake()

    async def _more(self) -> Views | None:
        """Return a whole buffer's worth, the rest, or what has come for a while; None when there is nothing more."""
        body = self.body
        if self._given_whole:
            while not (self.gone or self.reply.ended):
                await self._woken()
            return None
        if self._continue and not (self.reply.started or body.has_some):
            self._continue = False
            await self._outlet.write(_CONTINUE)
        if not (body.ended or body.is_full or self.gone):
            await self._fill()
        if self.gone and not (body.has_some or body.ended):
            return None
        self._given_whole = body.ended
        views = body.take()
        if not self._given_whole:
            self._resume()
        return views

    async def _fill(self) -> None:
        timer = self._loop.call_later(FLUSH_SECONDS, self._lose_patience)
        try:
            await self._woken()
        finally:
            timer.cancel()
            self._impatient = False

    def _lose_patience(self) -> None:
        self._impatient = True
        self.came()

    async def _woken(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
