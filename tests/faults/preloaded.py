"""Servers and commands that an injector may watch; a preloaded process runs them."""

import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.capability.preloaded import Preloaded
from tests.capability.server import HOST, START_SECONDS, STOP_SECONDS, RegistryProcess, until
from tests.faults.injector import Injector, When
from tests.wire import Wire, WireError


class PreloadedRegistry(RegistryProcess):
    """A server that a preloaded process runs."""

    def __init__(
        self, folder: Path, parent: Preloaded, *, data: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, settings, parent=parent)
        self.data = data or self.data
        # Bound but not listening: the server may listen there, and no connection of another program takes the port
        # while the server is down.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((HOST, 0))
        self.wire = Wire(HOST, self._reserved.getsockname()[1])
        self._preloaded = parent

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
        process, listener = self._preloaded.spawn_filtered(
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
        process, listener = self._preloaded.spawn_filtered(
            [*arguments, "--data", str(self.data)], self._environment, self._fresh_output("command")
        )
        injector = Injector(listener, self.data, lambda: os.killpg(process.pid, signal.SIGKILL))
        injector.arm(point, when)
        injector.start()
        code = process.wait()
        injector.close()
        assert injector.reached or code == 0, f"{arguments} ended with {code}\n{self.output()}"
        return injector

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

    def assert_verified(self) -> None:
        """Assert that `lading verify` finds nothing at all in what there is (V1 to V8, V10)."""
        output = self._fresh_output("verify")
        arguments = ["verify", "--data", str(self.data), "--json"]
        code = self._preloaded.spawn(arguments, self._environment, output).wait()
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
