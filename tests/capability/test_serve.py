"""`lading serve` and `lading config` as an operator meets them: starting, refusing to start, stopping, being killed."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from tests.capability.content import digest_of
from tests.capability.program import HOST, START_SECONDS, HalfSent, Serve, environment, is_gone, supervised
from tests.capability.server import LADING, until
from tests.wire import Wire, WireError

ACCESS_KEYS = [
    "event",
    "at",
    "request_id",
    "method",
    "route",
    "repository",
    "tag",
    "digest",
    "actor",
    "status",
    "bytes",
    "received",
    "duration_us",
    "client",
]


def lading(*arguments: str, cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*LADING, *arguments],
        cwd=cwd,
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_version_names_the_program_and_its_database(tmp_path: Path) -> None:
    """A bug report needs both."""
    result = lading("--version", cwd=tmp_path)

    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"lading \d+\.\d+\.\S+ \(SQLite 3\.\d+\.\d+\)\n", result.stdout)


@pytest.mark.own_wire  # the stand-in is loaded before everything
def test_the_command_line_is_there_at_once() -> None:
    """Asking for help must not load a database, a server and their friends."""
    heavy = {"alembic", "pydantic", "sqlalchemy", "starlette", "structlog", "uvicorn", "uvloop"}
    code = f"import sys, lading.cli.main; print(sorted({heavy!r} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded == "[]\n"


def test_config_check_shows_each_setting_and_where_it_was_read(tmp_path: Path) -> None:
    """The question "why does it not listen there" is answered without a start."""
    (tmp_path / "lading.yaml").write_text("http: {port: 5001}")
    environ = {"LADING_DELETES__ENABLED": "false"}

    table = lading("config", "check", cwd=tmp_path, environ=environ)
    document = lading("config", "check", "--json", cwd=tmp_path, environ=environ)

    rows = [line.split() for line in table.stdout.splitlines()]
    assert (table.returncode, document.returncode) == (0, 0)
    assert ["http.port", "5001", "lading.yaml"] in rows
    assert ["deletes.enabled", "false", "LADING_DELETES__ENABLED"] in rows
    assert ["blobs.max_bytes", "null", "default"] in rows
    assert json.loads(document.stdout)["valid"] is True
    assert json.loads(document.stdout)["settings"]["http.port"] == {"value": 5001, "source": "lading.yaml"}
    assert not (tmp_path / "data").exists()


def test_config_check_tells_everything_that_is_wrong(tmp_path: Path) -> None:
    """Exit code 2 tells a deployment's script; the sentences tell a person."""
    (tmp_path / "lading.yaml").write_text("http: {port: x}\nstores: y")

    text = lading("config", "check", cwd=tmp_path)
    document = lading("config", "check", "--json", cwd=tmp_path)

    assert (text.returncode, document.returncode, text.stdout) == (2, 2, "")
    assert text.stderr == (
        "error: stores (lading.yaml): unknown setting\n"
        '       http.port (lading.yaml): found "x", wanted a whole number\n'
        " hint: docs/reference/settings.md lists every setting\n"
    )
    assert json.loads(document.stdout) == {
        "valid": False,
        "problems": [
            "stores (lading.yaml): unknown setting",
            'http.port (lading.yaml): found "x", wanted a whole number',
        ],
    }


def test_serve_refuses_wrong_settings_before_it_touches_anything(tmp_path: Path) -> None:
    """A typo must not leave an empty registry behind."""
    result = lading("serve", "--workers", "0", cwd=tmp_path, environ={"LADING_HTTP__PROT": "1"})

    assert result.returncode == 2
    assert "http.workers (--workers): found 0, wanted at least 1" in result.stderr
    assert "LADING_HTTP__PROT (environment): unknown setting" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_flag_variable_and_file_are_heeded_in_that_order(serve: Serve, tmp_path: Path) -> None:
    """What `config check` promises, the server does."""
    (tmp_path / "my.yaml").write_text("data: from-file\nhttp: {port: 1, workers: 3}")

    server = serve("--config", "my.yaml", "--port", "0", environ={"LADING_DATA": "from-variable"})

    ready = server.wait_until_ready()
    assert ready["data"] == str(tmp_path / "from-variable")
    assert (ready["workers"], len(server.workers())) == (3, 3)
    assert ready["port"] > 1
    assert not (tmp_path / "from-file").exists()


