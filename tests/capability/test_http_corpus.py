"""Malformed requests over raw sockets: each is refused readably, and nothing behind it is ever taken for a request."""

import re
from dataclasses import replace

import pytest

from tests.capability.corpus import CASES, FOLLOWING, Case
from tests.capability.server import RegistryProcess
from tests.wire import Connection

SECONDS = 8.0


def _statuses(connection: Connection) -> tuple[int, ...]:
    """Return the status of each reply that comes before the server closes."""
    return tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", connection.read_to_end()))


def _cases() -> list[object]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.own_wire] if case.own_wire else []) for case in CASES]


@pytest.mark.parametrize("case", _cases())
def test_what_no_client_should_send_is_answered_once(registry: RegistryProcess, case: Case) -> None:
    """Bytes that two servers read in two ways carry a request past a proxy: there is one reply, and then the end."""
    with replace(registry.wire, timeout_seconds=SECONDS).connect() as connection:
        connection.send(case.sent + FOLLOWING)

        assert _statuses(connection) == case.statuses


@pytest.mark.own_wire
@pytest.mark.parametrize("case", [case for case in CASES if len(case.sent) < 400], ids=lambda case: case.name)
def test_it_does_not_matter_how_the_bytes_are_cut(registry: RegistryProcess, case: Case) -> None:
    """The network cuts where it likes, and a parser that minds has two readings of one request."""
    middle = len(case.sent) // 2
    with replace(registry.wire, timeout_seconds=SECONDS).connect() as connection:
        try:
            for piece in (case.sent[:middle], case.sent[middle:-1], case.sent[-1:] + FOLLOWING):
                connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has refused already

        assert _statuses(connection) == case.statuses
