"""The matrix: each client does each operation against a running registry, and the bytes and digests are compared.

    python -m tests.clients.matrix [--registry HOST:PORT] [--only docker,crane]

Without --registry fresh Ladings are started, among them such that want a password. The clients go in two lanes beside
each other. The exit code is 1 if any cell is not what the table below expects. Programs that are dear to build take
part where they are built, or all of them with LADING_FULL=1; those that did not run are named at the end, and count as
nothing.
"""

import argparse
import http.client
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.clients import buildkit, containerd_hosts, cosign, docker_findings
from tests.clients.buildah import Buildah
from tests.clients.buildkit import Buildkit
from tests.clients.client import Client, CommandFailedError, NotOfferedError, Program
from tests.clients.containerd import Containerd
from tests.clients.cosign import Cosign
from tests.clients.crane import Crane
from tests.clients.docker import Docker
from tests.clients.docker_sdk import DockerSdk
from tests.clients.helm import Helm
from tests.clients.lanes import Lane, end_at_a_signal
from tests.clients.locked import READ_BY_ALL, Locked, LockedOperations, locked
from tests.clients.operations import Operation, Operations
from tests.clients.oras import Oras
from tests.clients.oras_py import OrasPy
from tests.clients.podman import Podman
from tests.clients.processes import DaemonFailedError, lading, scratch_folder
from tests.clients.recorder import Recorder
from tests.clients.regctl import Regctl
from tests.clients.registry import MismatchError, Registry
from tests.clients.skopeo import Skopeo

PROGRAMS: tuple[type[Program], ...] = (
    *(Docker, DockerSdk, Containerd, Podman, Buildah, Skopeo, Crane, Oras, OrasPy, Regctl, Helm),
    *(Cosign, Buildkit),
)
# One lane; all others are the second, for podman, buildah and skopeo share a memory of which layer lies where.
ENGINES = {Docker, DockerSdk, Containerd, Buildkit}
FULL = os.environ.get("LADING_FULL", "") not in {"", "0"}
Steps = dict[str, Callable[[], None]]
Made = TypeVar("Made", bound=Program)


class Outcome(Enum):
    """What a cell came to."""

    OK = "ok"
    FAILED = "FAILED"
    NOT_OFFERED = "not offered"


