"""What counts as a pull: a manifest that a client took, from whichever worker."""

from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, new_name

PULLS = "SELECT pulls, last_us FROM manifest_pulls JOIN manifests ON id = manifest_id WHERE digest = ?"


def test_pulls_of_all_workers_are_counted_and_written_at_the_stop(operated: OperatedRegistry) -> None:
    """Who asks whether an image is there, or has it already, takes nothing; who reads a blob pulled it before."""
    operated.start()
    repository = Repository(operated.wire, new_name())
    image = repository.push_image("v1")
    unpulled = repository.push_image("v2")
    began_us = operated.sql("SELECT max(at_us) FROM feed")[0][0]

    for target in ("v1", image.digest) * 10:
        repository.request("GET", f"manifests/{target}").expect(200)
    repository.request("HEAD", "manifests/v1").expect(200)
    repository.request("GET", "manifests/v1", headers={"If-None-Match": f'"{image.digest}"'}).expect(304)
    repository.request("GET", "manifests/absent").expect(404)
    repository.request("HEAD", "manifests/v2").expect(200)
    operated.stop()

    ((count, last_us),) = operated.sql(PULLS, bytes.fromhex(image.digest.partition(":")[2]))
    assert count == 20
    assert last_us > began_us
    assert operated.sql(PULLS, bytes.fromhex(unpulled.digest.partition(":")[2])) == []
