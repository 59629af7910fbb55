"""A real journald is asked for what the program and its workers said."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capability.content import new_image
from tests.capability.program import environment
from tests.capability.repository import Repository
from tests.capability.server import LADING, until
from tests.logs.journald import Journald
from tests.wire import Wire

RECORDS = 20_000
RESTARTS = 3
PATIENCE_SECONDS = 90.0
WRITER = Path(__file__).with_name("writer.py")
EVENT = """
import sys
from lading import logs
logs.configure("journal")
try:
    raise ValueError(5 * 2**20 * "é")
except ValueError:
    logs.event_logger().exception("large")
logs.event_logger().warning("odd", repository=b"a\\n\\0=\\xff\\n".decode("utf-8", "surrogateescape"))
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """Run one."""
    with Journald(tmp_path) as running:
        yield running


def test_what_a_push_left_is_found_by_its_repository(tmp_path: Path, journald: Journald) -> None:
    """Nothing is set: the server finds out by itself that systemd connected it to the journal."""
    data = tmp_path / "data"
    command = journald.connected(*LADING, "serve", "--port", "0", "--data", str(data), "--workers", "2")
    server = subprocess.Popen(command, env=environment(), start_new_session=True)
    try:
        assert until(lambda: journald.records("EVENT=ready") != [], seconds=PATIENCE_SECONDS)
        (ready,) = journald.records("EVENT=ready")
        repository = Repository(Wire("127.0.0.1", int(ready["LADING_PORT"])), "team/app")
        image = new_image()
        repository.push_blobs(image)
        answer = repository.put_manifest("v1", image.manifest).expect(201)
        repository.request("GET", "manifests/v1").expect(200)
        pushes = ("REPOSITORY=team/app", f"DIGEST={image.digest}", "TAG=v1", "METHOD=PUT")
        assert until(lambda: journald.records(*pushes) != [])

        (push,) = journald.records(*pushes)
        assert push["REQUEST_ID"] == answer["X-Request-Id"]
        assert (push["PRIORITY"], push["ACTOR"], push["STATUS"]) == ("6", "anonymous", "201")
        assert push["SYSLOG_IDENTIFIER"] == "lading"
        assert push["_TRANSPORT"] == "journal"
        assert journald.records(f"REQUEST_ID={push['REQUEST_ID']}") == [push]
        assert [record for record in journald.records() if record["_TRANSPORT"] == "stdout"] == []
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_a_restart_under_load_loses_nothing(journald: Journald) -> None:
    """While journald is gone, records wait in its socket, then in ours."""
    command = journald.inside(sys.executable, str(WRITER), "journal", "w", str(RECORDS))
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        assert until(lambda: journald.records("-n1", "EVENT=request") != [], seconds=PATIENCE_SECONDS)
        for _ in range(RESTARTS):
            journald.tell("start")
        last = f"REQUEST_ID=w-{RECORDS - 1}"
        assert until(lambda: journald.records(last) != [], seconds=PATIENCE_SECONDS)
        writer.communicate()
        assert writer.returncode == 0

    found = [record["REQUEST_ID"] for record in journald.records("EVENT=request", "--output-fields=REQUEST_ID")]
    assert sorted(found) == sorted(f"w-{number}" for number in range(RECORDS))


def test_large_records_and_any_bytes_arrive(journald: Journald) -> None:
    """A field of 10 MiB, and a value with a line end, a NUL and what is no UTF-8."""
    subprocess.run(journald.inside(sys.executable, "-c", EVENT), check=True)

    (large,) = journald.records("EVENT=large", "--output-fields=EXCEPTION,PRIORITY")
    (odd,) = journald.records("EVENT=odd")
    assert 5 * 2**20 * "é" in large["EXCEPTION"]
    assert (large["PRIORITY"], odd["PRIORITY"]) == ("3", "4")
    assert bytes(odd["REPOSITORY"]) == b"a\n\0=\xff\n"
    assert json.dumps(odd["MESSAGE"]).isascii()
