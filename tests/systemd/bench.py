"""A machine of its own for a test: this one's systemd, in namespaces, with the units that Lading ships."""

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.capability.server import until

TOP = Path(__file__).parents[2]
UNITS = TOP / "packaging" / "systemd"
SITE = Path(next(path for path in sys.path if path.endswith("site-packages")))
CGROUPS = next(path for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if path.is_dir())
BOOT_SECONDS = 60.0
COMMAND_SECONDS = 300.0
SHOWN_LINES = 100
CLONE_NEWNET = 0x40000000
# Not where this Python and this tree are: services see no home directories, and /tmp is their own.
SHOWN = {
    Path(sys.base_prefix): "/opt/python",
    SITE: "/opt/lading/site-packages",
    TOP / "src": "/opt/lading/src",
    UNITS: "/opt/lading/packaging/systemd",
}
PROGRAM = f"""#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/lading/src:/opt/lading/site-packages
exec /opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor} \
 -c 'from lading.cli.main import main; main()' "$@"
"""
INSTALL = """
cat > /usr/bin/lading
chmod 755 /usr/bin/lading
cd /opt/lading
{units}
"""


class Bench:
    """A booted systemd with Lading installed and nothing of it started."""

    def __init__(self, folder: Path) -> None:
        root = folder / "root"
        root.mkdir()
        self._log = folder / "boot.log"
        self._cgroup = CGROUPS / f"lading-tests-{os.getpid()}-{time.monotonic_ns()}"
        shown = [f"{here}:{there}" for here, there in SHOWN.items()]
        mortal = ["setpriv", "--pdeathsig", "KILL"]  # whatever ends this process ends the machine
        command = [*mortal, str(Path(__file__).with_name("boot")), str(root), str(self._cgroup), *shown]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._pid = 0
        try:
            assert until(self._is_running, seconds=BOOT_SECONDS), f"systemd did not boot\n{self._log.read_text()}"
            self.run("sh", "-euc", INSTALL.format(units=_documented("systemd-sysusers")), typed=PROGRAM)
        except BaseException:
            self.close()
            raise

    def _is_running(self) -> bool:
        assert self._process.poll() is None, f"systemd did not boot\n{self._log.read_text()}"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._pid = int(children[0])
        return self.says("systemctl", "is-system-running") == "running"

    def close(self) -> None:
        """Kill PID 1, which takes all with it, and remove what is left."""
        self._process.kill()  # PID 1 of a namespace dies with the process that unshared it
        self._process.wait()
        groups = [Path(path) for path, _, _ in os.walk(self._cgroup, topdown=False)]
        for group in groups:
            assert until(lambda group=group: _is_removed(group)), f"{group} is still in use"  # type: ignore[misc]

    def run(self, *command: str, typed: str = "") -> str:
        """Run a command as root of the machine; assert that it succeeds, and return what it said."""
        done = self._run(command, typed)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}{self.output()}"
        return done.stdout.strip()

    def says(self, *command: str) -> str:
        """Run a command that may fail, and return what it said."""
        return self._run(command, "").stdout.strip()

    def _run(self, command: tuple[str, ...], typed: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["nsenter", "-t", str(self._pid), "-a", "--", *command],
            check=False,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def systemctl(self, *words: str) -> None:
        """Run systemctl."""
        self.run("systemctl", *words)

    def drop_in(self, unit: str, text: str) -> None:
        """Do what `systemctl edit UNIT` does."""
        folder = f"/etc/systemd/system/{unit}.d"
        self.run("sh", "-euc", f"mkdir -p {folder}; cat > {folder}/test.conf; systemctl daemon-reload", typed=text)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit)

    def lines(self, unit: str) -> list[dict[str, Any]]:
        """Return what the program told the journal under a unit's name, by the names of its own; values are texts."""
        said = self.says("journalctl", "-q", "-o", "json", "--all", "-u", unit)
        records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return [
            {name.removeprefix("LADING_").lower(): value for name, value in record.items()}
            for record in records
            if "EVENT" in record
        ]

    def events(self, unit: str, name: str) -> list[dict[str, Any]]:
        """Return the lines of one kind of event."""
        return [line for line in self.lines(unit) if line["event"] == name]

    def workers(self, unit: str) -> list[int]:
        """Return the process ids of a service's workers, as the machine itself counts."""
        return [int(pid) for pid in self.says("pgrep", "-P", self.show(unit, "MainPID")).split()]

    def path(self, path: str) -> Path:
        """Return where a file of the machine is seen from here."""
        return Path(f"/proc/{self._pid}/root{path}")

    def output(self) -> str:
        """Return everything that was said, for messages."""
        said = self.says("journalctl", "-q", "-o", "short-monotonic").splitlines()
        return self._log.read_text() + "\n".join([line for line in said if '"request"' not in line][-SHOWN_LINES:])

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread, and those that it starts, be on the machine's network."""
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self._pid}/ns/net").open() as theirs:
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())


def _documented(word: str) -> str:
    """Return the commands of the manual in whose block `word` is."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (TOP / "docs" / "systemd.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (found,) = [block for block in blocks if word in block]
    return str(found)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):  # os.setns is there only from Python 3.12 on
        raise OSError(ctypes.get_errno(), "setns")


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
