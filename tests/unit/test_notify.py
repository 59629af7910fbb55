"""What systemd is told."""

import os
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lading.web.notify import Manager


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_is_told_where_it_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """And what this process starts cannot speak for it."""
    name = str(tmp_path / "notify") if kind == "path" else f"@lading-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))

        manager = Manager.found()
        manager.hear_that_we_serve("2 workers")
        manager.hear_that_we_live()
        manager.hear_that_we_live()  # not yet again
        manager.hear_that_we_stop(35.0)

        said = [systemd.recv(4096).decode() for _ in range(3)]
    assert said == [
        "READY=1\nSTATUS=2 workers",
        "WATCHDOG=1",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000\nSTATUS=Finishing requests",
    ]
    assert (manager.watch_seconds, manager.pause_seconds) == (30.0, 10.0)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_a_watchdog_of_another_process_is_none_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell between systemd and the program hands its variables on."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")

    assert Manager.found().watch_seconds is None


def test_without_a_service_manager_nothing_is_said() -> None:
    """As on a terminal."""
    with capture_logs() as events:
        Manager.found().hear_that_we_serve("2 workers")

    assert events == []


def test_one_that_is_gone_is_in_the_log(tmp_path: Path) -> None:
    """It costs the registry nothing else."""
    with capture_logs() as events:
        Manager(str(tmp_path / "gone")).hear_that_we_serve("2 workers")

    assert [event["event"] for event in events] == ["the service manager cannot be told"]
