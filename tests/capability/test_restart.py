"""Stop, reload and restart: clients that come, stay or send for long notice nothing but a `Connection: close`."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.capability.content import digest_of
from tests.capability.crowd import Crowd, SlowUpload
from tests.capability.program import HOST, HalfSent, Serve, Server, environment, is_gone, supervised
from tests.capability.server import LADING, until
from tests.wire import Wire

DRAIN_SECONDS = 1.0
SLACK_SECONDS = 2.0
FULL = os.environ.get("LADING_FULL", "") not in {"", "0"}
UPLOAD_SECONDS = 6.0
PACKETS = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
CONTENT = os.urandom(3000)


def push(wire: Wire, content: bytes = CONTENT) -> str:
    """Push a blob and return its path."""
    location = wire.request("POST", "/v2/app/blobs/uploads/", body=b"").expect(202)["Location"]
    digest = digest_of(content)
    wire.request("PUT", f"{location}?digest={digest}", body=content).expect(201)
    return f"/v2/app/blobs/{digest}"


class Holder:
    """What systemd is to a service: it holds the listening sockets, and starts the program on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        four = socket.create_server((HOST, 0), backlog=4096)
        six = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=4096)
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(folder / "lading.sock"))
        unix.listen(4096)
        self.sockets = [four, six, unix]
        self.wires = [Wire(HOST, four.getsockname()[1]), Wire("::1", six.getsockname()[1])]
        self.started: list[Server] = []

    def start(self, *arguments: str, descriptors: Sequence[int] = ()) -> Server:
        """Start the program with the sockets as descriptors 3, 4 and 5, and return at once."""
        passed = descriptors or [listener.fileno() for listener in self.sockets]
        # Out of the way first: 3 may be one of them.
        moves = " ".join(f"{60 + at}<&{descriptor}" for at, descriptor in enumerate(passed))
        places = " ".join(f"{3 + at}<&{60 + at} {60 + at}<&-" for at in range(len(passed)))
        script = f"exec {moves}; exec {places}; export LISTEN_PID=$$ LISTEN_FDS={len(passed)} LISTEN_FDNAMES=http; "
        command = ["bash", "-c", script + 'exec "$@"', "-", *LADING, "serve", "--workers", "2", *arguments]
        server = Server(self.folder, command, pass_fds=passed)
        self.started.append(server)
        return server

    def close(self) -> None:
        """End everything."""
        for server in self.started:
            server.kill_all()
        for listener in self.sockets:
            listener.close()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """Return a parent of servers that holds an IPv4, an IPv6 and a Unix socket."""
    with contextlib.closing(Holder(tmp_path)) as parent:
        yield parent


