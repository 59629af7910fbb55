"""What reaches standard output, line by line, through real pipes, sockets, files and terminals."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from lading import logs

NOON_NS = 1_795_521_600_123_456_789
COLOUR = re.compile("\x1b\\[[0-9]+m")
PIPE_ROOM_BYTES = 4 * logs.MAX_LINE_BYTES
TEXTS = ("request_id", "method", "route", "repository", "tag", "digest", "actor", "client")
HOSTILE = '"\\\n\r\x00\x1b[2J\x7f\x85\u2028\u202e\udc80é😀'


class Pipe:
    """A pipe whose reader is the test; it has room for `PIPE_ROOM_BYTES`."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_ROOM_BYTES)
        os.set_blocking(self.reader, False)

    def read(self) -> bytes:
        """Return what is there."""
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reader, 65536):
                pieces.append(piece)
        return b"".join(pieces)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Return a pipe, and close what of it is still open."""
    made = Pipe()
    yield made
    for descriptor in (made.reader, made.writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Return the two ends of a pseudo terminal: the one a person sees, and the one a program writes to."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    seen, written = pty.openpty()
    yield seen, written
    os.close(seen)
    os.close(written)


@pytest.fixture
def fresh_logging() -> Iterator[None]:
    """Undo what `configure` did to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def record(**changes: Any) -> dict[str, Any]:
    return {
        "request_id": "0123abcd",
        "method": "GET",
        "route": "blob",
        "repository": "library/alpine",
        "tag": "v1",
        "digest": "sha256:" + 64 * "a",
        "actor": "alice",
        "status": 200,
        "sent_bytes": 1_234_567,
        "received_bytes": 0,
        "duration_us": 1234,
        "client": "127.0.0.1",
        **changes,
    }


def test_a_line_is_one_json_object_with_the_promised_keys(pipe: Pipe) -> None:
    """Other people's programs read these."""
    logs.AccessLog("json", fd=pipe.writer, clock=lambda: NOON_NS).write(**record())

    line = pipe.read().decode()
    assert line.endswith("}\n")
    assert list(json.loads(line).items()) == [
        ("event", "request"),
        ("at", "2026-11-24T12:00:00.123456Z"),
        ("request_id", "0123abcd"),
        ("method", "GET"),
        ("route", "blob"),
        ("repository", "library/alpine"),
        ("tag", "v1"),
        ("digest", "sha256:" + 64 * "a"),
        ("actor", "alice"),
        ("status", 200),
        ("bytes", 1_234_567),
        ("received", 0),
        ("duration_us", 1234),
        ("client", "127.0.0.1"),
    ]


def test_what_a_request_does_not_have_is_null(pipe: Pipe) -> None:
    """An empty string would be a name."""
    logs.AccessLog("json", fd=pipe.writer).write(
        **record(repository=None, tag=None, digest=None, actor=None, client=None)
    )

    line = json.loads(pipe.read())
    assert [line[name] for name in ("repository", "tag", "digest", "actor", "client")] == 5 * [None]


def test_the_time_goes_on_within_and_between_seconds(pipe: Pipe) -> None:
    """The second is formatted once, and must not stick."""
    times = iter((NOON_NS, NOON_NS + 1000, NOON_NS + 1_000_000_000, NOON_NS))
    log = logs.AccessLog("json", fd=pipe.writer, clock=lambda: next(times))

    for _ in range(4):
        log.write(**record())

    assert [json.loads(line)["at"][17:] for line in pipe.read().splitlines()] == [
        "00.123456Z",
        "00.123457Z",
        "01.123456Z",
        "00.123456Z",
    ]


