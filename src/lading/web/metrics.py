"""`/metrics`: what all workers counted, in the text format of Prometheus, for this machine and for users."""

import asyncio
import importlib.metadata
import ipaddress
import platform
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lading import metrics
from lading.auth.identity import ANONYMOUS
from lading.auth.policy import Action, Policy
from lading.logs import event_logger
from lading.metrics import Counters, Gauge, Histogram
from lading.oci.errors import Denied

LOOK_SECONDS = 2.0
# A proxy on this machine is not its client: where one speaks for somebody, the address of the peer says nothing.
_FORWARDING = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"})

OPEN_UPLOADS = ("lading_open_uploads", "Upload sessions that are neither finished nor ended.")
FREE_BYTES = ("lading_store_free_bytes", "Room that is left on the disk of the data directory.")
BUILD = ("lading_build_info", "1, with the versions of Lading and Python as labels.")

Look = Callable[[], Awaitable[int]]
Looks = Mapping[tuple[str, str], Look]
"""What is not counted but looked at for each page: by name and meaning."""


class MetricsPage:
    """Answers `GET /metrics`. Without a policy everybody may read, for a listener of its own."""

    def __init__(self, looks: Looks, policy: Policy | None) -> None:
        self._looks = looks
        self._policy = policy

    async def answer(self, request: Request) -> Response:
        """Render the page.

        Raises:
            Unauthorized: the client is on another machine and sends no user's credentials.
            Denied: it is, and there are no users.

        """
        if self._policy is not None and not _is_near(request.scope):
            identity = await self._policy.authorize(request.headers.get("authorization"), Action.PING, None)
            if identity == ANONYMOUS:
                raise Denied("metrics are for this machine, for users, or on a port of their own (metrics.port)")
        seen = [(name, await _look(name[0], look)) for name, look in self._looks.items()]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Page(metrics.here.totals(), {name: value for name, value in seen if value is not None}))
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=kind, headers={"Cache-Control": "no-store"})


def beside(application: ASGIApp, page: ASGIApp, port: int) -> ASGIApp:
    """Return an application that gives what comes to `port` to `page`, and all else to `application`."""

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        server = scope.get("server")
        await (page if server is not None and server[1] == port else application)(scope, receive, send)

    return choose


class _Page(Collector):
    """What one page shows."""

    def __init__(self, totals: Sequence[int], seen: Mapping[tuple[str, str], int]) -> None:
        self._totals = totals
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        for family in metrics.FAMILIES:
            match family:
                case Counters():
                    yield _counters(family, self._totals)
                case Histogram():
                    yield _histogram(family, self._totals)
                case Gauge():
                    yield GaugeMetricFamily(family.name, family.meaning, self._totals[family.first])
        for (name, meaning), value in self._seen.items():
            yield GaugeMetricFamily(name, meaning, value)
        build = GaugeMetricFamily(*BUILD, labels=("version", "python"))
        build.add_metric((importlib.metadata.version("lading"), platform.python_version()), 1)
        yield build


def _counters(family: Counters, totals: Sequence[int]) -> Metric:
    """Return the series that count something; one without labels also at 0."""
    shown = CounterMetricFamily(family.name, family.meaning, labels=family.labels)
    for labels, count in zip(family.series, totals[family.first :], strict=False):
        if count or len(family.labels) <= 1:
            shown.add_metric(labels, count)
    return shown


def _histogram(family: Histogram, totals: Sequence[int]) -> Metric:
    shown = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
    names = [*(f"{bound / family.per_unit:g}" for bound in family.bounds), "+Inf"]
    for number, labels in enumerate(family.series):
        first = family.first + number * family.cells_each
        *counts, total = totals[first : first + family.cells_each]
        buckets = [(name, float(count)) for name, count in zip(names, accumulate(counts), strict=True)]
        shown.add_metric(labels, buckets, total / family.per_unit)
    return shown


async def _look(name: str, look: Look) -> int | None:
    """Return what there is to see, or None: the page is wanted most when something does not work."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await look()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other numbers are there
        event_logger().warning("a metric is left out", name=name, error=repr(error))
        return None


def _is_near(scope: Scope) -> bool:
    client = scope.get("client")
    if client is None or any(name in _FORWARDING for name, _ in scope["headers"]):
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
