"""The registry as its units start it, and where its clients find it."""

import functools
import os
from collections.abc import Sequence
from dataclasses import replace

from tests.capability.certificates import Authority
from tests.capability.content import digest_of
from tests.capability.server import until
from tests.systemd.bench import Bench
from tests.wire import Wire

# A start may take long on a busy machine, and clients wait for it.
PATIENCE_SECONDS = 120.0
WIRES = tuple(Wire(host, 5000, PATIENCE_SECONDS) for host in ("127.0.0.1", "::1"))
UNIX = "/run/lading.sock"
CONTENT = os.urandom(3000)
INFO = 6

soon = functools.partial(until, seconds=PATIENCE_SECONDS)


def serve(bench: Bench, wires: Sequence[Wire] = WIRES) -> str:
    """Start it by the first connection, as on any machine; push a blob, and return its path."""
    bench.systemctl("enable", "--now", "lading.socket")
    location = wires[0].request("POST", "/v2/app/blobs/uploads/", body=b"").expect(202)["Location"]
    digest = digest_of(CONTENT)
    wires[1].request("PUT", f"{location}?digest={digest}", body=CONTENT).expect(201)
    return f"/v2/app/blobs/{digest}"


def encrypted(bench: Bench, authority: Authority) -> tuple[Wire, ...]:
    """Give the registry a certificate, before it starts, and return the wires of clients that trust it."""
    certificate, key = authority.issue(extensions="subjectAltName=IP:127.0.0.1,IP:::1\n")
    bench.run("mkdir", "-p", "/etc/lading")
    settings = ["http:"]
    for name, file in (("tls_certificate", certificate), ("tls_key", key)):
        place = f"/etc/lading/{name}.pem"
        bench.run("sh", "-euc", f"cat > {place}; chown lading: {place}; chmod 600 {place}", typed=file.read_text())
        settings.append(f"  {name}: {place}")
    bench.run("sh", "-c", "cat > /etc/lading/lading.yaml", typed="\n".join(settings))
    return tuple(replace(wire, tls=authority.client()) for wire in WIRES)


def assert_quiet(bench: Bench, *units: str) -> None:
    """Assert that the services had nothing to complain of."""
    lines = [line for unit in units for line in bench.lines(unit)]
    assert [line for line in lines if int(line["priority"]) < INFO] == []