# Everything that is not here must be ok; what is here must not be, or the client has learned it and the table is old.
NOT_OFFERED: dict[tuple[str, str], str] = {
    ("docker-sdk", Operation.DELETE.value): "it speaks to the engine, which deletes on this machine only",
    ("docker-sdk", Operation.MULTI_ARCH.value): "the engine's API makes no manifest lists, docker's command line does",
    ("oras-py", Operation.MULTI_ARCH.value): "it pushes files as one artifact, and makes no index",
    ("oras-py", Operation.MOUNT.value): "what it pushes comes from files, and it asks for no mount",
    ("docker", Operation.DELETE.value): "`docker rmi` deletes on this machine only; there is no command for a registry",
    ("containerd", Operation.DELETE.value): "`ctr images rm` deletes on this machine only",
    ("podman", Operation.DELETE.value): "`podman rmi` and `podman manifest rm` delete on this machine only",
    ("buildah", Operation.DELETE.value): "`buildah rmi` deletes on this machine only",
    ("helm", Operation.DELETE.value): "helm 4 pushes and pulls; it has no command that deletes",
    ("helm", Operation.MULTI_ARCH.value): "a chart is the same on every platform",
    ("helm", Operation.MOUNT.value): "a chart is always pushed from its file, and helm asks for no mount",
    ("docker", READ_BY_ALL): "the engine stops at a challenge for Basic to which it has no password",
    ("docker-sdk", READ_BY_ALL): "it drives the same engine",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One outcome, how long it took, and why it is what it is."""

    outcome: Outcome
    seconds: float
    reason: str = ""


@dataclass(slots=True)
class Line:
    """What became of one client: its cells by name, the columns first; and those before a registry with a lock."""

    version: str
    cells: dict[str, Cell]
    locked: dict[str, Cell]


def take_turns(
    kinds: Sequence[type[Program]], scratch: Path, registry: Registry, registries: Locked | None
) -> Iterator[tuple[str, Line]]:
    """Let each in turn go through everything, and give its line."""
    for kind in kinds:
        line = Line("", {}, {})
        with _fresh(kind, scratch) as program:
            exercise(program, registry, line)
        if registries and issubclass(kind, Client):
            with _fresh(kind, scratch) as client:
                exercise_locked(client, registries, line)
        yield kind.name, line


@contextmanager
def _fresh(kind: type[Made], scratch: Path) -> Iterator[Made]:
    folder = scratch / kind.name
    folder.mkdir()
    yield kind(folder)
    # A store without a file system's help keeps each layer several times: not all clients' at once.
    shutil.rmtree(folder, ignore_errors=True)


def exercise(program: Program, registry: Registry, line: Line) -> None:
    """Let a client go through all operations, and whatever has some through its findings."""
    # Each has a port of its own: podman, buildah and skopeo remember for each host and port which repository holds a
    # layer, and would mount what another one of them has pushed.
    with Recorder(registry.address) as recorder:
        # A registry that was running before may hold what an earlier run pushed; a push must find nothing there.
        namespace = f"matrix-{secrets.token_hex(3)}"
        steps: Steps = {}
        if isinstance(program, Client):
            operations = Operations(program, registry, recorder, namespace)
            steps |= {operation.value: step for operation, step in operations.steps().items()}
        steps |= _findings(program, registry, recorder, namespace)

        def prepare() -> None:
            line.version = program.version()
            if isinstance(program, Client):
                program.prepare()

        _go_through(program, prepare, steps, line.cells)


def _findings(program: Program, registry: Registry, recorder: Recorder, namespace: str) -> Steps:
    """Return what is to be proven with one program only."""
    match program:
        case Docker() if type(program) is Docker:
            return docker_findings.steps(program, registry, recorder, namespace)
        case Containerd():
            return containerd_hosts.steps(program, registry, recorder, namespace)
        case Cosign():
            return cosign.steps(program, registry, recorder, namespace)
        case Buildkit():
            return buildkit.steps(program, registry, recorder, namespace)
    return {}


def exercise_locked(client: Client, registries: Locked, line: Line) -> None:
    """Let a client, which starts anew, go through what there is to do before a registry that wants a password."""
    with Recorder(registries.closed.address) as closed, Recorder(registries.readable.address) as readable:
        steps = LockedOperations(client, registries, (closed, readable)).steps()
        _go_through(client, lambda: client.prepare(lean=True), steps, line.locked)


def _go_through(program: Program, prepare: Callable[[], None], steps: Steps, cells: dict[str, Cell]) -> None:
    try:
        with program.running():
            prepare()
            for name, step in steps.items():
                cells[name] = attempt(step)
                _print_cell(program, name, cells[name])
    except (CommandFailedError, DaemonFailedError) as error:
        unreached = [name for name in steps if name not in cells]
        for name in unreached:
            cells[name] = Cell(Outcome.FAILED, 0, str(error))
            _print_cell(program, name, cells[name])


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
    return Outcome.NOT_OFFERED if (client, step) in NOT_OFFERED else Outcome.OK


def _print_cell(program: Program, name: str, cell: Cell) -> None:
    told = f"{program.name:<11} {cell.outcome.value:<12} {cell.seconds:6.1f} s  {name}\n"
    if cell.reason:
        told += "    " + cell.reason.strip().replace("\n", "\n    ") + "\n"
    # In one piece, for the other lane prints, too.
    print(told, end="", flush=True)


def print_table(lines: dict[str, Line]) -> None:
    """Print the matrix, the one of the locked registries, and below them what was asked of some clients beside it."""
    columns = [operation.value for operation in Operation]
    print(f"\n{'':<26}" + "".join(f"{column:<13}" for column in columns))
    for client, line in lines.items():
        if columns[0] in line.cells:
            name = f"{client} {line.version}"
            print(f"{name:<26}" + "".join(f"{line.cells[column].outcome.value:<13}" for column in columns))
    asked = {client: line.locked for client, line in lines.items() if line.locked}
    if asked:
        print(f"\n{'with a password file':<26}" + "".join(f"{name:<13}" for name in next(iter(asked.values()))))
    for client, cells in asked.items():
        print(f"{client:<26}" + "".join(f"{cell.outcome.value:<13}" for cell in cells.values()))
    print()
    for client, line in lines.items():
        for name in [name for name in line.cells if name not in columns]:
            print(f"{client} {line.version}: {name}: {line.cells[name].outcome.value}")


def main() -> int:
    """Run the matrix and return the exit code."""
    known = {program.name: program for program in PROGRAMS}
    parser = argparse.ArgumentParser(prog="tests.clients.matrix", description="Real clients against a registry.")
    parser.add_argument("--registry", metavar="HOST:PORT", help="use this running registry, which must allow deletes")
    parser.add_argument("--only", metavar="NAME,...", default=",".join(known), help="of: %(default)s")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(known)}")
    if os.geteuid() != 0:
        parser.error("the engines of docker, podman, buildah and containerd need root here: run this as root")

    end_at_a_signal()
    began = time.monotonic()
    lines: dict[str, Line] = {}
    left_out: list[str] = []
    troubles: list[str] = []
    try:
        run([known[name] for name in chosen], arguments.registry, lines, left_out, troubles)
    except (AssertionError, DaemonFailedError) as error:
        troubles.append(f"The registry under test: {error}")
    lines = {name: lines[name] for name in known if name in lines}
    print_table(lines)
    cells = [
        (who, name, cell) for who, line in lines.items() for name, cell in (*line.cells.items(), *line.locked.items())
    ]
    wrong = [(who, name, cell) for who, name, cell in cells if cell.outcome != expected(who, name)]
    for who, name, cell in wrong:
        print(f"{who}, {name}: {cell.outcome.value}, expected {expected(who, name).value}")
    for trouble in troubles:
        print(trouble)
    print(f"\n{len(lines)} clients in {time.monotonic() - began:.0f} s")
    for reason in left_out:
        print(f"DID NOT RUN: {reason}")
    print(f"{len(cells) - len(wrong)} passed, {len(wrong) + len(troubles)} failed, {len(left_out)} did not run")
    return 1 if wrong or troubles else 0


def run(
    chosen: list[type[Program]], address: str | None, lines: dict[str, Line], left_out: list[str], troubles: list[str]
) -> None:
    """Let all go through everything; add each one's line, why one has none, and what went wrong beside the cells."""
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        present = _installed(chosen, left_out)
        registry = Registry(address or stack.enter_context(lading(scratch)))
        registries = None if address else stack.enter_context(locked(scratch))
        if address:
            left_out.append("all with a password file, for that is done with Ladings of its own, without --registry")
        turns = [[kind for kind in present if (kind in ENGINES) is engines] for engines in (True, False)]
        lanes = [
            stack.enter_context(Lane(partial(take_turns, kinds, scratch, registry, registries))) for kinds in turns
        ]
        for lane in lanes:
            lines.update(lane.results())
        for lane, kinds in zip(lanes, turns, strict=True):
            if code := lane.exit_code():
                without = ", ".join(kind.name for kind in kinds if kind.name not in lines)
                troubles.append(f"A lane ended with {code}, its error stands above; it has nothing of {without}")


def _installed(chosen: list[type[Program]], left_out: list[str]) -> list[type[Program]]:
    present = []
    for kind in chosen:
        missing = kind(Path()).missing()
        if missing and kind.dear and not FULL:
            left_out.append(f"{kind.name}, for {', '.join(missing)} takes minutes to build: `make clients FULL=1`")
        elif missing:
            sys.exit(f"{kind.name}: not installed: {', '.join(missing)}. `tests/clients/install clients dear` does.")
        else:
            present.append(kind)
    return present


if __name__ == "__main__":
    sys.exit(main())
