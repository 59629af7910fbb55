"""The sending side of a connection: bytes within the transport's bounds, and files by `sendfile` past it."""

import asyncio
import math
import os
import socket

from lading.oci.errors import ClientGone

SEND_SECONDS = 60.0
_HIGH_WATER_BYTES = 64 * 1024
_MOST_AT_ONCE_BYTES = 4 * 1024 * 1024


class Outlet:
    """Sends on one connection, one thing after the other."""

    __slots__ = ("_loop", "_paused", "_sending", "_socket", "_transport", "_waiter", "can_send_files", "gone")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._sending: _FileSending | None = None
        self._socket: socket.socket | None = None
        self.gone = False
        self.can_send_files = transport.get_extra_info("sslcontext") is None
        """Whether bytes may pass the transport by: not where it encrypts them."""

    @property
    def stalls_at(self) -> float:
        """When, in the loop's time, a client that takes nothing of a file has waited too long."""
        return math.inf if self._sending is None else self._sending.moved_at + SEND_SECONDS

    async def write(self, data: bytes) -> None:
        """Write, once what was written before has been taken. Nothing happens when the client has gone."""
        while self._paused and not self.gone:
            await self._resumed()
        if not self.gone:
            self._transport.write(data)

    async def send_file(self, head: bytes, file: int, offset: int, count: int) -> None:
        """Send `head`, then `count` bytes of the file at `offset`.

        Raises:
            ClientGone: the connection ended first.
            OSError: the file is shorter; the connection has to be cut.

        """
        await self._flushed()
        if self.gone:
            raise ClientGone
        if self._socket is None:
            original = self._transport.get_extra_info("socket")
            # Of our own, as uvloop lets nobody watch a descriptor that it watches.
            self._socket = socket.socket(original.family, original.type, original.proto, os.dup(original.fileno()))
        self._sending = _FileSending(self._loop, self._socket, head, (file, offset, count))
        try:
            await self._sending.run()
        finally:
            self._sending = None

    def finish_files(self) -> None:
        """Close what `send_file` needed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def pause(self) -> None:
        """Hold back writes: the transport has enough."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._wake()

    def lose(self) -> None:
        """End all waiting: the client has gone."""
        self.gone = True
        self._wake()
        if self._sending is not None:
            self._sending.lose()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _resumed(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    async def _flushed(self) -> None:
        """Wait until nothing of what was written is left in the transport."""
        if not self._transport.get_write_buffer_size():
            return
        self._transport.set_write_buffer_limits(high=0)
        try:
            while self._transport.get_write_buffer_size() and not self.gone:
                await self._resumed()
        finally:
            if not self.gone:
                self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)


class _FileSending:
    """One file on its way: as much as the socket takes, each time it can take some."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, out: socket.socket, head: bytes, part: tuple[int, int, int]
    ) -> None:
        self._loop = loop
        self._out = out
        self._head = head
        self._file, self._offset, self._left = part
        self._done: asyncio.Future[None] = loop.create_future()
        self.moved_at = loop.time()

    async def run(self) -> None:
        self._push()
        if self._done.done():
            return self._done.result()
        self._loop.add_writer(self._out.fileno(), self._push)
        try:
            await self._done
        finally:
            self._loop.remove_writer(self._out.fileno())

    def lose(self) -> None:
        """End it: the client has gone."""
        if not self._done.done():
            self._done.set_exception(ClientGone())

    def _push(self) -> None:
        if self._done.done():
            return
        try:
            self._push_some()
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.lose()
        except OSError as error:
            self._done.set_exception(error)

    def _push_some(self) -> None:
        """Send once: a call for each turn of the loop is fair to all others."""
        if self._head:
            sent = self._out.send(self._head, socket.MSG_MORE if self._left else 0)
            self._head = self._head[sent:]
        if not self._head and self._left:
            sent = os.sendfile(self._out.fileno(), self._file, self._offset, min(self._left, _MOST_AT_ONCE_BYTES))
            if not sent:
                raise OSError("the object ended before its recorded size")
            self._offset += sent
            self._left -= sent
        self.moved_at = self._loop.time()
        if not (self._head or self._left):
            self._done.set_result(None)
