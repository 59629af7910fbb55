"""The units that Lading ships: sound, locked down, and served by whom they say."""

import json
import socket

from tests.systemd.bench import Bench
from tests.systemd.served import CONTENT, PATIENCE_SECONDS, UNIX, WIRES, serve, soon
from tests.wire import Wire

MAX_EXPOSURE_TENTHS = "20"


def test_the_units_are_sound_and_locked_down(bench: Bench) -> None:
    """What systemd itself finds wrong, and what a service that was taken over could reach."""
    units = ("lading.socket", "lading.service", "lading@blue.service")

    assert bench.run("systemd-analyze", "verify", *units) == ""
    for unit in units[1:]:
        bench.run("systemd-analyze", "security", "--no-pager", f"--threshold={MAX_EXPOSURE_TENTHS}", unit)


def test_the_first_connection_starts_the_registry(bench: Bench) -> None:
    """IPv4, IPv6 and a Unix socket are there before the program is, and what is pushed belongs to its own user."""
    bench.systemctl("start", "lading.socket")
    assert bench.show("lading.service", "ActiveState") == "inactive"

    path = serve(bench)

    assert soon(lambda: bench.show("lading.service", "ActiveState") == "active")
    assert WIRES[0].request("GET", path).expect(200).body == CONTENT
    assert bench.run("stat", "-c", "%U:%G %a", "/var/lib/lading") == "lading:lading 750"
    assert bench.run("stat", "-c", "%U:%G %a", UNIX) == "lading:lading 660"
    places = "127.0.0.1:5000, [::1]:5000, unix:/run/lading.sock"
    workers = len(bench.workers("lading.service"))
    listening = bench.run(
        "ss", "--no-header", "--listening", "--processes", "--tcp", "--unix", "--numeric"
    ).splitlines()
    for place in ("127.0.0.1:5000", "[::1]:5000", UNIX):
        (line,) = [line for line in listening if place in line]
        assert all(f"pid={pid}," in line for pid in bench.workers("lading.service")), line
    assert bench.show("lading.service", "StatusText") == f"{workers} workers on {places}"


def test_a_proxy_speaks_over_the_unix_socket(bench: Bench) -> None:
    """It is served like the others, by each worker, and the log says how who came by it came."""
    path = serve(bench)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bench.path(UNIX)))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: registry.example\r\nConnection: close\r\n\r\n".encode())
        assert client.makefile("rb").read().endswith(CONTENT)

    assert soon(lambda: [line["client"] for line in bench.events("lading", "request")][-1:] == ["unix"])


def test_the_journal_is_asked_for_what_was_pushed_to_a_repository(bench: Bench) -> None:
    """Whoever answers the telephone knows a name, and maybe the id that a client was shown."""
    digest = serve(bench).rpartition("/")[2]
    asked = ("REPOSITORY=app", "METHOD=PUT", f"DIGEST={digest}")
    assert soon(lambda: bench.says("journalctl", "-q", "-u", "lading", "-o", "json", *asked) != "")

    push = json.loads(bench.run("journalctl", "-q", "-u", "lading", "-o", "json", *asked))

    assert (push["STATUS"], push["ACTOR"], push["PRIORITY"]) == ("201", "anonymous", "6")
    assert (push["_TRANSPORT"], push["_SYSTEMD_UNIT"]) == ("journal", "lading.service")


def test_an_edited_socket_unit_makes_no_open_door(bench: Bench) -> None:
    """A socket unit is edited quickly: beyond this machine it takes users, or the word `open`."""
    serve(bench)
    bench.drop_in("lading.socket", "[Socket]\nListenStream=\nListenStream=[::]:5001\n")
    bench.says("systemctl", "restart", "lading.socket", "lading")
    assert soon(lambda: "without authentication everybody who reaches [::]:5001" in bench.output())

    bench.run("sh", "-c", "echo 'auth: {open: true}' > /etc/lading/lading.yaml")

    for host in ("127.0.0.1", "::1"):
        Wire(host, 5001, PATIENCE_SECONDS).request("GET", "/metrics").expect(200)
