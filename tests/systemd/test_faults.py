"""What hangs, and what does not start: found, replaced, and waited for on sockets that stay."""

import contextlib
import json

from tests.systemd.bench import Bench
from tests.systemd.served import CONTENT, WIRES, serve, soon

WATCHDOG = "[Service]\nWatchdogSec=10\n"
BROKEN = "[Service]\nRestartSec=100ms\nExecStart=\nExecStart=/bin/false\n"
KEPT = 8
FAILED_STARTS = 7  # systemd's default gives up at five within ten seconds


def test_a_worker_that_hangs_is_replaced_alone(bench: Bench) -> None:
    """Its loop has no turn any more; the parent and the other worker go on."""
    bench.drop_in("lading.service", WATCHDOG)
    path = serve(bench)
    hanging, *others = bench.workers("lading")

    bench.run("kill", "-STOP", str(hanging))

    assert soon(lambda: hanging not in (now := bench.workers("lading")) and len(now) == len(others) + 1)
    assert set(others) < set(bench.workers("lading"))
    assert bench.show("lading", "NRestarts") == "0"
    (event,) = bench.events("lading", "workers hang and are killed")
    assert len(json.loads(event["pids"])) == 1
    for _ in range(8):
        assert WIRES[0].request("GET", path).expect(200).body == CONTENT


def test_a_parent_that_hangs_is_replaced_with_all_workers(bench: Bench) -> None:
    """Who looks after the workers is looked after by systemd."""
    bench.drop_in("lading.service", WATCHDOG)
    path = serve(bench)
    assert soon(lambda: bench.show("lading", "ActiveState") == "active")
    parent = bench.show("lading", "MainPID")

    bench.run("kill", "-STOP", parent)

    assert soon(lambda: bench.show("lading", "NRestarts") != "0")
    assert WIRES[0].request("GET", path).expect(200).body == CONTENT
    assert bench.show("lading", "MainPID") != parent


def test_a_service_that_does_not_start_keeps_its_clients(bench: Bench) -> None:
    """Clients wait for the repair, and are answered on the connection that they have."""
    path = serve(bench)
    bench.drop_in("lading.service", BROKEN)
    bench.systemctl("restart", "--no-block", "lading")
    with WIRES[0].connect() as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert soon(lambda: int(bench.show("lading", "NRestarts")) >= FAILED_STARTS)
        assert bench.run("systemctl", "is-active", "lading.socket") == "active"

        bench.run("rm", "/etc/systemd/system/lading.service.d/test.conf")
        bench.systemctl("daemon-reload")

        assert client.read_reply().expect(200).body == CONTENT


def test_an_upgrade_that_does_not_start_costs_the_old_version_nothing(bench: Bench) -> None:
    """It is given the sockets first: were they made blocking by that, workers that race for a client would hang."""
    path = serve(bench)
    bench.drop_in("lading@green.service", BROKEN)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(WIRES[index % 2].connect()) for index in range(KEPT)]
        for client in kept:
            client.request("GET", path).expect(200)

        bench.systemctl("start", "--no-block", "lading@green")
        assert soon(lambda: int(bench.show("lading@green", "NRestarts")) >= 1)

        for wire in WIRES * KEPT:
            fresh = stack.enter_context(wire.connect())
            for client in (fresh, *kept):
                assert client.request("GET", path).expect(200).body == CONTENT
