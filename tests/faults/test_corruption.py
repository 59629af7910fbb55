"""The corruption drill: damage of every kind is found, never served again, and healed by a push."""

import pytest

from tests.capability.server import RegistryProcess
from tests.faults.corruption import FILES, ROWS, Drill
from tests.faults.verifying import named, scrub, verify

pytestmark = pytest.mark.slow

DAMAGES = 60


def test_sixty_damages_are_found_never_served_again_and_healed(server: RegistryProcess) -> None:
    """What a disk did to content is told in full, and of nothing else; the next push of each puts it right."""
    server.start()
    drill = Drill(server)
    drill.plant(files=[*FILES, *FILES], payloads=[*ROWS, *ROWS], manifests=[*ROWS, *ROWS])
    drill.plant(files=["middle byte"] * (DAMAGES - len(drill.damaged)))
    assert len(drill.damaged) == len(set(drill.digests())) == DAMAGES

    assert named(verify(server.data)) == drill.digests()
    scrubbed = scrub(server.data)
    assert named(scrubbed) == drill.digests()
    assert scrubbed.exit_code == 1

    for stored in drill.damaged:
        stored.assert_absent()
    for stored in drill.bystanders:
        stored.assert_whole()
    assert named(verify(server.data)) == drill.digests()
    for stored in drill.damaged:
        stored.push()
    for stored in (*drill.damaged, *drill.bystanders):
        stored.assert_whole()
    assert scrub(server.data).exit_code == 0
    assert not verify(server.data).document["findings"]
    server.stop()
