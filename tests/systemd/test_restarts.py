"""Restart, reload, upgrade: 32 clients and a slow upload see nothing of it."""

import time
from pathlib import Path

from tests.capability.certificates import Authority
from tests.capability.crowd import Crowd, SlowUpload
from tests.systemd.bench import Bench
from tests.systemd.served import CONTENT, WIRES, assert_quiet, encrypted, serve, soon

UPLOAD_SECONDS = 6.0
RELOADED = "reloaded: new workers serve, the old ones finish"


def test_no_request_is_lost_over_restarts(bench: Bench) -> None:
    """The sockets are systemd's: who comes meanwhile waits in their queue, and what is in flight is finished."""
    path = serve(bench)

    with Crowd(WIRES, path, CONTENT) as crowd:
        for seconds in (UPLOAD_SECONDS, 1.5, 1.5):
            upload = SlowUpload(WIRES[0], seconds)
            bench.systemctl("restart", "lading")
            upload.assert_stored()
            time.sleep(0.5)

    crowd.assert_untroubled()
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s")
    assert bench.show("lading", "NRestarts") == "0"
    assert_quiet(bench, "lading.service")


def test_no_request_is_lost_over_reloads(bench: Bench) -> None:
    """New settings for new workers; the old ones finish what they have."""
    path = serve(bench)

    with Crowd(WIRES, path, CONTENT) as crowd:
        upload = SlowUpload(WIRES[0], UPLOAD_SECONDS)
        for count in (1, 2, 3):
            bench.systemctl("reload", "lading")
            assert soon(lambda count=count: len(bench.events("lading", RELOADED)) == count)  # type: ignore[misc]
            assert soon(lambda: bench.show("lading", "ActiveState") == "active")
        upload.assert_stored()

    crowd.assert_untroubled()
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s")
    assert_quiet(bench, "lading.service")


def test_no_request_is_lost_over_upgrades(bench: Bench) -> None:
    """A second service on the same sockets is ready before the first leaves; so there and back."""
    path = serve(bench)

    with Crowd(WIRES, path, CONTENT) as crowd:
        for new, old in (("lading@blue", "lading"), ("lading@green", "lading@blue"), ("lading@blue", "lading@green")):
            upload = SlowUpload(WIRES[0], UPLOAD_SECONDS / 2)
            bench.systemctl("start", new)
            bench.systemctl("stop", old)
            upload.assert_stored()
            assert bench.run("systemctl", "is-active", "lading.socket", new) == "active\nactive"
            time.sleep(0.5)

    crowd.assert_untroubled()
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s")
    assert bench.says("systemctl", "is-active", "lading", "lading@green") == "inactive\ninactive"
    assert_quiet(bench, "lading.service", "lading@blue.service", "lading@green.service")


def test_no_request_is_lost_under_tls(bench: Bench, tmp_path: Path) -> None:
    """A connection that is accepted is not yet one that is agreed upon: no handshake is cut by a stop either."""
    wires = encrypted(bench, Authority(tmp_path / "authority"))
    path = serve(bench, wires)

    with Crowd(wires, path, CONTENT) as crowd:
        for words in (["restart lading"], ["reload lading"], ["start lading@blue", "stop lading"]):
            upload = SlowUpload(wires[0], UPLOAD_SECONDS / 2)
            for command in words:
                bench.systemctl(*command.split())
            upload.assert_stored()
            time.sleep(0.5)

    crowd.assert_untroubled()
    print(f"{crowd.answered} answered, the slowest after {crowd.slowest_seconds:.2f} s")
    assert_quiet(bench, "lading.service", "lading@blue.service")