def test_a_taken_port_is_a_sentence(serve: Serve) -> None:
    """The first thing that goes wrong for most: another registry is on port 5000."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        server = serve("--port", str(port))
        code = server.wait()

    assert code == 1
    assert server.errors() == (
        f"error: {HOST}:{port} is taken by another program\n"
        f" hint: give another port with --port, or find the program: ss -ltnp 'sport = :{port}'\n"
    )


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("192.0.2.1", "this machine does not have the address 192.0.2.1"),
        ("no-such-host.invalid", "no-such-host.invalid is neither an address nor a name that can be resolved"),
        ("a..b", "a..b is neither an address nor a name that can be resolved"),
    ],
)
def test_an_address_that_is_not_ours_is_a_sentence(serve: Serve, host: str, sentence: str) -> None:
    """So is a typo in it."""
    server = serve("--host", host)

    assert server.wait() == 1
    assert server.errors().startswith(f"error: {sentence}\n hint: ")


def test_a_name_with_two_addresses_is_listened_on_at_one_port(serve: Serve) -> None:
    """`localhost` is IPv4 and IPv6, and clients try either first."""
    families = {family for family, *_ in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}

    server = serve("--host", "localhost")

    addresses = {socket.AF_INET: HOST, socket.AF_INET6: "::1"}
    for family in families:
        assert Wire(addresses[family], server.port).request("GET", "/livez", headers={"Host": "x"}).status == 200


def test_one_server_per_data_directory(serve: Serve, tmp_path: Path) -> None:
    """Two on one directory would not lose data, but nobody means it."""
    first = serve()
    first.wait_until_ready()

    second = serve()

    assert second.wait() == 1
    assert second.errors() == (
        f"error: another Lading server is using the data directory {tmp_path / 'data'} (process {first.process.pid})\n"
        " hint: stop that one first, or give this one a directory of its own with --data\n"
    )
    first.wire.request("GET", "/readyz").expect(200)


def test_a_data_directory_that_cannot_be_made_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    """A path below a file can be made by nobody, root included."""
    (tmp_path / "file").write_text("")

    below, itself = serve("--data", "file/data"), serve("--data", "file")

    assert (below.wait(), itself.wait()) == (1, 1)
    assert below.errors().startswith(
        f"error: the data directory {tmp_path}/file/data cannot be made: not a directory\n"
    )
    assert itself.errors().startswith(f"error: the data directory {tmp_path}/file cannot be made: file exists\n")


def on_a_mount(options: str, prepare: str, data: Path) -> list[str]:
    """Return a command that serves from a tmpfs mounted on `data`, which is gone when the server is."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        if "CI" in os.environ:
            pytest.fail("mounting needs root, which CI has")
        pytest.skip("mounting needs root")
    program = f"mount -t tmpfs -o {options} tmpfs '{data}' && {prepare} && exec '{LADING[0]}' serve --port 0"
    return ["unshare", "--mount", "sh", "-c", program]


def test_a_read_only_data_directory_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    """A volume mounted `ro` by mistake is found at the start, not at the first push."""
    data = tmp_path / "data"
    data.mkdir()

    server = serve(command=on_a_mount("ro", "true", data))

    assert server.wait() == 1
    assert server.errors().startswith(f"error: the data directory {data} cannot be written: read-only file system\n")


def test_a_full_disk_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    """There is room for nothing, so nothing is started that would fail later."""
    data = tmp_path / "data"
    data.mkdir()

    server = serve(command=on_a_mount("size=64k", f"cat /dev/zero > '{data}/filler' 2>/dev/null; true", data))

    assert server.wait() == 1
    assert server.errors() == (
        f"error: the disk of the data directory {data} is full\n hint: make room on it and start again\n"
    )


