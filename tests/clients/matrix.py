"""The matrix: each client does each operation against a running registry, and the bytes and digests are compared.

    python -m tests.clients.matrix [--registry HOST:PORT] [--only docker,crane]

Without --registry a fresh Lading is started. The exit code is 1 if any cell is not what the table below expects.
"""

import argparse
import http.client
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.clients import docker_findings
from tests.clients.buildah import Buildah
from tests.clients.client import Client, CommandFailedError, NotOfferedError
from tests.clients.containerd import Containerd
from tests.clients.crane import Crane
from tests.clients.docker import Docker
from tests.clients.helm import Helm
from tests.clients.operations import Operation, Operations
from tests.clients.oras import Oras
from tests.clients.podman import Podman
from tests.clients.processes import DaemonFailedError, lading, scratch_folder
from tests.clients.recorder import Recorder
from tests.clients.regctl import Regctl
from tests.clients.registry import MismatchError, Registry
from tests.clients.skopeo import Skopeo

CLIENTS: tuple[type[Client], ...] = (Docker, Containerd, Podman, Buildah, Skopeo, Crane, Oras, Regctl, Helm)


class Outcome(Enum):
    """What a cell came to."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_OFFERED = "not offered"


# Everything that is not here must be ok; what is here must not be, or the client has learned it and the table is old.
NOT_OFFERED: dict[tuple[str, Operation], str] = {
    ("docker", Operation.DELETE): "`docker rmi` deletes on this machine only; there is no command for a registry",
    ("containerd", Operation.DELETE): "`ctr images rm` deletes on this machine only",
    ("podman", Operation.DELETE): "`podman rmi` and `podman manifest rm` delete on this machine only",
    ("buildah", Operation.DELETE): "`buildah rmi` deletes on this machine only",
    ("helm", Operation.DELETE): "helm 4 pushes and pulls; it has no command that deletes",
    ("helm", Operation.MULTI_ARCH): "a chart is the same on every platform",
    ("helm", Operation.MOUNT): "a chart is always pushed from its file, and helm asks for no mount",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One outcome, how long it took, and why it is what it is."""

    outcome: Outcome
    seconds: float
    reason: str = ""


@dataclass(slots=True)
class Line:
    """What became of one client: its cells by name, the columns first."""

    version: str
    cells: dict[str, Cell]


def exercise(client: Client, registry: Registry) -> Line:
    """Let one client go through all operations, and docker through its findings."""
    # Each has a port of its own: podman, buildah and skopeo remember for each host and port which repository holds a
    # layer, and would mount what another one of them has pushed.
    with Recorder(registry.address) as recorder:
        return _exercise(client, registry, recorder)


def _exercise(client: Client, registry: Registry, recorder: Recorder) -> Line:
    # A registry that was running before may hold what an earlier run pushed; a push must find nothing there.
    namespace = f"matrix-{secrets.token_hex(3)}"
    operations = Operations(client, registry, recorder, namespace)
    steps = {operation.value: step for operation, step in operations.steps().items()}
    if isinstance(client, Docker):
        steps |= docker_findings.steps(client, registry, recorder, namespace)
    line = Line("", {})
    try:
        with client.running():
            line.version = client.version()
            client.prepare()
            for name, step in steps.items():
                line.cells[name] = attempt(step)
                _print_cell(client, name, line.cells[name])
    except (CommandFailedError, DaemonFailedError) as error:
        unreached = [name for name in steps if name not in line.cells]
        for name in unreached:
            line.cells[name] = Cell(Outcome.FAILED, 0, str(error))
            _print_cell(client, name, line.cells[name])
    return line


def attempt(step: Callable[[], None]) -> Cell:
    """Do one step and tell what it came to."""
    began = time.monotonic()
    outcome, reason = Outcome.OK, ""
    try:
        step()
    except NotOfferedError:
        outcome = Outcome.NOT_OFFERED
    except (CommandFailedError, MismatchError, http.client.HTTPException, OSError, LookupError, ValueError) as error:
        outcome, reason = Outcome.FAILED, str(error) or repr(error)
    return Cell(outcome, time.monotonic() - began, reason)


def expected(client: str, step: str) -> Outcome:
    """Return what the table demands of a cell."""
    names = {(who, operation.value) for who, operation in NOT_OFFERED}
    return Outcome.NOT_OFFERED if (client, step) in names else Outcome.OK


def _print_cell(client: Client, name: str, cell: Cell) -> None:
    print(f"{client.name:<11} {cell.outcome.value:<12} {cell.seconds:6.1f} s  {name}", flush=True)
    if cell.reason:
        print("    " + cell.reason.strip().replace("\n", "\n    "), flush=True)


def print_table(lines: dict[str, Line]) -> None:
    """Print the matrix, and below it what was asked of docker beside it."""
    columns = [operation.value for operation in Operation]
    print(f"\n{'':<26}" + "".join(f"{column:<13}" for column in columns))
    for client, line in lines.items():
        name = f"{client} {line.version}"
        print(f"{name:<26}" + "".join(f"{line.cells[column].outcome.value:<13}" for column in columns))
    print()
    for client, line in lines.items():
        for name in [name for name in line.cells if name not in columns]:
            print(f"{client}: {name}: {line.cells[name].outcome.value}")


def main() -> int:
    """Run the matrix and return the exit code."""
    known = {client.name: client for client in CLIENTS}
    parser = argparse.ArgumentParser(prog="tests.clients.matrix", description="Real clients against a registry.")
    parser.add_argument("--registry", metavar="HOST:PORT", help="use this running registry, which must allow deletes")
    parser.add_argument("--only", metavar="NAME,...", default=",".join(known), help="of: %(default)s")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(known)}")
    if os.geteuid() != 0:
        parser.error("the engines of docker, podman, buildah and containerd need root here: run this as root")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    lines: dict[str, Line] = {}
    trouble = 0
    try:
        run([known[name] for name in chosen], arguments.registry, lines)
    except (AssertionError, DaemonFailedError) as error:
        trouble = 1
        print(f"The registry under test: {error}")
    print_table(lines)
    cells = [(who, name, cell) for who, line in lines.items() for name, cell in line.cells.items()]
    wrong = [(who, name, cell) for who, name, cell in cells if cell.outcome != expected(who, name)]
    for who, name, cell in wrong:
        print(f"{who}, {name}: {cell.outcome.value}, expected {expected(who, name).value}")
    print(f"\n{len(lines)} clients in {time.monotonic() - began:.0f} s")
    print(f"{len(cells) - len(wrong)} passed, {len(wrong) + trouble} failed")
    return 1 if wrong or trouble else 0


def run(chosen: list[type[Client]], address: str | None, lines: dict[str, Line]) -> None:
    """Let each client in turn go through everything, and add its line; without an address a fresh Lading serves."""
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        clients = [client(_subfolder(scratch, client.name)) for client in chosen]
        if missing := [f"{program} ({client.name})" for client in clients for program in client.missing()]:
            sys.exit(f"Not installed: {', '.join(missing)}. `tests/clients/install clients` installs them.")
        registry = Registry(address or stack.enter_context(lading(scratch)))
        for client in clients:
            lines[client.name] = exercise(client, registry)
            # A store without a file system's help keeps each layer several times: not all clients' at once.
            shutil.rmtree(client.scratch, ignore_errors=True)


def _subfolder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
