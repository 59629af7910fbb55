"""The program as its operator starts it, with any command, and finds it by what it says itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.capability.preloaded import Preloaded
from tests.capability.server import Process, until
from tests.wire import Wire

HOST = "127.0.0.1"
START_SECONDS = 30.0


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LADING_")} | dict(changes or {})


class Server:
    """A server that is started with any command, and found by what it says itself."""

    def __init__(
        self,
        folder: Path,
        command: list[str],
        environ: Mapping[str, str] | None = None,
        *,
        pass_fds: Sequence[int] = (),
        parent: Preloaded | None = None,
    ) -> None:
        self.folder = folder
        self.process: Process
        self._ready: dict[str, Any] | None = None
        self._stdout = folder / f"stdout-{time.monotonic_ns()}"
        self._stderr = self._stdout.with_suffix(".errors")
        if parent is not None:
            self.process = parent.spawn(command[1:], environment(environ), (self._stdout, self._stderr), folder=folder)
            return
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(environ),
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait for the event `ready` and return it."""
        if self._ready is not None:
            return self._ready
        assert until(lambda: self.events("ready") != [] or self.process.poll() is not None, seconds=START_SECONDS)
        assert self.process.poll() is None, self.output()
        self._ready = self.events("ready")[0]
        return self._ready

    @property
    def port(self) -> int:
        """The port that was picked."""
        port: int = self.wait_until_ready()["port"]
        return port

    @property
    def wire(self) -> Wire:
        """Where to send requests."""
        return Wire(HOST, self.port)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines of events and requests so far."""
        return [json.loads(line) for line in self._stdout.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of one kind of event so far."""
        return [line for line in self.lines() if line["event"] == name]

    def errors(self) -> str:
        """Return what came on standard error."""
        return self._stderr.read_text()

    def output(self) -> str:
        """Return everything it said, for messages."""
        return self._stdout.read_text() + self.errors()

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent alone."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 15.0) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(seconds)

    def kill_all(self) -> None:
        """Kill every process of it that is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Serve = Callable[..., Server]


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, buried by its parent or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class HalfSent:
    """A blob upload of which the server has the head and half of the body."""

    def __init__(self, wire: Wire) -> None:
        self.content = os.urandom(50_000)
        self.location = wire.request("POST", "/v2/slow/blobs/uploads/", body=b"").expect(202)["Location"]
        self.connection = wire.connect()
        self.head = f"PATCH {self.location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(self.content)}\r\n\r\n"
        self.connection.send(self.head.encode() + self.content[:25_000])
        time.sleep(0.2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send_rest(self) -> int:
        """Send the other half and return the status of the answer."""
        self.connection.send(self.content[25_000:])
        return self.connection.read_reply(self.head).status


SUPERVISED = """
import contextlib, sys
from pathlib import Path
from starlette.responses import Response
from lading import logs
from lading.oci.errors import DatabaseUnusable, StartRefused
from lading.settings import load
from lading.web import health, server

@contextlib.asynccontextmanager
async def application(settings):
    {body}
    async def ready():
        {ready}
    async def nothing(_):
        return Response()
    yield health.create(ready=ready, metrics=nothing)

logs.configure("json")
settings = load(None, {{"http.port": 0, "http.workers": 2, **{flags}}}, environ={{}})
def announce(listening):
    logs.event_logger().info("ready", port=listening.addresses[0].port)
try:
    code = server.run(settings, server.Service(lambda alone: None, application, announce, lambda: settings))
except StartRefused as refusal:
    sys.exit(f"{{refusal}}; {{refusal.hint}}")
sys.exit(code)
"""


def supervised(*, body: str = "pass", ready: str = "pass", flags: Mapping[str, object] | None = None) -> list[str]:
    """Return a command that supervises workers whose application does `body` when it is opened."""
    return [sys.executable, "-c", SUPERVISED.format(body=body, ready=ready, flags=dict(flags or {}))]