def test_objects_on_a_disk_of_their_own_are_a_sentence(serve: Serve, tmp_path: Path) -> None:
    """A commit links a staging file among the objects; at the first push it would be found too late."""
    data = tmp_path / "data"
    objects = data / "objects"
    objects.mkdir(parents=True)
    command = on_a_mount("size=1m", "true", objects)
    command[-1] += f" --data '{data}'"

    server = serve(command=command)

    assert server.wait() == 1
    assert f"{objects} cannot hold links to files in {data}/uploads" in server.errors()


def test_a_database_of_another_program_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    """Adding our tables to it would be the beginning of two programs' trouble."""
    data = tmp_path / "data"
    data.mkdir()
    with contextlib.closing(dbapi2.connect(data / "lading.db")) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = (data / "lading.db").read_bytes()

    server = serve("--data", str(data))

    assert server.wait() == 1
    assert server.errors().startswith(f"error: the database {data}/lading.db is some other program's\n")
    assert (data / "lading.db").read_bytes() == before


def test_other_users_of_the_machine_cannot_read_what_is_stored(serve: Serve, tmp_path: Path) -> None:
    """Manifests and small blobs are in the database, and who may pull them is the registry's to say."""
    serve().wait_until_ready()

    modes = {path.name: path.stat().st_mode & 0o007 for path in (tmp_path / "data").rglob("*") if path.is_file()}

    assert "lading.db" in modes
    assert not any(modes.values()), modes


def test_sigterm_lets_requests_finish_and_closes_idle_connections(serve: Serve) -> None:
    """A deployment must not break the push that is running."""
    server = serve()
    with server.wire.connect() as idle, HalfSent(server.wire) as upload:
        idle.request("GET", "/livez").expect(200)
        server.signal(signal.SIGTERM)
        started = time.monotonic()
        left = idle.read_to_end()
        time.sleep(max(0.0, 2.5 - (time.monotonic() - started)))
        refused = _is_refused(server.port)
        running = server.process.poll() is None
        status = upload.send_rest()

    assert (left, refused, running, status) == (b"", True, True, 202)
    assert server.wait() == 0
    assert server.errors() == ""


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_grace_has_an_end(serve: Serve) -> None:
    """One client that hangs must not keep an old version running."""
    server = serve(environ={"LADING_HTTP__GRACE_SECONDS": "1"})

    with HalfSent(server.wire):
        server.signal(signal.SIGTERM)
        code = server.wait(8)

    assert code == 0
    assert server.events("workers did not stop in time and are killed") == []


def test_a_second_interrupt_does_not_wait(serve: Serve) -> None:
    """Who presses Ctrl-C twice means now."""
    server = serve()

    with HalfSent(server.wire):
        workers = server.workers()
        server.signal(signal.SIGINT)
        time.sleep(0.5)
        running = server.process.poll() is None
        server.signal(signal.SIGINT)
        code = server.wait(2)

    assert (running, code) == (True, 130)
    assert all(map(is_gone, workers))


def test_a_worker_that_is_killed_is_replaced(serve: Serve) -> None:
    """The kernel kills for memory, and the registry goes on."""
    server = serve("--workers", "2")
    server.wait_until_ready()
    killed, kept = server.workers()

    os.kill(killed, signal.SIGKILL)

    assert until(lambda: len(server.workers()) == 2 and killed not in server.workers())
    assert kept in server.workers()
    (event,) = server.events("a worker ended and is replaced")
    assert (event["pid"], event["exit_code"], event["level"]) == (killed, -9, "warning")
    for _ in range(10):
        server.wire.request("GET", "/readyz").expect(200)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_workers_leave_when_their_parent_is_killed(serve: Serve) -> None:
    """Nobody is left behind with the port and the lock; who starts anew at once need not know."""
    server = serve("--workers", "2")
    port, workers = server.port, server.workers()

    with HalfSent(server.wire):
        server.signal(signal.SIGKILL)
        server.wait()
        successor = serve("--port", str(port))
        left = until(lambda: all(map(is_gone, workers)))

    assert left
    assert successor.port == port
    successor.wire.request("GET", "/readyz").expect(200)


