"""The program without the second that its imports take: the proofs are made of thousands of starts and commands."""

import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

TOP = Path(__file__).parents[2]
REQUEST_SECONDS = 60.0
WAIT_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command said and how it ended."""

    code: int
    output: str
    errors: str

    def json(self) -> Any:
        """Return the output, parsed."""
        return json.loads(self.output)


class Preloaded:
    """A process with the program imported, which forks one copy of itself for each command (see `preload`).

    `tree` is a folder that holds the package, where that is not the one under test itself. `prefix` is a command to
    start it with, such as one that gives it a mount namespace of its own.
    """

    def __init__(self, *, tree: Path | None = None, prefix: Sequence[str] = ()) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(REQUEST_SECONDS)
        self._turns = threading.Lock()
        environment = {**os.environ, **({"PYTHONPATH": str(tree)} if tree else {})}
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.capability.preload"],
                stdin=theirs.fileno(),
                cwd=TOP,
                env=environment,
            )
        self.pid = self._process.pid
        package = Path(self._answer()["package"])
        assert tree is None or package.is_relative_to(tree), f"imported {package}, not the one in {tree}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.wait(REQUEST_SECONDS)

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path = TOP,
        seconds: float = REQUEST_SECONDS,
    ) -> Outcome:
        """Run `lading` with these arguments to its end; nobody is there to be asked."""
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch, "stdout"), Path(scratch, "stderr")
            code = self.spawn(arguments, environment or os.environ, output, folder=folder).wait(seconds)
            outcome = Outcome(code, *(path.read_text() for path in output))
        assert "Traceback" not in outcome.errors, outcome.errors
        return outcome

    def spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: Sequence[Path], *, folder: Path = TOP
    ) -> "Spawned":
        """Run `lading` with these arguments in a folder, writing to two files, stdout's and stderr's."""
        return self._spawn(arguments, environment, output, folder, filtered=False)[0]

    def spawn_filtered(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: Sequence[Path]
    ) -> tuple["Spawned", int]:
        """Run it with the injector's filter, and return the listener's descriptor as well."""
        spawned, listeners = self._spawn(arguments, environment, output, TOP, filtered=True)
        assert listeners, f"the filter could not be installed\n{output[1].read_text()}"
        return spawned, listeners[0]

    def _spawn(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: Sequence[Path],
        folder: Path,
        *,
        filtered: bool,
    ) -> tuple["Spawned", list[int]]:
        for path in output:
            path.touch()
        stdout, stderr = map(str, output)
        with self._turns:
            self._send(
                arguments=list(arguments),
                environment=dict(environment),
                folder=str(folder),
                stdout=stdout,
                stderr=stderr,
                filtered=filtered,
            )
            listeners = socket.recv_fds(self._channel, 1, 1)[1] if filtered else []
            return Spawned(self, self._answer()), listeners

    def wait(self, pid: int, flags: int = 0) -> int | None:
        """Return the exit code of a command; None while it runs, if `flags` say not to wait."""
        with self._turns:
            self._send(wait=pid, flags=flags)
            code: int | None = self._answer()
        return code

    def _send(self, **request: object) -> None:
        self._channel.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self) -> Any:
        line = b""
        while not line.endswith(b"\n"):
            piece = self._channel.recv(4096)
            assert piece, "the preloaded process is gone; its message stands above"
            line += piece
        return json.loads(line)


@functools.cache
def shared() -> Preloaded:
    """Return the one for all that this test process starts; it ends with it."""
    program = Preloaded()
    atexit.register(program.__exit__)
    return program


class Spawned:
    """A command that a preloaded process runs, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, parent: Preloaded, pid: int) -> None:
        self.pid = pid
        self._parent = parent
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self._code is None:
            self._code = self._parent.wait(self.pid, os.WNOHANG)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended."""
        end = time.monotonic() + (REQUEST_SECONDS if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("lading", timeout or REQUEST_SECONDS)
            time.sleep(WAIT_POLL_SECONDS)
        return code

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)
