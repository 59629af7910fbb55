"""What the journal is sent, by a socket in its place: records of any content and size, with their fields."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tests.capability.server import until

from lading import logs
from lading.logs import courier, journal
from lading.logs.courier import Courier
from lading.logs.journal import Journal

REQUEST_ID = "0123abcd"


class Place:
    """A socket where the journal's would be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = self._bound()

    def _bound(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bound.bind(str(self.path))
        bound.settimeout(10)
        return bound

    def stop(self) -> None:
        """Be gone, with the name."""
        self.socket.close()
        self.path.unlink()

    def start(self) -> None:
        """Be another one of the same name."""
        self.socket = self._bound()

    def record(self) -> dict[str, bytes]:
        """Return the next record by its fields; where a large one comes as a file, it is sealed."""
        content, descriptors, _, _ = socket.recv_fds(self.socket, 1_000_000, 4)
        if descriptors:
            assert content == b""
            (memory,) = descriptors
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) == seals
            content = os.pread(memory, 100_000_000, 0)
            os.close(memory)
        return parsed(content)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Stand in for the journal."""
    made = Place(tmp_path / "socket")
    monkeypatch.setattr(journal, "SOCKET", made.path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield made
    made.socket.close()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def parsed(content: bytes) -> dict[str, bytes]:
    """Take a record apart, as journald does."""
    fields = {}
    while content:
        line, _, content = content.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(content[:8], "little")
            value, content = content[8 : 8 + size], content[9 + size :]
        fields[name.decode("ascii")] = value
    return fields


def test_a_request_is_a_record_that_can_be_asked_for(place: Place) -> None:
    """`journalctl REPOSITORY=team/app` is what this is for."""
    logs.AccessLog("journal").write(
        request_id=REQUEST_ID,
        method="PUT",
        route="manifest",
        repository="team/app",
        tag="v1",
        digest="sha256:" + 64 * "a",
        actor="alice",
        status=201,
        sent_bytes=0,
        received_bytes=1203,
        duration_us=8123,
        client=None,
    )

    fields = place.record()
    assert len(fields.pop("MESSAGE_ID")) == 32
    assert fields == {
        "SYSLOG_IDENTIFIER": b"lading",
        "PRIORITY": b"6",
        "MESSAGE": b"201 PUT manifest team/app:v1 sha256:aaaaaaaaaaaa, 1.2 kB in, 0 B out, 8.1 ms, "
        b"alice at an unknown address",
        "EVENT": b"request",
        "REQUEST_ID": b"0123abcd",
        "METHOD": b"PUT",
        "ROUTE": b"manifest",
        "REPOSITORY": b"team/app",
        "TAG": b"v1",
        "DIGEST": b"sha256:" + 64 * b"a",
        "ACTOR": b"alice",
        "STATUS": b"201",
        "BYTES": b"0",
        "RECEIVED_BYTES": b"1203",
        "DURATION_MS": b"8.123",
    }


def test_an_event_has_its_priority_its_fields_and_its_traceback(place: Place) -> None:
    """`journalctl -p err` shows it; what the table does not name has our name before it."""
    logs.configure("journal")

    try:
        raise ValueError("\x1b[2J")  # noqa: TRY301 - the traceback is what is tested
    except ValueError:
        logs.event_logger().exception("fault", request_id=REQUEST_ID, path="/v2/\n", **{"odd-name": 1})

    fields = place.record()
    traceback = fields.pop("EXCEPTION")
    assert traceback.startswith(b"Traceback")
    message = fields.pop("MESSAGE")
    assert message.startswith(b"fault request_id=0123abcd path=/v2/\\n odd-name=1\nTraceback")
    assert b"\x1b" not in message
    assert fields.pop("MESSAGE_ID") == journal.message_id("fault").encode()
    assert fields == {
        "SYSLOG_IDENTIFIER": b"lading",
        "PRIORITY": b"3",
        "EVENT": b"fault",
        "REQUEST_ID": REQUEST_ID.encode(),
        "LADING_PATH": b"/v2/\n",
        "LADING_ODD_NAME": b"1",
    }


@given(st.binary(max_size=40))
def test_any_bytes_of_a_value_arrive(value: bytes) -> None:
    """A path is what a client sends: line ends, NULs, what is no UTF-8."""
    fields = parsed(journal.record("m", 6, [("repository", value.decode("utf-8", "surrogateescape")), ("tag", "t")]))

    assert (fields["REPOSITORY"], fields["TAG"]) == (value, b"t")


@given(st.text(max_size=40), st.text(min_size=1, max_size=80))
def test_no_text_and_no_name_can_break_a_record(text: str, name: str) -> None:
    """Also a text that no encoding can hold, and the name of a field that the journal would refuse."""
    fields = parsed(journal.record(text, 6, [(name, text), ("tag", "t")]))

    assert fields["TAG"] == b"t"
    assert len(fields) == 5
    assert all(field[0] != "_" and len(field) <= 64 for field in fields)


def test_a_record_that_no_datagram_holds_is_sent_as_sealed_memory(place: Place) -> None:
    """A long traceback arrives whole."""
    text = 3_000_000 * "x\n"

    Courier(Journal()).put(journal.record("large", 6, [("exception", text)]))

    assert place.record()["EXCEPTION"] == text.encode()


def test_a_restart_of_the_journal_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is said while it is gone waits; it is called again by its name."""
    monkeypatch.setattr(courier, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(courier, "RETRY_SECONDS", 0.01)
    logs.configure("journal")
    lost: list[int] = []
    numbers = []
    with logs.in_background(lost.append):
        for number in range(30):
            logs.event_logger().info("event", number=number)
            if number % 10 == 3:
                numbers += drained(place, last=number)
                place.stop()
            if number % 10 == 6:
                assert until(lambda: "the journal takes nothing" in capfd.readouterr().err)
                place.start()
        numbers += drained(place, last=29)

    assert numbers == list(range(30))
    assert not lost


def drained(place: Place, *, last: int) -> list[int]:
    """Take records up to that one."""
    found = [-1]
    while found[-1] != last:
        found.append(int(place.record()["LADING_NUMBER"]))
    return found[1:]


@pytest.mark.usefixtures("place")
def test_the_journal_is_chosen_where_systemd_connects_us_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that was inherited into a pipe, or by a program in a terminal, says nothing."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs, contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not journal.is_connected(ours.fileno())
        of_pipe, of_socket = os.fstat(writer), os.fstat(ours.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{of_pipe.st_dev}:{of_pipe.st_ino}")
        assert not journal.is_connected(writer)
        monkeypatch.setenv("JOURNAL_STREAM", f"{of_socket.st_dev}:{of_socket.st_ino}")
        assert journal.is_connected(ours.fileno())
        assert not journal.is_connected(theirs.fileno())
        monkeypatch.setattr(journal, "SOCKET", Path("/nowhere/socket"))
        assert not journal.is_connected(ours.fileno())