def reload(server: Server) -> None:
    """Ask for a reload and wait until the new workers serve."""
    before = len(server.events("reloaded: new workers serve, the old ones finish"))
    server.signal(signal.SIGHUP)
    assert until(lambda: len(server.events("reloaded: new workers serve, the old ones finish")) > before, seconds=20), (
        server.output()
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_is_lost_over_restarts(holder: Holder) -> None:
    """A parent holds the sockets: 32 clients and an upload of six seconds see each restart as a longer wait."""
    server = holder.start()
    server.wait_until_ready()
    path = push(holder.wires[0])

    starts = []
    with Crowd(holder.wires, path, CONTENT) as crowd:
        for upload_seconds in (UPLOAD_SECONDS, *([UPLOAD_SECONDS] * 20 if FULL else [1.5, 1.5])):
            time.sleep(1.0)
            upload = SlowUpload(holder.wires[0], upload_seconds)
            server.signal(signal.SIGTERM)  # and wait for its end, as `systemctl restart` does
            assert server.wait(30) == 0, server.output()
            began = time.monotonic()
            server = holder.start()
            server.wait_until_ready()
            starts.append(time.monotonic() - began)
            upload.assert_stored()

    crowd.assert_untroubled()
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s, starts took {starts}")
    assert crowd.slowest_seconds < UPLOAD_SECONDS + DRAIN_SECONDS + max(starts) + SLACK_SECONDS
    assert_quiet(holder)


@pytest.mark.slow
def test_no_request_is_lost_over_reloads(holder: Holder) -> None:
    """New settings, with 32 clients and an upload that outlives all three reloads: nobody even waits."""
    server = holder.start()
    server.wait_until_ready()
    path = push(holder.wires[0])

    with Crowd(holder.wires, path, CONTENT) as crowd:
        time.sleep(1.0)
        upload = SlowUpload(holder.wires[0], 8.0)
        for _ in range(3):
            old = set(server.workers())
            reload(server)
            time.sleep(1.0)
            assert len(set(server.workers()) - old) == 2
        upload.assert_stored()

    crowd.assert_untroubled()
    assert crowd.slowest_seconds < DRAIN_SECONDS + SLACK_SECONDS
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s")
    assert until(lambda: len(server.workers()) == 2)
    assert_quiet(holder)


def assert_quiet(holder: Holder) -> None:
    """Stop the last server, and assert that none had anything to complain of."""
    last = holder.started[-1]
    last.signal(signal.SIGTERM)
    assert last.wait(30) == 0
    for server in holder.started:
        assert server.errors() == ""
        assert [line for line in server.lines() if line.get("level") in {"warning", "error"}] == []
        assert [line for line in server.events("request") if line["status"] >= 500] == []


def test_sockets_of_a_parent_are_served(holder: Holder) -> None:
    """IPv4, IPv6 and a Unix socket for a proxy on this machine, and the log names them as they are."""
    server = holder.start("--port", "1", "--host", "192.0.2.1")  # neither is looked at

    ready = server.wait_until_ready()

    assert ready["port"] == holder.wires[0].port
    for wire in holder.wires:
        wire.request("GET", "/readyz", headers={"Host": "x"}).expect(200)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(holder.folder / "lading.sock"))
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
    assert until(lambda: [line["client"] for line in server.events("request")][-1:] == ["unix"])
    assert server.lines() == [line for line in server.lines() if line.get("level", "info") == "info"]


def test_a_passed_socket_on_the_port_of_the_metrics_is_theirs(holder: Holder) -> None:
    """So two servers on the same sockets can both have it."""
    registry, metrics = holder.wires
    (holder.folder / "lading.yaml").write_text(f"metrics: {{port: {metrics.port}}}")

    server = holder.start()

    assert server.wait_until_ready()["port"] == registry.port
    metrics.request("GET", "/metrics", headers={"Host": "x"}).expect(200)
    metrics.request("GET", "/v2/", headers={"Host": "x"}).expect(404)
    registry.request("GET", "/v2/").expect(200)


