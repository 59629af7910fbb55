"""A registry process as its operator sees it: started, watched, stopped, killed, looked into on disk."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.capability.preloaded import Outcome, Preloaded
from tests.wire import Wire

HOST = "127.0.0.1"
START_SECONDS = 40.0
STOP_SECONDS = 30.0
LADING = (str(Path(sys.executable).with_name("lading")),)
CLOSED = (sys.executable, "-P", str(Path(__file__).with_name("closed.py")))


def until(holds: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    """Ask `holds` again and again until it is true, and tell whether it was within `seconds`."""
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


class Process(Protocol):
    """What a test asks of a running program; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""
        ...


class RegistryProcess:
    """One server with its own data directory, which outlives its restarts; run by a preloaded `parent` if there is."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = LADING,
        workers: int = 2,
        *,
        parent: Preloaded | None = None,
    ) -> None:
        self.data = folder / "data"
        self.wire = Wire(HOST, _free_port())
        self._log = folder / "stdout.log"
        self._errors = folder / "stderr.log"
        self._program = program
        self._parent = parent
        self._workers = workers
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
        self._environment = {**kept, "LADING_LOG__FORMAT": "json", **(settings or {})}
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process id of the parent of the workers."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and neither stopped nor killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start and wait until it says that it is ready."""
        assert self._process is None, "the server is running already"
        self._process = self._spawn(self.command())
        if not until(self._ready_or_gone, seconds=START_SECONDS) or self._process.poll() is not None:
            self.kill()
            raise AssertionError(f"the server did not become ready\n{self.output()}")

    def start_whole(self) -> None:
        """Start, and wait for all workers: what a test does to files must not meet one that still opens them."""
        earlier = self._times_ready()
        RegistryProcess.start(self)
        assert until(lambda: self._times_ready() > earlier), self.output()

    def _times_ready(self) -> int:
        return self._log.read_text().count('"event": "ready"') if self._log.exists() else 0

    def command(self) -> list[str]:
        """Return the command that starts it."""
        command = [*self._program, "serve", "--data", str(self.data), "--host", HOST, "--port", str(self.wire.port)]
        return [*command, "--workers", str(self._workers)]

    def _spawn(self, command: Sequence[str]) -> Process:
        if self._parent is not None:
            return self._parent.spawn(command[1:], self._environment, (self._log, self._errors))
        with self._log.open("ab") as log, self._errors.open("ab") as errors:
            return subprocess.Popen(command, stdout=log, stderr=errors, env=self._environment, start_new_session=True)

    def _ready_or_gone(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            return self.wire.request("GET", "/readyz").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Ask it to stop; assert that it does so cleanly, and that nothing went wrong while it ran."""
        assert self._process is not None, "the server is not running"
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop within {STOP_SECONDS} s\n{self.output()}") from None
        self._process = None
        assert code == 0, f"the server ended with {code}\n{self.output()}"
        self.assert_untroubled()

    def kill(self) -> None:
        """Kill parent and workers at once, without a chance to tidy up; does nothing if it is not running."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def run(self, *arguments: str) -> Outcome:
        """Run another command of `lading` on the data directory."""
        assert self._parent is not None, "only what a preloaded process runs has commands"
        return self._parent.run(*arguments, "--data", str(self.data), environment=self._environment)

    def do(self, *arguments: str) -> Outcome:
        """Run it, and assert that it succeeds."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome
        return outcome

    def output(self) -> str:
        """Return the end of what the server wrote, for messages."""
        return "".join(f"--- {path.name}\n{path.read_text()[-6000:]}\n" for path in (self._log, self._errors))

    def access_log(self) -> list[dict[str, Any]]:
        """Return the access log: one object for each request that was answered."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == "request"]

    def assert_untroubled(self) -> None:
        """Assert that no request was answered 5xx and that nothing was raised unhandled."""
        faults = [entry for entry in self.access_log() if entry["status"] >= 500]
        assert not faults, f"answered with a fault: {faults}\n{self.output()}"
        assert "Traceback" not in self._log.read_text() + self._errors.read_text(), f"a traceback\n{self.output()}"

    def objects_of(self, digest: str) -> list[Path]:
        """Return the object files that hold the blob `digest`."""
        encoded = digest.partition(":")[2]
        return [path for path in (self.data / "objects" / encoded[:2]).glob(f"{encoded}.*") if path.is_file()]

    def staging_files(self) -> list[Path]:
        """Return the files of unfinished uploads."""
        return [path for path in (self.data / "uploads").rglob("*") if path.is_file()]

    def tree(self) -> list[int]:
        """Return the process ids of the parent and of all below it."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(stat.parent.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def peak_memory_bytes(self) -> int:
        """Return the sum of the highest resident sizes that the processes have had so far."""
        return sum(_status_kib(pid, "VmHWM") for pid in self.tree()) * 1024

    def peak_memory_of_workers(self) -> list[int]:
        """Return the highest resident size, in bytes, that each worker has had so far."""
        return [_status_kib(pid, "VmHWM") * 1024 for pid in self.tree()[1:]]

    def open_files(self) -> list[str]:
        """Return what the open descriptors of all processes point at."""
        targets = []
        for pid in self.tree():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):
                    targets.append(str(descriptor.readlink()))
        return targets


class ClosedRegistry(RegistryProcess):
    """A server that wants a token for everything, with rights that a test hands out while it runs."""

    def __init__(self, folder: Path) -> None:
        self._tokens = folder / "tokens.json"
        self._tokens.write_text("{}")
        super().__init__(folder, {"CLOSED_TOKENS": str(self._tokens)}, CLOSED)

    def allow(self, rights: Mapping[str, Sequence[str]], *, seconds: float = 3600.0) -> tuple[tuple[str, str], ...]:
        """Make a token that allows these actions in each repository, and return the header that shows it."""
        token = secrets.token_hex(16)
        tokens = json.loads(self._tokens.read_text())
        tokens[token] = {"expires_at": time.time() + seconds, "rights": {name: list(rights[name]) for name in rights}}
        replacement = self._tokens.with_suffix(".new")
        replacement.write_text(json.dumps(tokens))
        replacement.replace(self._tokens)
        return (("Authorization", f"Bearer {token}"),)


class StartRegistry(Protocol):
    """The fixture `start_registry`: starts a server of the test's own."""

    def __call__(self, settings: Mapping[str, str] | None = None) -> RegistryProcess:
        """Start one with `settings`, environment variables that the server reads, and return it when it is ready."""
        ...


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port


def _status_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