def test_no_request_is_lost_while_workers_are_replaced(serve: Serve) -> None:
    """A worker that leaves answers what it has accepted: neither fresh nor kept connections break."""
    server = serve("--workers", "2")
    wire, end = server.wire, time.monotonic() + 5
    counts: list[int] = []
    faults: list[str] = []

    def ask(*, keep: bool) -> None:
        count = 0
        connection = wire.connect()
        while time.monotonic() < end:
            try:
                reply = connection.request("GET", "/livez").expect(200)
            except (OSError, WireError, AssertionError) as error:
                faults.append(repr(error))
                return
            count += 1
            if not keep or reply.get("Connection") == "close":
                connection.close()
                connection = wire.connect()
        connection.close()
        counts.append(count)

    clients = [threading.Thread(target=ask, kwargs={"keep": keep}) for keep in (True, False) * 4]
    for client in clients:
        client.start()
    for _ in range(2):
        time.sleep(1.0)
        os.kill(server.workers()[0], signal.SIGTERM)
    for client in clients:
        client.join()

    assert faults == []
    assert len(counts) == 8
    assert len(server.events("a worker ended and is replaced")) == 2


def test_what_a_worker_refuses_is_the_servers_refusal(serve: Serve) -> None:
    """A database that cannot be used does not get better by trying for ever."""
    server = serve(command=supervised(body="raise DatabaseUnusable('the database is odd', 'mend it')"))

    assert server.wait() == 1
    assert server.errors() == "the database is odd; mend it\n"


def test_workers_that_die_at_once_end_the_server(serve: Serve) -> None:
    """Five in a row is a fault of ours; an endless loop would hide it."""
    server = serve(command=supervised(body="raise RuntimeError('a fault')"))

    assert server.wait() == 1
    assert server.errors() == "5 workers in a row died before they could serve; the lines above say why\n"
    assert "RuntimeError: a fault" in server.events("a worker failed")[0]["exception"]


@pytest.mark.parametrize(
    ("ready", "sentence"),
    [
        ("raise DatabaseUnusable('the database is odd')", "the database is odd"),
        ("raise RuntimeError('secret')", "an internal error; the server's log tells more"),
        (
            "import asyncio; await asyncio.sleep(60)",
            "the registry did not answer itself within 2 s",
        ),
    ],
)
def test_readyz_says_why_not_and_livez_does_not_mind(serve: Serve, ready: str, sentence: str) -> None:
    """A load balancer takes the server out, an orchestrator must not restart it."""
    server = serve(command=supervised(ready=ready))

    reply = server.wire.request("GET", "/readyz")

    assert (reply.status, reply.body.decode()) == (503, f"not ready: {sentence}\n")
    server.wire.request("GET", "/livez").expect(200)


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_probes_answer_ok(serve: Serve, path: str) -> None:
    """By GET and by HEAD, and no cache may keep it."""
    wire = serve().wire

    wire.request("GET", path).expect(200, {"Cache-Control": "no-store"})
    assert wire.request("GET", path).body == b"ok\n"
    wire.request("HEAD", path).expect(200)


def test_the_front_page_says_how_to_push(serve: Serve) -> None:
    """Who opens the address in a browser learns that it works, and what next."""
    wire = serve().wire

    page = wire.request("GET", "/", headers={"Accept": "text/html", "Host": "registry.example:5001"})
    text = wire.request("GET", "/", headers={"Host": "[::1]:5001"})

    assert page["Content-Type"] == "text/html; charset=utf-8"
    assert "docker push registry.example:5001/alpine" in page.body.decode()
    assert 'href="/v2/"' in page.body.decode()
    assert page["Content-Security-Policy"].startswith("default-src 'none';")
    assert page["X-Content-Type-Options"] == "nosniff"
    assert text["Content-Type"] == "text/plain; charset=utf-8"
    assert "docker push [::1]:5001/alpine" in text.body.decode()


