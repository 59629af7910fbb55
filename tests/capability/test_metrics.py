"""`/metrics`: right with any number of workers, through their deaths, and for those only whom it is meant for."""

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.capability.repository import Repository, new_name
from tests.capability.server import RegistryProcess, StartRegistry, until
from tests.wire import Reply, Wire

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ALICE = (("Authorization", "Basic YWxpY2U6c2VjcmV0"),)
CANARY = "canary-b3d1"


def samples(reply: Reply) -> Samples:
    """Return the page's samples by name and labels."""
    reply.expect(200)
    families = list(parse(reply.body.decode()))
    found = {(each.name, tuple(sorted(each.labels.items()))): each.value for one in families for each in one.samples}
    assert len(found) == sum(len(one.samples) for one in families), "a series came twice"
    return found


def page(server: RegistryProcess) -> Samples:
    return samples(server.wire.request("GET", "/metrics"))


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of the series that have these labels."""
    return sum(
        number for (other, pairs), number in found.items() if other == name and labels.items() <= dict(pairs).items()
    )


def page_when(server: RegistryProcess, name: str, wanted: float, **labels: str) -> Samples:
    """Return the page as soon as it has that value: a request is counted when its reply has gone."""
    assert until(lambda: value(page(server), name, **labels) == wanted), f"{name}: {value(page(server), name)}"
    return page(server)


def monotonic(found: Samples) -> Samples:
    return {key: number for key, number in found.items() if re.search("_(total|count|sum|bucket)$", key[0])}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[RegistryProcess]:
    server = RegistryProcess(tmp_path, workers=3)
    server.start_whole()
    try:
        assert until(lambda: len(server.tree()) == 4)
        yield server
        server.stop()
    finally:
        server.kill()


def test_all_workers_are_one_and_the_dead_are_not_forgotten(three: RegistryProcess) -> None:
    """A scrape meets any worker; a total that goes down, or forgets a worker, makes every graph lie."""
    sent = 0
    before = page(three)
    for _ in range(4):
        for _ in range(50):
            three.wire.request("GET", "/v2/").expect(200)
            three.wire.request("GET", "/v2/nothing/tags/list").expect(404)
        sent += 50
        now = page_when(three, "lading_http_requests_total", sent, route="ping")
        assert value(now, "lading_http_requests_total", route="tags", method="GET", status="404") == sent
        assert value(now, "lading_http_request_duration_seconds_count", route="tags") == sent
        assert not [key for key, number in monotonic(before).items() if monotonic(now).get(key, 0) < number]
        before = now

        victim = three.tree()[1]
        os.kill(victim, signal.SIGKILL)
        page_when(three, "lading_worker_starts_total", 3 + sent / 50)


def test_a_push_is_counted_in_bytes_syncs_and_groups(registry: RegistryProcess) -> None:
    """The numbers are those of what happened."""
    content = os.urandom(100_000)
    repository = Repository(registry.wire, new_name())
    before = page(registry)

    location = repository.start_upload()
    during = page(registry)
    digest = repository.push_blob(content)
    repository.request("GET", f"blobs/{digest}").expect(200)
    repository.send("DELETE", location).expect(204)

    after = page(registry)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert value(during, "lading_open_uploads") >= 1
    assert grown("lading_http_received_bytes_total", route="upload") >= 100_000
    assert grown("lading_http_sent_bytes_total", route="blob") >= 100_000
    assert grown("lading_http_requests_total", route="upload", method="PUT", status="201") >= 1
    assert grown("lading_store_sync_seconds_count") >= 2
    assert 0 < grown("lading_store_sync_seconds_sum") < 30
    assert grown("lading_database_commit_seconds_count") >= 2
    assert grown("lading_database_group_writes_sum") >= grown("lading_database_group_writes_count") >= 2
    assert value(after, "lading_store_free_bytes") > 1_000_000
    assert value(after, "lading_database_waiting_writes") == 0
    assert value(after, "lading_build_info") == 1


def test_a_histogram_is_cumulative_and_ends_in_its_count(registry: RegistryProcess) -> None:
    """Quantiles are made from it."""
    registry.wire.request("GET", "/v2/").expect(200)
    found = page(registry)

    for name, route in (("lading_http_request_duration_seconds", "ping"), ("lading_database_group_writes", None)):
        labels = {"route": route} if route else {}
        buckets = [
            (float(dict(pairs)["le"]), number)
            for (other, pairs), number in found.items()
            if other == f"{name}_bucket" and labels.items() <= dict(pairs).items()
        ]
        assert buckets == sorted(buckets)
        assert [number for _, number in buckets] == sorted(number for _, number in buckets)
        assert buckets[-1] == (float("inf"), value(found, f"{name}_count", **labels))


def test_open_connections_are_told(registry: RegistryProcess) -> None:
    """Those of all workers, also of the ones that do not answer the page."""
    quiet = value(page(registry), "lading_http_connections")
    connections = [registry.wire.connect() for _ in range(12)]
    try:
        assert until(lambda: value(page(registry), "lading_http_connections") >= quiet + 11)
    finally:
        for connection in connections:
            connection.close()
    assert until(lambda: value(page(registry), "lading_http_connections") <= quiet + 1)


def test_no_name_from_outside_is_on_the_page(registry: RegistryProcess) -> None:
    """A label per repository, or per path that somebody tries, grows without end and tells what is there."""
    for path in (f"/v2/{CANARY}/tags/list", f"/v2/a/manifests/{CANARY}", f"/{CANARY}", f"/v2/{CANARY}", "/v2//"):
        for method in ("GET", "DELETE", "PURGE", "OPTIONS"):
            registry.wire.request(method, path, headers={"User-Agent": CANARY, "X-Forwarded-For": "1.1.1.1"})

    reply = registry.wire.request("GET", "/metrics").expect(200)

    assert CANARY not in reply.body.decode()
    assert value(samples(reply), "lading_http_requests_total", route="other", method="other") >= 3


def test_openmetrics_is_given_to_whom_asks_for_it(registry: RegistryProcess) -> None:
    """Prometheus asks for it first."""
    asked = registry.wire.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    plain = registry.wire.request("GET", "/metrics")

    assert asked["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert plain["Content-Type"].startswith("text/plain; version=")
    assert {
        one.name
        for one in parse_openmetrics(asked.body.decode())  # type: ignore[no-untyped-call]
    } == {one.name.removesuffix("_total") for one in parse(plain.body.decode())}


# Whom it is for


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.htpasswd"
    file.write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    return file


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_a_proxy_on_this_machine_is_not_this_machine(registry: RegistryProcess, header: str) -> None:
    """Every client of a proxy in front comes from loopback; what it says of itself can only take away."""
    registry.wire.request("GET", "/metrics").expect(200)

    reply = registry.wire.request("GET", "/metrics", headers={header: "127.0.0.1"})

    reply.expect(403)
    assert b"metrics.port" in reply.body


def test_from_elsewhere_it_takes_a_user(start_registry: StartRegistry, users: Path) -> None:
    """The same policy as everywhere decides."""
    server = start_registry({"LADING_AUTH__HTPASSWD": str(users), "LADING_AUTH__ANONYMOUS_PULL": "true"})
    elsewhere = (("Via", "1.1 proxy"),)

    stranger = server.wire.request("GET", "/metrics", headers=elsewhere)
    wrong = server.wire.request("GET", "/metrics", headers=(*elsewhere, ("Authorization", "Basic YWxpY2U6d3Jvbmc=")))
    user = server.wire.request("GET", "/metrics", headers=(*elsewhere, *ALICE))

    stranger.expect(401, {"WWW-Authenticate": 'Basic realm="Lading"'})
    wrong.expect(401, {"WWW-Authenticate": 'Basic realm="Lading"'})
    assert samples(user)
    assert samples(server.wire.request("GET", "/metrics"))


def test_on_its_own_port_it_is_alone(start_registry: StartRegistry, users: Path) -> None:
    """A scraper needs no login there, and reaches nothing else; it is not announced as the registry."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    server = start_registry({"LADING_METRICS__PORT": str(port), "LADING_AUTH__HTPASSWD": str(users)})
    aside = Wire("127.0.0.1", port)

    assert value(samples(aside.request("GET", "/metrics", headers={"Via": "x"})), "lading_build_info") == 1
    for path in ("/v2/", "/v2/_catalog", "/", "/readyz", "/v2/a/manifests/b"):
        aside.request("GET", path, headers=ALICE).expect(404)
    server.wire.request("GET", "/v2/", headers=ALICE).expect(200)
    assert f"127.0.0.1:{port}" not in server.output()


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"LADING_METRICS__PORT": "{port}"}, "metrics.port is {port}, the port of the registry itself"),
        ({"LADING_METRICS__PORT": "{taken}"}, "metrics: 127.0.0.1:{taken} is taken by another program"),
    ],
)
def test_a_port_that_it_cannot_have_stops_the_start(tmp_path: Path, environ: Mapping[str, str], sentence: str) -> None:
    """Metrics that nobody reads are noticed on the day that they are needed."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = RegistryProcess(tmp_path)
        ports: dict[str, Any] = {"port": server.wire.port, "taken": other.getsockname()[1]}
        server = RegistryProcess(tmp_path, {name: text.format(**ports) for name, text in environ.items()})
        server.wire = Wire("127.0.0.1", ports["port"])

        with pytest.raises(AssertionError, match="did not become ready"):
            server.start_whole()

    assert sentence.format(**ports) in server.output()
