"""The cells that all processes share, and the page's look at who asks."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message

from lading import metrics
from lading.auth.policy import OpenPolicy
from lading.metrics import OTHER, REQUESTS, Counters, Gauge, Process
from lading.oci import errors
from lading.oci.errors import Denied, RegistryError
from lading.web.metrics import MetricsPage
from lading.web.v2.routes import routes


def test_every_route_has_its_label() -> None:
    """One that is missing would be counted among the others."""
    assert (*routes(max_page_entries=1), OTHER) == metrics.ROUTES


def test_every_status_of_an_error_has_its_label() -> None:
    """A new error that is counted as another status is looked for in vain."""
    statuses = {kind.status for kind in _descendants(RegistryError) if kind.__module__ == errors.__name__}

    assert statuses <= set(metrics.STATUSES)


def _descendants(kind: type[RegistryError]) -> set[type[RegistryError]]:
    return {kind}.union(*map(_descendants, kind.__subclasses__()))


def test_no_two_families_share_a_cell() -> None:
    """The places are added up by hand."""
    taken = [cell for family in metrics.FAMILIES for cell in range(family.first, family.first + family.width)]

    assert taken == list(range(metrics.CELLS))


@pytest.mark.parametrize("route", metrics.ROUTES)
@pytest.mark.parametrize("status", [200, 507, 299])
def test_a_request_is_counted_under_its_own_labels(route: str, status: int) -> None:
    """The place in memory is computed, and the page computes it again."""
    process = Process()

    for method in (*metrics.METHODS[:-1], "PURGE"):
        process.request(route, method, status, 3, 5, 1_000_000)

    totals = process.totals()
    counted = {labels: totals[REQUESTS.first + place] for place, labels in enumerate(REQUESTS.series)}
    shown = str(status) if status != 299 else OTHER
    assert {labels for labels, count in counted.items() if count} == {
        (route, method, shown) for method in metrics.METHODS
    }
    number = metrics.ROUTES.index(route)
    assert totals[metrics.RECEIVED.first + number] == 3 * len(metrics.METHODS)
    assert totals[metrics.SENT.first + number] == 5 * len(metrics.METHODS)
    first = metrics.DURATION.first + number * metrics.DURATION.cells_each
    assert sum(totals[first : first + metrics.DURATION.cells_each - 1]) == len(metrics.METHODS)
    assert totals[first + metrics.DURATION.cells_each - 1] == 1000 * len(metrics.METHODS)


class Family:
    """Forks of this process that count something and then wait, until they are killed."""

    def __init__(self, parent: Process) -> None:
        self._parent = parent
        self.pids: list[int] = []

    def bear(self, *, waiting: int = 0) -> bool:
        """Fork one, and tell whether it got a row."""
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            claimed = self._parent.claim()
            self._parent.request("ping", "GET", 200, 0, 0, 0)
            self._parent.set(metrics.WAITING, waiting)
            os.write(tell, b"1" if claimed else b"0")
            while True:
                signal.pause()
        self.pids.append(pid)
        os.close(tell)
        with os.fdopen(told, "rb") as pipe:
            return pipe.read(1) == b"1"

    def kill(self, count: int = 1000) -> None:
        """Kill the oldest."""
        gone, self.pids = self.pids[:count], self.pids[count:]
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def shared() -> Process:
    process = Process()
    process.share(1)
    return process


@pytest.fixture
def family(shared: Process) -> Iterator[Family]:
    forks = Family(shared)
    yield forks
    forks.kill()


def total(process: Process, cells: Counters | Gauge, place: int = 0) -> int:
    return process.totals()[cells.first + place]


def test_a_row_is_one_process_alone_and_the_next_one_goes_on_with_it(shared: Process, family: Family) -> None:
    """Two writers in one row lose counts; a row that is begun anew loses them all."""
    for number in range(1, 4):
        assert family.bear()
        assert (total(shared, metrics.STARTS), _pings(shared)) == (number, number)

    family.kill(2)
    assert (total(shared, metrics.STARTS), _pings(shared)) == (3, 3)
    for number in range(4, 9):
        assert family.bear()
        assert (total(shared, metrics.STARTS), _pings(shared)) == (number, number)


def test_what_is_so_now_is_that_of_the_living(shared: Process, family: Family) -> None:
    """A worker that was killed, or left at a reload, has no connections."""
    for _ in range(3):
        family.bear(waiting=7)
    assert (total(shared, metrics.WAITING), total(shared, metrics.WORKERS)) == (21, 3)

    family.kill(1)
    assert (total(shared, metrics.WAITING), total(shared, metrics.WORKERS)) == (14, 2)
    family.bear()
    assert (total(shared, metrics.WAITING), total(shared, metrics.WORKERS)) == (14, 3)
    assert shared.claim()
    shared.set(metrics.WAITING, 1)
    assert (total(shared, metrics.WAITING), total(shared, metrics.WORKERS)) == (15, 4)


def _pings(process: Process) -> int:
    return process.totals()[REQUESTS.first + REQUESTS.series.index(("ping", "GET", "200"))]


def test_more_processes_than_rows_count_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They serve all the same; the caller warns."""
    monkeypatch.setattr(metrics, "MIN_ROWS", 1)
    parent = Process()
    parent.share(0)
    family = Family(parent)
    try:
        assert family.bear()

        assert not family.bear()
        assert _pings(parent) == 1
    finally:
        family.kill()


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 1), [], 200),
        (("127.9.9.9", 1), [], 200),
        (("::1", 1), [], 200),
        (("192.0.2.7", 1), [], 403),
        (("192.0.2.7", 1), [(b"x-forwarded-for", b"127.0.0.1")], 403),
        (("192.0.2.7", 1), [(b"host", b"localhost")], 403),
        (("127.0.0.1", 1), [(b"x-forwarded-for", b"127.0.0.1")], 403),
        (("2001:db8::1", 1), [], 403),
        (("", 0), [], 403),
        (None, [], 403),
    ],
)
def test_near_is_a_peer_on_loopback_that_speaks_for_itself(
    client: tuple[str, int] | None, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    """A header is what anybody writes; a Unix socket is a proxy's."""
    page = Starlette(routes=[Route("/", MetricsPage({}, OpenPolicy()).answer)])
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": client,
    }

    async def ask() -> int:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            await page(scope, receive, send)
        except Denied as error:
            return error.status
        answered: int = sent[0]["status"]
        return answered

    assert asyncio.run(ask()) == status


def test_what_cannot_be_looked_at_is_left_out_and_the_page_is_there() -> None:
    """It is wanted most when the database hangs."""

    async def broken() -> int:
        raise errors.Busy

    async def fine() -> int:
        return 5

    looks = {("lading_a", "a"): broken, ("lading_b", "b"): fine}

    async def ask() -> bytes:
        page = MetricsPage(looks, None)
        request: Any = type("Request", (), {"headers": {}, "scope": {}})
        return bytes((await page.answer(request)).body)

    shown = asyncio.run(ask())

    assert b"lading_b 5.0\n" in shown
    assert b"lading_a" not in shown