@given(text=st.text(max_size=40), style=st.sampled_from(["json", "console"]))
@example(text=HOSTILE, style="json")
@example(text=HOSTILE, style="console")
def test_no_text_can_break_a_line(text: str, style: logs.Style) -> None:
    """A path or a client's name may hold a line end, or what a terminal obeys."""
    pipe = Pipe()
    texts = dict.fromkeys(TEXTS, text)

    log = logs.AccessLog(style, fd=pipe.writer)
    log.write(**record(**texts))

    line = pipe.read()
    log.close()
    os.close(pipe.reader)
    os.close(pipe.writer)
    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()
    if style == "json":
        assert {name: json.loads(line)[name] for name in texts} == texts


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("character", ["a", "\x00", "😀"])
def test_a_line_fits_what_a_pipe_takes_at_once(pipe: Pipe, style: logs.Style, character: str) -> None:
    """Workers share the pipe: a longer line could be torn by a neighbour's."""
    text = 20_000 * character
    texts = dict.fromkeys(TEXTS, text)

    logs.AccessLog(style, fd=pipe.writer).write(**record(**texts, status=500))

    line = pipe.read()
    assert len(line) <= logs.MAX_LINE_BYTES
    assert line.count(b"\n") == 1
    if style == "json":
        assert json.loads(line)["route"] == 34 * character + "..."


def test_a_long_path_leaves_the_other_fields_alone(pipe: Pipe) -> None:
    """What one field has too much, the others need not pay."""
    logs.AccessLog("json", fd=pipe.writer).write(**record(route="/" + 9000 * "x"))

    line = json.loads(pipe.read())
    assert (line["digest"], line["repository"]) == ("sha256:" + 64 * "a", "library/alpine")


def test_a_slow_reader_costs_lines_and_never_a_wait(pipe: Pipe, fresh_logging: None) -> None:  # noqa: ARG001
    """A log collector that hangs must not hang the registry; what was lost is told when it is back."""
    logs.configure("json", fd=pipe.writer)
    log = logs.AccessLog("json", fd=pipe.writer)
    for number in range(200):
        log.write(**record(request_id=str(number)))

    taken = pipe.read().splitlines()
    log.write(**record(request_id="after"))

    after, report = map(json.loads, pipe.read().splitlines())
    assert [json.loads(line)["request_id"] for line in taken] == [str(number) for number in range(len(taken))]
    assert 0 < len(taken) < 200
    assert after["request_id"] == "after"
    assert (report["event"], report["count"]) == ("log lines were dropped", 200 - len(taken))


def test_the_shared_descriptor_stays_blocking(pipe: Pipe) -> None:
    """O_NONBLOCK on it would reach the shell that started us, and every other program of the pipe."""
    logs.AccessLog("json", fd=pipe.writer).write(**record())

    assert os.get_blocking(pipe.writer)


def test_a_reader_that_left_is_no_error(pipe: Pipe) -> None:
    """`lading serve | head` must not end in a traceback."""
    log = logs.AccessLog("json", fd=pipe.writer)
    os.close(pipe.reader)

    log.write(**record())
    log.write(**record())


def test_a_pipe_whose_reader_left_before_we_came_is_no_error(pipe: Pipe) -> None:
    """It cannot be opened anew any more, so this walks the other way of not waiting."""
    os.close(pipe.reader)

    logs.AccessLog("json", fd=pipe.writer).write(**record())


def test_a_closed_descriptor_is_no_error(pipe: Pipe) -> None:
    """`lading serve >&-` is odd, and allowed."""
    os.close(pipe.writer)

    logs.AccessLog("json", fd=pipe.writer).write(**record())


def test_a_line_that_was_cut_does_not_take_the_next_one_with_it() -> None:
    """A stream socket, as systemd's journal gives us, may take half a line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        output = logs.Output(ours.fileno())

        cut = output.write(b"x" * 1_000_000 + b"\n")
        received = bytearray(theirs.recv(2_000_000))
        whole = output.write(b"next\n")
        received += theirs.recv(2_000_000)
        output.close()

    assert (cut, whole) == (False, True)
    assert received.rstrip(b"\n").splitlines()[-1] == b"next"
    assert set(received.splitlines()[0]) == set(b"x")


def test_an_event_waits_a_moment_for_room(pipe: Pipe) -> None:
    """Events are few and matter more: a traceback longer than the pipe's room arrives, if somebody reads."""
    output = logs.Output(pipe.writer)
    message = b"y" * (3 * PIPE_ROOM_BYTES) + b"\n"
    child = os.fork()
    if child == 0:
        output.write(message, patience_ms=20_000)
        os._exit(0)
    output.close()
    os.close(pipe.writer)
    os.set_blocking(pipe.reader, True)

    received = b"".join(iter(lambda: os.read(pipe.reader, 4096), b""))
    os.waitpid(child, 0)
    assert received == message


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """Without O_APPEND a log that was truncated by rotation fills with NULs."""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    log = logs.AccessLog("json", fd=descriptor)
    log.write(**record())

    os.truncate(path, 0)
    log.write(**record(request_id="second"))

    os.close(descriptor)
    assert json.loads(path.read_bytes())["request_id"] == "second"


