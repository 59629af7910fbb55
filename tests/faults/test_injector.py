"""The injector itself: it counts what threads and children do as one, and kills exactly where it was told to."""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.capability.preloaded import TOP
from tests.faults.injector import Injector, When

WRITERS = 3
WRITES = 4
CALLS = WRITERS * (WRITES + 2)
PROGRAM = f"""
import os, socket, sys, threading
from tests.faults.injector import install_filter

folder, elsewhere = sys.argv[1:]
channel = socket.socket(fileno=0)
listener = install_filter()
socket.send_fds(channel, [b"listener"], [listener])
os.close(listener)
channel.recv(1)

def work(name):
    file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT)
    for _ in range({WRITES}):
        os.write(file, b"x")
        os.write(other, b"not counted")
    os.fsync(file)

other = os.open(elsewhere, os.O_WRONLY | os.O_CREAT)
threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
child = os.fork()
if child == 0:
    work("child")
    os._exit(0)
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os.waitpid(child, 0)
"""

pytestmark = pytest.mark.slow


def run(folder: Path, point: int | None, when: When) -> Injector:
    """Run the program, two threads and a child, until it ends or is killed."""
    counted = folder / "counted"
    counted.mkdir()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", PROGRAM, str(counted), str(folder / "elsewhere")]
    program = subprocess.Popen(command, stdin=theirs.fileno(), cwd=TOP, start_new_session=True)
    with ours, theirs:
        _, (listener,), _, _ = socket.recv_fds(ours, 16, 1)
        injector = Injector(listener, counted, lambda: os.killpg(program.pid, signal.SIGKILL))
        injector.arm(point, when)
        injector.start()
        ours.send(b"g")
        code = program.wait(30)
    injector.close()
    assert code == (0 if point is None else -signal.SIGKILL)
    return injector


def test_calls_of_threads_and_children_are_counted_once_each(tmp_path: Path) -> None:
    """Counted for each thread alone, most points would never be reached."""
    injector = run(tmp_path, None, When.BEFORE)

    kinds = Counter(call.split()[0] for call in injector.calls)
    assert kinds == {"openat": WRITERS, "write": WRITERS * WRITES, "fsync": WRITERS}


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("point", [1, 2, 7, CALLS])
def test_the_kill_falls_on_its_side_of_its_call(tmp_path: Path, point: int, when: When) -> None:
    """What was counted has happened, the last call only where the kill comes after it, and nothing else has."""
    injector = run(tmp_path, point, when)

    assert injector.reached
    assert len(injector.calls) == point
    happened = injector.calls if when is When.AFTER else injector.calls[:-1]
    files = list((tmp_path / "counted").iterdir())
    assert {f"openat {path.name}" for path in files} == {call for call in happened if call.startswith("openat")}
    assert sum(path.stat().st_size for path in files) == sum(call.startswith("write") for call in happened)
