"""Scrubbing a registry that runs, by command and by itself; the drill with all kinds of damage is in tests/faults."""

import signal
import subprocess

from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository
from tests.capability.server import LADING, StartRegistry, until
from tests.faults.corruption import Drill
from tests.faults.verifying import named, scrub, verify


def test_damage_is_found_never_served_again_and_healed_by_a_push(start_registry: StartRegistry) -> None:
    """Six of the sixty damages of the drill."""
    server = start_registry()
    drill = Drill(server)
    drill.plant(files=["middle byte", "swapped", "a byte short"], payloads=["all zero"], manifests=["first byte"])

    scrubbed = scrub(server.data)

    assert named(scrubbed) == drill.digests()
    for stored in drill.damaged:
        stored.assert_absent()
    assert named(verify(server.data)) == drill.digests()
    for stored in drill.damaged:
        stored.push()
    for stored in (*drill.damaged, *drill.bystanders):
        stored.assert_whole()
    assert scrub(server.data).exit_code == 0
    assert not verify(server.data).document["findings"]


def test_a_server_scrubs_by_itself_and_tells_of_it(operated: OperatedRegistry) -> None:
    """Nobody thinks of a command before the day when it is too late."""
    operated.set("LADING_SCRUB__EVERY_SECONDS", "1")
    operated.start()
    drill = Drill(operated)
    drill.plant(files=["middle byte"], manifests=["last byte"])

    assert until(lambda: {line["digest"] for line in operated.events(TOLD)} == {*drill.digests()}, seconds=30)

    drill.damaged[0].assert_absent()
    assert until(lambda: _metric(operated, 'lading_scrub_damaged_total{kind="blob"}') >= 1)
    assert _metric(operated, 'lading_scrub_damaged_total{kind="manifest"}') >= 1
    assert _metric(operated, "lading_scrub_bytes_total") > 0
    assert operated.sql("SELECT kind FROM feed WHERE kind = 'blob.damaged'") == [("blob.damaged",)]
    for stored in drill.damaged:
        stored.push()
        stored.assert_whole()
    healed = operated.sql("SELECT kind FROM feed WHERE kind LIKE '%.healed' ORDER BY kind")
    assert healed == [("blob.healed",), ("manifest.healed",)]
    operated.stop()


TOLD = "stored content is damaged, and is not served"


def _metric(server: OperatedRegistry, name: str) -> float:
    page = server.wire.request("GET", "/metrics").expect(200).body.decode()
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name} "))


def test_an_interrupted_scrub_goes_on_where_it_was(operated: OperatedRegistry) -> None:
    """Days of reading are not thrown away by one Ctrl-C, which it obeys at once."""
    operated.set("LADING_SCRUB__MAX_BYTES_PER_SECOND", "100000")
    operated.set("LADING_BLOBS__INLINE_MAX_BYTES", "0")
    operated.start()
    repository = Repository(operated.wire, "team/app")
    for number in range(30):
        repository.push_blob(number.to_bytes(10_000, "big"))
    operated.stop()
    command = [*LADING, "scrub", "--data", str(operated.data), "--json"]
    process = subprocess.Popen(command, env=operated.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert until(lambda: operated.sql("SELECT 1 FROM passes WHERE name = 'scrub blobs' AND position >= 1") != [])

    refused = operated.refused("store", "acknowledge", "--yes")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    operated.set("LADING_SCRUB__MAX_BYTES_PER_SECOND", "100000000")
    rest = operated.do("scrub", "--resume", "--json").json()

    assert "another command is at work" in refused, "what has the database open must not meet another in its place"
    assert process.returncode == 130
    assert b'"complete": false' in output
    assert rest["complete"]
    assert 0 < rest["hashed_bytes"] < 300_000
    assert operated.do("scrub", "--resume", "--json").json()["hashed_bytes"] == 300_000


def test_a_scrub_that_cannot_look_says_why(operated: OperatedRegistry) -> None:
    """Where another disk is mounted, every object is missing; that is no damage of theirs."""
    operated.start()
    operated.stop()
    operated.change_marker(store_uid="another")

    outcome = operated.run("scrub")

    assert outcome.code == 2
    assert "error: " in outcome.errors
    assert not outcome.output