def test_what_a_parent_passed_is_for_this_process_alone(tmp_path: Path) -> None:
    """A program that is started by the one that was meant must not take its sockets."""
    script = "import os; from lading.web.sockets import inherited; print(len(inherited()), 'LISTEN_FDS' in os.environ)"
    with socket.create_server((HOST, 0)) as listener:
        said = [
            subprocess.run(
                ["bash", "-c", f'exec 3<&{listener.fileno()}; LISTEN_PID={pid} LISTEN_FDS=1 exec "$@"', "-", *command],
                pass_fds=[listener.fileno()],
                env=environment(),
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            for pid in ("$$", "1")
            for command in [[sys.executable, "-c", script]]
        ]

    assert said == [["1", "False"], ["0", "False"]]


def test_what_is_no_listening_socket_is_a_sentence(holder: Holder) -> None:
    """A unit with ListenDatagram=, or a descriptor that something else left open."""
    with (holder.folder / "file").open("w") as file, socket.socket() as deaf, socket.socket(*PACKETS) as packets:
        packets.bind(str(holder.folder / "packets"))
        packets.listen()
        for other in (file, deaf, packets):
            server = holder.start(descriptors=[other.fileno()])

            assert server.wait() == 1
            assert server.errors() == (
                "error: descriptor 3, passed by LISTEN_FDS, is not a listening socket of TCP or a Unix stream\n"
                " hint: in a systemd unit only ListenStream= makes such sockets\n"
            )


def test_a_reload_takes_new_settings(serve: Serve, tmp_path: Path) -> None:
    """What a restart would have taken, except for what the server stands on; and that is said."""
    settings = tmp_path / "lading.yaml"
    settings.write_text("deletes: {enabled: true}")
    server = serve("--workers", "1")
    path = push(server.wire)
    (old,) = server.workers()
    settings.write_text("deletes: {enabled: false}\ndata: elsewhere\nhttp: {host: 192.0.2.1}\nlog: {format: console}")

    reload(server)

    assert until(lambda: is_gone(old))
    server.wire.request("DELETE", path).expect_error(405, "UNSUPPORTED")
    server.wire.request("GET", path).expect(200)
    (event,) = server.events("settings that only a restart can change stay as they are")
    assert event["settings"] == ["data", "http.host", "log.format"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_reload_changes_the_number_of_workers(serve: Serve, tmp_path: Path) -> None:
    """More, when there are more clients than one thought."""
    settings = tmp_path / "lading.yaml"
    settings.write_text("http: {workers: 1}")
    server = serve()
    server.wait_until_ready()
    (old,) = server.workers()
    settings.write_text("http: {workers: 3}")

    reload(server)

    assert until(lambda: len(server.workers()) == 3)
    assert is_gone(old)


def test_a_reload_with_wrong_settings_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    """A typo is an error in the log, and the registry goes on."""
    server = serve("--workers", "1")
    server.wait_until_ready()
    before = server.workers()
    (tmp_path / "lading.yaml").write_text("deletes: {enable: false}")

    server.signal(signal.SIGHUP)

    assert until(lambda: server.events("reload failed: the workers with the old settings go on") != [])
    (event,) = server.events("reload failed: the workers with the old settings go on")
    assert (event["level"], event["reason"]) == (
        "error",
        "deletes.enable (lading.yaml): unknown setting; did you mean deletes.enabled?",
    )
    assert server.workers() == before
    server.wire.request("GET", "/readyz").expect(200)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise DatabaseUnusable('the database is odd', 'mend it')", "the database is odd"),
        ("import os; os._exit(7)", "a new worker ended with exit code 7"),
    ],
)
def test_a_reload_whose_workers_do_not_start_changes_nothing(
    serve: Serve, tmp_path: Path, body: str, reason: str
) -> None:
    """One new worker that cannot serve is enough; the old ones have not been asked to leave."""
    flag = tmp_path / "flag"
    server = serve(command=supervised(body=f"if Path({str(flag)!r}).exists(): {body}"))
    server.wait_until_ready()
    before = server.workers()
    flag.touch()

    server.signal(signal.SIGHUP)

    assert until(lambda: server.events("reload failed: the workers with the old settings go on") != [])
    assert server.events("reload failed: the workers with the old settings go on")[0]["reason"] == reason
    assert until(lambda: server.workers() == before)
    time.sleep(0.5)
    assert server.workers() == before
    flag.unlink()
    reload(server)


def test_a_hangup_while_it_starts_does_no_harm(serve: Serve) -> None:
    """A terminal that closes, or a deployment that reloads what it has just started."""
    server = serve()
    assert until((server.folder / "data" / "lock").exists)

    server.signal(signal.SIGHUP)

    server.wait_until_ready()
    server.wire.request("GET", "/readyz").expect(200)


@pytest.mark.slow
def test_an_old_worker_that_hangs_is_killed(serve: Serve) -> None:
    """A reload must not leave old versions behind; the grace is a second here."""
    command = supervised(ready="import time; time.sleep(60)", flags={"http.grace_seconds": 1})
    server = serve(command=command)
    with server.wire.connect() as connection:
        connection.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        old = server.workers()

        reload(server)

        assert until(lambda: all(map(is_gone, old)))
    (event,) = server.events("workers did not stop in time and are killed")
    assert len(event["pids"]) == 1
    assert event["pids"][0] in old
    assert len(server.workers()) == 2


