"""The units that Lading ships: sound, locked down, and served by whom they say."""

from tests.capability.content import digest_of
from tests.systemd.bench import Bench
from tests.wire import Wire

WIRES = (Wire("127.0.0.1", 5000), Wire("::1", 5000))
MAX_EXPOSURE_TENTHS = "20"


def test_the_units_are_sound_and_locked_down(bench: Bench) -> None:
    """What systemd itself finds wrong, and what a service that was taken over could reach."""
    units = ("lading.socket", "lading.service", "lading@blue.service")

    assert bench.run("systemd-analyze", "verify", *units) == ""
    for unit in units[1:]:
        bench.run("systemd-analyze", "security", "--no-pager", f"--threshold={MAX_EXPOSURE_TENTHS}", unit)


def test_the_first_connection_starts_the_registry(bench: Bench) -> None:
    """IPv4, IPv6 and a Unix socket are there before the program is, and a push through it is kept by its own user."""
    bench.systemctl("enable", "--now", "lading.socket")
    assert bench.show("lading.service", "ActiveState") == "inactive"

    location = WIRES[0].request("POST", "/v2/app/blobs/uploads/", body=b"").expect(202)["Location"]
    content = bytes(100_000)
    WIRES[1].request("PUT", f"{location}?digest={digest_of(content)}", body=content).expect(201)

    assert bench.show("lading.service", "ActiveState") == "active"
    assert bench.run("stat", "-c", "%U:%G %a", "/var/lib/lading") == "lading:lading 750"
    (ready,) = bench.events("lading.service", "ready")
    assert ready["data"] == "/var/lib/lading"
