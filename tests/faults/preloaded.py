"""Servers without the second that imports take: thousands of starts are what the proofs of this folder are made of."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.capability.server import HOST, START_SECONDS, STOP_SECONDS, Process, RegistryProcess, until
from tests.faults.injector import Injector, When
from tests.wire import Wire, WireError

TOP = Path(__file__).parents[2]
REQUEST_SECONDS = 60.0
WAIT_POLL_SECONDS = 0.005


class Preloaded:
    """A process with the program imported, which forks one copy of itself for each command (see `preload`).

    `tree` is a folder that holds the package, where that is not the one under test itself. `prefix` is a command to
    start it with, such as one that gives it a mount namespace of its own.
    """

    def __init__(self, *, tree: Path | None = None, prefix: Sequence[str] = ()) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(REQUEST_SECONDS)
        environment = {**os.environ, **({"PYTHONPATH": str(tree)} if tree else {})}
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.faults.preload"], stdin=theirs.fileno(), cwd=TOP, env=environment
            )
        self.pid = self._process.pid
        package = Path(self._answer()["package"])
        assert tree is None or package.is_relative_to(tree), f"imported {package}, not the one in {tree}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.wait(REQUEST_SECONDS)

    def spawn(self, arguments: Sequence[str], environment: Mapping[str, str], output: Sequence[Path]) -> "Spawned":
        """Run `lading` with these arguments, writing to two files, stdout's and stderr's."""
        return self._spawn(arguments, environment, output, filtered=False)[0]

    def spawn_filtered(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: Sequence[Path]
    ) -> tuple["Spawned", int]:
        """Run it with the injector's filter, and return the listener's descriptor as well."""
        spawned, listeners = self._spawn(arguments, environment, output, filtered=True)
        assert listeners, f"the filter could not be installed\n{output[1].read_text()}"
        return spawned, listeners[0]

    def _spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: Sequence[Path], *, filtered: bool
    ) -> tuple["Spawned", list[int]]:
        stdout, stderr = map(str, output)
        self._send(
            arguments=list(arguments), environment=dict(environment), stdout=stdout, stderr=stderr, filtered=filtered
        )
        listeners = socket.recv_fds(self._channel, 1, 1)[1] if filtered else []
        return Spawned(self, self._answer()), listeners

    def wait(self, pid: int, flags: int = 0) -> int | None:
        """Return the exit code of a command; None while it runs, if `flags` say not to wait."""
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


class PreloadedRegistry(RegistryProcess):
    """A server that a preloaded process runs."""

    def __init__(
        self, folder: Path, parent: Preloaded, *, data: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, settings)
        self.data = data or self.data
        # Bound but not listening: the server may listen there, and no connection of another program takes the port
        # while the server is down.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((HOST, 0))
        self.wire = Wire(HOST, self._reserved.getsockname()[1])
        self._parent = parent

    def kill(self) -> None:
        """Kill all of it at once, and wait until all is gone: the next start comes within milliseconds."""
        group = self._process.pid if self._process else None
        super().kill()
        assert group is None or until(lambda: not _has_members(group), seconds=STOP_SECONDS), "it does not die"

    def close(self) -> None:
        """Kill it, and give its port up."""
        self.kill()
        self._reserved.close()

    def start_injected(self, point: int | None = None, when: When | None = None) -> Injector:
        """Start under an injector, armed from the first call if `when` is given; return when ready or killed."""
        assert self._process is None, "the server is running already"
        process, listener = self._parent.spawn_filtered(
            self.command()[1:], self._environment, (self._log, self._errors)
        )
        self._process = process
        injector = Injector(listener, self.data, lambda: os.killpg(process.pid, signal.SIGKILL))
        if when is not None:
            injector.arm(point, when)
        injector.start()
        ready = until(self._ready_or_gone, seconds=START_SECONDS)
        if not ready or (process.poll() is not None and not injector.reached):
            self.kill()
            injector.close()
            raise AssertionError(f"neither ready nor killed by the injector\n{self.output()}")
        return injector

    def run_injected(self, arguments: Sequence[str], point: int | None, when: When) -> Injector:
        """Run another command of `lading` on the data under an injector, armed from the start; wait for its end."""
        process, listener = self._parent.spawn_filtered(
            [*arguments, "--data", str(self.data)], self._environment, self._fresh_output("command")
        )
        injector = Injector(listener, self.data, lambda: os.killpg(process.pid, signal.SIGKILL))
        injector.arm(point, when)
        injector.start()
        code = process.wait()
        injector.close()
        assert injector.reached or code == 0, f"{arguments} ended with {code}\n{self.output()}"
        return injector

    def run(self, arguments: Sequence[str]) -> None:
        """Run another command of `lading` on the data; assert that it succeeds."""
        output = self._fresh_output("command")
        code = self._parent.spawn([*arguments, "--data", str(self.data)], self._environment, output).wait()
        assert code == 0, f"{arguments} ended with {code}\n{output[1].read_text()}"

    def end(self) -> None:
        """Ask it to stop, and wait until it has, by that or by the injector."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS)

    def _ready_or_gone(self) -> bool:
        try:
            return super()._ready_or_gone()
        except WireError:  # killed while it answered
            return False

    def _spawn(self, command: Sequence[str]) -> Process:
        return self._parent.spawn(command[1:], self._environment, (self._log, self._errors))

    def assert_verified(self) -> None:
        """Assert that `lading verify` finds nothing at all in what there is (V1 to V8, V10)."""
        output = self._fresh_output("verify")
        arguments = ["verify", "--data", str(self.data), "--json"]
        code = self._parent.spawn(arguments, self._environment, output).wait()
        stdout, stderr = (path.read_text() for path in output)
        assert code in {0, 1}, f"verify ended with {code}\n{stdout}{stderr}"
        findings = json.loads(stdout)["findings"]
        assert code == 0, findings
        assert not findings, findings

    def _fresh_output(self, name: str) -> tuple[Path, Path]:
        output = self._log.with_name(f"{name}.out"), self._log.with_name(f"{name}.err")
        for path in output:
            path.unlink(missing_ok=True)
        return output


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