@pytest.mark.slow
def test_a_worker_whose_loop_hangs_says_where_and_is_replaced(serve: Serve, tmp_path: Path) -> None:
    """Nobody could find out afterwards; the service manager's interval is five seconds here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "5000000"}
        server = serve(command=supervised(ready="import time; time.sleep(600)"), environ=watched)
        with server.wire.connect() as connection:
            before = set(server.workers())
            connection.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")

            assert until(lambda: server.events("workers hang and are killed") != [], seconds=120)

        (event,) = server.events("workers hang and are killed")
        (hung,) = event["pids"]
        assert until(lambda: len(now := server.workers()) == 2 and hung not in now)
        assert before - {hung} < set(server.workers())
    assert re.search(r'File "<string>", line \d+ in ready', server.errors()), server.errors()


def test_what_was_accepted_is_answered_when_it_stops(serve: Serve) -> None:
    """A connection without a request yet, and an idle one: each gets one more answer, said to be the last."""
    server = serve("--workers", "2")
    with contextlib.ExitStack() as stack:
        idle, silent = ([stack.enter_context(server.wire.connect()) for _ in range(8)] for _ in range(2))
        for connection in idle:
            connection.request("GET", "/livez").expect(200, {"Connection": None})
        server.signal(signal.SIGTERM)
        time.sleep(0.5)
        for connection in (*idle, *silent):
            connection.request("GET", "/livez").expect(200, {"Connection": "close"})
            assert connection.read_to_end() == b""

    assert server.wait() == 0


def test_an_upload_that_is_cut_off_by_a_stop_goes_on_after_the_start(serve: Serve) -> None:
    """What came in time is kept; the client asks where it was, and sends the rest."""
    server = serve(environ={"LADING_HTTP__GRACE_SECONDS": "0"})
    port = server.port
    with HalfSent(server.wire) as upload:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0

    wire = serve("--port", str(port)).wire
    status = wire.request("GET", upload.location).expect(204, {"Range": "0-24999"})
    digest = digest_of(upload.content)
    wire.request("PUT", f"{status['Location']}?digest={digest}", body=upload.content[25_000:]).expect(201)

    assert wire.request("GET", f"/v2/slow/blobs/{digest}").expect(200).body == upload.content


def test_a_server_waits_for_the_one_before_it_to_stop(serve: Serve) -> None:
    """`kill` and a new start in one breath: no second try, and no two servers on one directory."""
    first = serve()
    port = first.port
    with HalfSent(first.wire) as upload:
        first.signal(signal.SIGTERM)
        time.sleep(0.2)
        second = serve("--port", str(port))
        assert until(lambda: second.events("waiting for the server before this one to stop") != [])
        assert upload.send_rest() == 202

    assert first.wait() == 0
    assert second.port == port
    assert len(second.events("waiting for the server before this one to stop")) == 1
    second.wire.request("GET", "/readyz").expect(200)


def test_a_stop_leaves_one_database_file(serve: Serve, tmp_path: Path) -> None:
    """Who copies the directory of a stopped server has all of it in `lading.db`."""
    server = serve("--workers", "2")
    push(server.wire)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0

    assert not (tmp_path / "data" / "lading.db-wal").exists()


LIBRARIES = (
    "alembic.command, httptools, prometheus_client, pydantic, sqlalchemy, starlette.routing, structlog, "
    "typer, uvicorn.config, uvloop"
)
OURS = "lading.app, lading.cli.main, lading.web.server"
MOST_TIMES_THE_LIBRARIES = 2


@pytest.mark.slow
def test_the_program_is_there_quickly() -> None:
    """Clients that wait in the socket's queue wait for this: it is ready soon after the libraries it cannot do without.

    Measured in processor time and as a ratio, so that no machine is too slow: 1.2 when this was written, and 0.8 s.
    """
    libraries, ours = (min(_seconds_to_import(modules) for _ in range(3)) for modules in (LIBRARIES, OURS))

    assert ours < MOST_TIMES_THE_LIBRARIES * libraries, f"{ours:.2f} s, the libraries alone {libraries:.2f} s"


def _seconds_to_import(modules: str) -> float:
    code = f"import resource, {modules}; r = resource.getrusage(0); print(r.ru_utime + r.ru_stime)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)
