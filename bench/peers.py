"""The servers that are compared: each in a process group of its own, on a free loopback port."""

import contextlib
import http.client
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")

TOP = Path(__file__).parent.parent
DISTRIBUTION = TOP / ".tools" / "bin" / "registry"

# Its access log is on, and its log of every request at level info is not: the cheaper of its usual ways.
_DISTRIBUTION_CONFIGURATION = """version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{host}:{port}"}}
"""
_NGINX_CONFIGURATION = """daemon off;
{user}
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/access.log combined;
  sendfile on;
  sendfile_max_chunk 2m;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {host}:{port};
    root {folder}/root;
    location = /v2/ {{ return 200; }}
  }}
}}
"""


class PeerFailedError(Exception):
    """A server did not start."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server."""

    name: str
    port: int
    group: int

    @property
    def url(self) -> str:
        """The address in front of every path."""
        return f"http://{HOST}:{self.port}"

    def cpu_seconds(self) -> float:
        """Return the processor time that all of its processes have used so far."""
        return sum(_cpu_ticks(stat, self.group) for stat in Path("/proc").glob("[0-9]*/stat")) * TICK_SECONDS


@contextlib.contextmanager
def lading(folder: Path) -> Iterator[Peer]:
    """Run Lading with default settings; its log, JSON lines, goes to a file."""
    folder.mkdir()
    port = _free_port()
    program = Path(sys.executable).with_name("lading")
    command = [str(program), "serve", "--data", str(folder / "data"), "--host", HOST, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    with _running("Lading", command, folder, port, {**environment, "LADING_LOG__FORMAT": "json"}) as peer:
        yield peer


@contextlib.contextmanager
def distribution(folder: Path) -> Iterator[Peer]:
    """Run CNCF Distribution on its file system driver; its log goes to a file."""
    folder.mkdir()
    port = _free_port()
    configuration = folder / "config.yml"
    configuration.write_text(_DISTRIBUTION_CONFIGURATION.format(data=folder / "data", host=HOST, port=port))
    with _running("Distribution", [DISTRIBUTION, "serve", configuration], folder, port, os.environ) as peer:
        yield peer


@contextlib.contextmanager
def nginx(folder: Path, files: Mapping[str, Path]) -> Iterator[Peer]:
    """Run nginx with `files` at the given paths; its access log goes to a file."""
    for path, file in files.items():
        target = folder / "root" / path.lstrip("/")
        target.parent.mkdir(parents=True)
        os.link(file, target)
    port = _free_port()
    configuration = folder / "nginx.conf"
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    configuration.write_text(_NGINX_CONFIGURATION.format(folder=folder, host=HOST, port=port, user=user))
    with _running("nginx", ["nginx", "-c", configuration, "-p", folder], folder, port, os.environ) as peer:
        yield peer


@contextlib.contextmanager
def _running(
    name: str, command: Sequence[str | Path], folder: Path, port: int, environment: Mapping[str, str]
) -> Iterator[Peer]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerFailedError(f"{name} does not run:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield Peer(name, port, process.pid)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
    return port


def _cpu_ticks(stat: Path, group: int) -> int:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
