"""One worker process, from the fork to its end: an event loop, the application, and uvicorn on the shared sockets."""

import asyncio
import contextlib
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

from lading.logs import event_logger
from lading.oci.errors import StartRefused
from lading.web.http import Http

Application = Callable[[], AbstractAsyncContextManager[ASGIApp]]

READY = b"ready\n"
KEEP_ALIVE_SECONDS = 75
# How long a stopping worker still answers what it has accepted, with `Connection: close`.
DRAIN_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.02
# How long requests that were cancelled at the end of the grace have to tidy up.
CANCEL_SECONDS = 2.0
# A worker whose parent was killed is gone after this long, whatever it is doing.
ORPHAN_SECONDS = 4
ORPHAN_GRACE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker is given: its sockets, its application, and its two pipes to the parent.

    `life` reads EOF when the parent is gone. `status` takes `READY`, or a refusal as `refused` makes it.
    """

    listeners: Sequence[socket.socket]
    application: Application
    grace_seconds: int
    life: int
    status: int


def work(duty: Duty) -> int:
    """Serve until SIGTERM, or until the parent is gone; return the exit code."""
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
    async with duty.application() as application:
        server = _Server(application, duty)
        loop.add_signal_handler(signal.SIGTERM, server.stop)
        loop.add_reader(duty.life, server.stop_as_orphan)
        await server.serve(list(duty.listeners))


class _Server(uvicorn.Server):
    """Uvicorn with our signals, our word to the parent, and a drain that drops nobody."""

    def __init__(self, application: ASGIApp, duty: Duty) -> None:
        super().__init__(_configuration(application, duty.grace_seconds))
        self._duty = duty

    def stop(self) -> None:
        """Stop at the next turn: finish what is in flight, within the grace."""
        self.should_exit = True

    def stop_as_orphan(self) -> None:
        """Stop because the parent was killed: at once, for the next server waits for the lock we hold."""
        asyncio.get_running_loop().remove_reader(self._duty.life)
        signal.alarm(ORPHAN_SECONDS)  # its default action ends a process that hangs, too
        self.config.timeout_graceful_shutdown = min(self._duty.grace_seconds, ORPHAN_GRACE_SECONDS)
        event_logger().error("the parent process is gone; this worker stops", pid=os.getpid())
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the loop handles SIGTERM, and SIGINT is the parent's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, then tell the parent."""
        await super().startup(sockets)
        os.write(self._duty.status, READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close our copy of the listeners, answer what was accepted, then end the rest within the grace."""
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        end = time.monotonic() + DRAIN_SECONDS
        while self.server_state.connections and time.monotonic() < end:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=CANCEL_SECONDS)


def _configuration(application: ASGIApp, grace_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http=Http,
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