def test_a_terminal_is_shown_one_readable_line(terminal: tuple[int, int]) -> None:
    """A person who tries Lading reads this, not JSON."""
    seen, written = terminal

    logs.AccessLog("auto", fd=written, clock=lambda: NOON_NS).write(**record(method="PUT", received_bytes=999))

    shown = COLOUR.sub("", read_terminal(seen))
    assert shown == (
        "12:00:00.123 200 PUT    blob               library/alpine:v1 sha256:aaaaaaaaaaaa 999 B in, 1.2 MB out, "
        "1.2 ms, 127.0.0.1\r\n"
    )


@pytest.mark.parametrize(("status", "code"), [(201, 32), (307, 36), (404, 33), (503, 31)])
def test_a_status_has_the_colour_of_its_kind(terminal: tuple[int, int], status: int, code: int) -> None:
    """Trouble is red."""
    seen, written = terminal

    logs.AccessLog("auto", fd=written).write(**record(status=status))

    assert f"\x1b[{code}m{status}\x1b[0m" in read_terminal(seen)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_refused(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """NO_COLOR is a convention of all programs."""
    seen, written = terminal
    monkeypatch.setenv(name, value)

    logs.AccessLog("auto", fd=written).write(**record())

    assert "\x1b" not in read_terminal(seen)


@pytest.mark.usefixtures("fresh_logging")
def test_an_event_is_a_json_object(pipe: Pipe) -> None:
    """Events and requests share a stream and are told apart by `event`."""
    logs.configure("json", fd=pipe.writer)

    logs.event_logger().info("ready", port=5000, place=HOSTILE)

    line = pipe.read()
    event = json.loads(line)
    assert line[:-1].decode("ascii").replace("\x7f", "").isprintable()
    assert list(event)[:2] == ["event", "at"]
    assert (event["event"], event["level"], event["port"], event["place"]) == ("ready", "info", 5000, HOSTILE)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["at"])


@pytest.mark.usefixtures("fresh_logging")
def test_what_libraries_log_arrives_with_its_traceback(pipe: Pipe) -> None:
    """Uvicorn and asyncio report our faults through the standard library's logging."""
    logs.configure("json", fd=pipe.writer)

    try:
        raise ValueError(HOSTILE)  # noqa: TRY301 - the traceback is what is tested
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in %s\n", "application")
    logging.getLogger("uvicorn.error").info("not worth a line")

    (line,) = pipe.read().splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"]) == ("Exception in application", "error")
    assert event["logger"] == "uvicorn.error"
    assert event["exception"].startswith("Traceback")


@pytest.mark.usefixtures("fresh_logging")
def test_an_event_on_a_terminal_cannot_command_it(terminal: tuple[int, int]) -> None:
    """A name from outside may be in an event; it must not clear the screen of who reads it."""
    seen, written = terminal
    logs.configure("auto", fd=written)

    logs.event_logger().warning(f"odd {HOSTILE}", name=HOSTILE)

    shown = COLOUR.sub("", read_terminal(seen))
    assert shown.removesuffix("\r\n").isprintable()
    assert "[warning  ]" in shown


def read_terminal(descriptor: int) -> str:
    """Return what a terminal shows, until it is quiet."""
    pieces = []
    while select.select([descriptor], [], [], 0.2)[0]:
        pieces.append(os.read(descriptor, 65536))
    return b"".join(pieces).decode()
