"""A real systemd-journald in a mount namespace of its own. Started by path, it holds its sockets, as systemd does.

Its commands are the lines `start`, which is also a restart, and `stop`; it answers when it is done.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

JOURNALD = "/lib/systemd/systemd-journald"
CONFIGURATION = """
[Journal]
Storage=volatile
RateLimitIntervalSec=0
ForwardToSyslog=no
ForwardToWall=no
ForwardToConsole=no
ReadKMsg=no
Audit=
"""
# Connects standard output as systemd does, for a program that is to find out by itself.
CONNECTED = """
import os, sys
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
os.execv(sys.argv[1], sys.argv[1:])
"""
SOCKETS = (
    ("/run/systemd/journal/socket", socket.SOCK_DGRAM),
    ("/run/systemd/journal/dev-log", socket.SOCK_DGRAM),
    ("/run/systemd/journal/stdout", socket.SOCK_STREAM),
)


class Journald:
    """The journal, as tests ask it."""

    def __init__(self, folder: Path) -> None:
        machine = folder / "machine-id"
        machine.write_text("0123456789abcdef0123456789abcdef\n")
        configuration = folder / "journald.conf"
        configuration.write_text(CONFIGURATION)
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, machine, configuration],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self.tell("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate()

    def tell(self, command: str) -> None:
        """Have something done, and wait until it is."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(f"{command}\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == f"{command}\n"

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs `command` where this journal is."""
        return ["nsenter", "--mount", "--target", str(self._holder.pid), *command]

    def connected(self, *command: str) -> list[str]:
        """Return a command that runs `command` with this journal behind its standard output and standard error."""
        return self.inside("systemd-cat", sys.executable, "-c", CONNECTED, *command)

    def records(self, *matches: str) -> list[dict[str, Any]]:
        """Return the records that match, all that were sent until now; more options of journalctl may be among them."""
        subprocess.run(self.inside("journalctl", "--sync"), check=True)
        asked = self.inside("journalctl", "-q", "-D", "/run/log/journal", "-o", "json", "--all", *matches)
        return [json.loads(line) for line in subprocess.run(asked, check=True, capture_output=True).stdout.splitlines()]


def hold() -> None:
    """Be systemd for journald: hold its sockets, so that what is sent while it restarts waits in them."""
    machine, configuration = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    for file, place in ((machine, "/etc/machine-id"), (configuration, "/etc/systemd/journald.conf")):
        subprocess.run(["mount", "--bind", file, place], check=True)
    Path("/run/systemd/journal").mkdir(parents=True)
    Path("/run/log/journal").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(bound) for bound in sockets()]
        journald = None
        for command in sys.stdin:
            if journald is not None:
                end(journald)
            journald = start(held) if command == "start\n" else None
            print(command, end="", flush=True)
        if journald is not None:
            end(journald)


def sockets() -> Iterator[socket.socket]:
    """Yield the sockets that journald is given."""
    for place, kind in SOCKETS:
        bound = socket.socket(socket.AF_UNIX, kind)
        bound.bind(place)
        Path(place).chmod(0o666)
        if kind == socket.SOCK_STREAM:
            bound.listen()
        yield bound


def start(held: list[socket.socket]) -> int:
    """Start journald on the sockets, and wait until it answers."""
    pid = os.fork()
    if pid == 0:
        for number, bound in enumerate(held, 3):
            os.dup2(bound.fileno(), number + 100)
        for number in range(3, 3 + len(held)):
            os.dup2(number + 100, number)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(held)))
        os.execv(JOURNALD, [JOURNALD])
    while subprocess.run(["journalctl", "--sync"], capture_output=True, check=False).returncode:
        time.sleep(0.02)
    return pid


def end(pid: int) -> None:
    """End journald."""
    os.kill(pid, 15)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    hold()