def test_the_front_page_repeats_no_markup(serve: Serve) -> None:
    """The Host header is whatever a client sends; a name without a dot would send docker to Docker Hub."""
    wire = serve().wire

    hostile = wire.request("GET", "/", headers={"Accept": "text/html", "Host": "it's&co"})
    bare = wire.request("GET", "/", headers={"Host": "registry"})

    assert b"it's" not in hostile.body
    assert b"docker push localhost:5000/alpine" in hostile.body
    assert b"docker push registry:80/alpine" in bare.body


def test_a_request_is_one_line_of_json(serve: Serve) -> None:
    """What an operator greps for: repository, digest, sizes, duration."""
    server = serve("--workers", "1")  # whose line comes before the next reply
    content = os.urandom(1000)
    digest = digest_of(content)
    wire = server.wire
    location = wire.request("POST", "/v2/a/b/blobs/uploads/", body=b"").expect(202)["Location"]
    separator = "&" if "?" in location else "?"

    wire.request("PUT", f"{location}{separator}digest={digest}", body=content).expect(201)
    wire.request("GET", f"/v2/a/b/blobs/{digest}").expect(200)
    wire.request("GET", "/nowhere%0d%0a%1b[2J").expect(404)

    assert until(lambda: len(server.events("request")) == 4)
    post, put, get, nowhere = server.events("request")
    assert all(list(line) == ACCESS_KEYS for line in (post, put, get, nowhere))
    assert (post["status"], put["status"], get["status"], nowhere["status"]) == (202, 201, 200, 404)
    assert (put["repository"], put["received"]) == ("a/b", 1000)
    assert (get["repository"], get["digest"], get["bytes"], get["client"]) == ("a/b", digest, 1000, HOST)
    assert nowhere["route"].startswith("/nowhere")
    assert get["duration_us"] > 0


def test_a_terminal_gets_a_welcome_and_readable_lines(tmp_path: Path) -> None:
    """`lading serve` typed by a person, and ended by Ctrl-C, which reaches the workers too and must not cut a push."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(LADING[0], [LADING[0], "serve", "--port", "0"], environment({"TERM": "xterm"}))
    shown = _Screen(terminal)
    try:
        port = int(shown.wait_for(rb"listens on  http://127\.0\.0\.1:(\d+)")[1])
        shown.wait_for(rb"data in     %s/data\r\n" % os.fsencode(tmp_path))
        shown.wait_for(rb"docker push 127\.0\.0\.1:%d/alpine" % port)
        shown.wait_for(rb"stop        Ctrl-C")

        Wire(HOST, port).request("GET", "/livez").expect(200)
        shown.wait_for(rb"\x1b\[32m200\x1b\[0m GET ")
        with HalfSent(Wire(HOST, port)) as upload:
            os.write(terminal, b"\x03")
            time.sleep(0.5)
            assert upload.send_rest() == 202

        assert until(lambda: is_gone(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"Traceback" not in shown.text
    assert b'"event"' not in shown.text


class _Screen:
    """What a terminal has shown so far."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self.text = b""

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        """Wait until `pattern` is on it."""
        end = time.monotonic() + START_SECONDS
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end, f"no {pattern!r} on the screen:\n{self.text.decode()}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.text += os.read(self._terminal, 65536)
        return found


def test_a_closed_standard_output_gets_no_other_file_hurt(serve: Serve, tmp_path: Path) -> None:
    """Descriptor 1 would be the next file opened: a log line in the database is the end of it."""
    port = _free_port()
    serve(command=["sh", "-c", f"exec '{LADING[0]}' serve --port {port} >&- 2>&- <&-"])

    assert until(lambda: not _is_refused(port), seconds=START_SECONDS)
    assert until(lambda: Wire(HOST, port).request("GET", "/readyz").status == 200)
    Wire(HOST, port).request("GET", "/v2/").expect(200)

    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b'"event"' in path.read_bytes()]


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
