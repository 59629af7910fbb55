"""The processes of a run: the registry under test, and the daemons of clients that have one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.capability.server import LADING, RegistryProcess

STARTED_WITHIN_SECONDS = 60
STOPPED_WITHIN_SECONDS = 20


class DaemonFailedError(Exception):
    """A daemon did not start."""


@contextmanager
def lading(scratch: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a fresh Lading and give its HOST:PORT; when the context closes it must stop cleanly, without a fault."""
    if not Path(LADING[0]).exists():
        raise DaemonFailedError(f"there is no lading beside {sys.executable}: `make setup`, then use .venv/bin/python")
    registry = RegistryProcess(scratch, settings)
    try:
        registry.start()
        yield f"{registry.wire.host}:{registry.wire.port}"
        registry.stop()
    finally:
        registry.kill()


@contextmanager
def daemon(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path, answers: Callable[[], bool]
) -> Iterator[None]:
    """Run a client's daemon until the context closes, from the moment at which it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + STARTED_WITHIN_SECONDS
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise DaemonFailedError(f"`{command[0]}` does not run:\n{last}")
            time.sleep(0.2)
        yield
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPPED_WITHIN_SECONDS)
    finally:
        # What it has started itself leads no session of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards, whatever happened."""
    folder = Path(tempfile.mkdtemp(prefix="lading-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
