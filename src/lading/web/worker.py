"""One worker process, from the fork to its end: an event loop, the application, and uvicorn on the shared sockets."""

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import uvicorn
import uvloop
from starlette.types import ASGIApp

from lading import metrics
from lading.logs import event_logger
from lading.metrics import here
from lading.oci.errors import StartRefused
from lading.web.http import HEAD_SECONDS, Http
from lading.web.sockets import BACKLOG
from lading.web.tls import Certificate

Application = AbstractAsyncContextManager[ASGIApp]

READY = b"ready\n"
BEAT = b"beat\n"
BEAT_SECONDS = 1.0
# Whoever finds that a worker hangs sees where, on standard error.
SHOW_STACK = signal.SIGUSR2
STDERR = 2
KEEP_ALIVE_SECONDS = 75
# How long a stopping worker still answers what it has accepted, with `Connection: close`.
DRAIN_SECONDS = 1.0
POLL_SECONDS = 0.02
# How long requests that were cut off at the end of the grace have to tidy up.
CANCEL_SECONDS = 2.0
# How long a client may take to end a TLS connection that we have ended.
TLS_END_SECONDS = 2.0
# A worker whose parent was killed is gone after this long, whatever it is doing.
ORPHAN_SECONDS = 4
ORPHAN_GRACE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker is given: its sockets, its application, and its two pipes to the parent.

    With a certificate the TCP sockets speak TLS; Unix sockets, which are for proxies on this machine, do not.
    `life` reads EOF when the parent is gone. `status` takes `READY`, `BEAT`, or a refusal as `refused` makes it.
    """

    listeners: Sequence[socket.socket]
    certificate: Certificate | None
    application: Application
    grace_seconds: int
    life: int
    status: int


def work(duty: Duty) -> int:
    """Serve until SIGTERM, or until the parent is gone; return the exit code."""
    faulthandler.register(SHOW_STACK, file=STDERR)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(duty))
    except StartRefused as refusal:
        os.write(duty.status, refused(refusal))
        return refusal.exit_code
    except Exception:  # noqa: BLE001 - the last frame of the process: what it does not report is lost
        event_logger().exception("a worker failed")
        return 1
    return 0


def refused(refusal: StartRefused) -> bytes:
    """Return the line that carries `refusal` to the parent."""
    return json.dumps([refusal.message, refusal.hint]).encode() + b"\n"


def refusal_in(line: bytes) -> StartRefused:
    """Return the refusal that `refused` wrote."""
    message, hint = json.loads(line)
    return StartRefused(message, hint)


async def _serve(duty: Duty) -> None:
    loop = asyncio.get_running_loop()
    heart = loop.create_task(_beat(duty.status), name="tell the parent that the loop turns")
    async with duty.application as application:
        server = _Server(application, duty)
        loop.add_signal_handler(signal.SIGTERM, server.stop)
        loop.add_signal_handler(signal.SIGHUP, server.renew_certificate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        loop.add_reader(duty.life, server.stop_as_orphan)
        await server.serve(list(duty.listeners))
    heart.cancel()


async def _beat(status: int) -> None:
    """Let the parent hear that requests are still looked after."""
    os.set_blocking(status, False)
    while True:
        with contextlib.suppress(OSError):  # a parent that does not read has its own watchdog; one that is gone, `life`
            os.write(status, BEAT)
        await asyncio.sleep(BEAT_SECONDS)


class _Server(uvicorn.Server):
    """Uvicorn with our signals, our word to the parent, and a drain that drops nobody."""

    def __init__(self, application: ASGIApp, duty: Duty) -> None:
        super().__init__(_configuration(application, duty.grace_seconds))
        self._duty = duty
        self.servers = []  # until `startup`: SIGTERM may come before it

    def stop(self) -> None:
        """Accept no more, and stop at the next turn: finish what is in flight, within the grace."""
        self._park()
        self.should_exit = True

    def _park(self) -> None:
        """Close our copy of the listeners: the queue stays with those that still accept from it."""
        for server in self.servers:
            server.close()

    def stop_as_orphan(self) -> None:
        """Stop because the parent was killed: at once, for the next server waits for the lock we hold."""
        asyncio.get_running_loop().remove_reader(self._duty.life)
        signal.alarm(ORPHAN_SECONDS)  # its default action ends a process that hangs, too
        self.config.timeout_graceful_shutdown = min(self._duty.grace_seconds, ORPHAN_GRACE_SECONDS)
        event_logger().error("the parent process is gone; this worker stops", pid=os.getpid())
        self.stop()

    def renew_certificate(self) -> None:
        """Present the certificate that the parent has found to be new and good."""
        if self._duty.certificate is None:
            return
        try:
            self._duty.certificate.renew()
        except StartRefused as refusal:  # it has changed again; the parent will see that, too
            event_logger().warning("a worker keeps the old TLS certificate", pid=os.getpid(), reason=refusal.message)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the loop handles SIGTERM, and SIGINT is the parent's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, then tell the parent."""
        self.servers = [await self._accept_from(listener) for listener in sockets or ()]
        self.started = True
        os.write(self._duty.status, READY)

    async def _accept_from(self, listener: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(self._protocol, sock=listener, backlog=BACKLOG)
        if self._duty.certificate is None:
            return await loop.create_server(self._protocol, sock=listener, backlog=BACKLOG)
        return await loop.create_server(
            self._protocol,
            sock=listener,
            backlog=BACKLOG,
            ssl=self._duty.certificate.context,
            ssl_handshake_timeout=HEAD_SECONDS,
            ssl_shutdown_timeout=TLS_END_SECONDS,
        )

    def _protocol(self) -> asyncio.BaseProtocol:
        return Http(config=self.config, server_state=self.server_state, app_state={})

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: tell how many connections there are."""
        here.set(metrics.CONNECTIONS, len(self.server_state.connections))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what was accepted, then end the rest within the grace."""
        self._park()
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        # Not among the connections yet are one that was accepted this very moment, and those in their TLS handshake.
        await asyncio.sleep(POLL_SECONDS)
        await _until(lambda: not (state.connections or self._duty.certificate), DRAIN_SECONDS)
        for connection in list(state.connections):
            connection.shutdown()
        grace_seconds = self.config.timeout_graceful_shutdown or 0
        if await _until(lambda: not (state.connections or state.tasks), grace_seconds):
            return
        event_logger().warning("requests did not end within the grace and are cut off", count=len(state.tasks))
        for connection in list(state.connections):
            connection.transport.abort()  # as when a client leaves: what came of an upload is kept
        if not await _until(lambda: not state.tasks, CANCEL_SECONDS):
            for task in state.tasks:
                task.cancel()


async def _until(holds: Callable[[], bool], seconds: float) -> bool:
    """Wait until something holds, at most `seconds`; tell whether it does."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(POLL_SECONDS)
    return held


def _configuration(application: ASGIApp, grace_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=Http,  # type: ignore[arg-type] # a buffered protocol, which uvicorn's own types do not know of
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # clients that try TLS first are ordinary; uvicorn warns of each
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
