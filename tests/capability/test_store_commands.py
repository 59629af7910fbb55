"""What a start refuses, and the ways out that an operator has: `lading store`."""

import shutil

import pytest

from tests.capability.content import LARGE_BYTES, digest_of, new_image, random_content
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, new_name
from tests.capability.server import until

pytestmark = pytest.mark.slow


def test_objects_without_their_marker_are_refused_until_they_are_adopted(operated: OperatedRegistry) -> None:
    """The operator copied the objects to a new disk, all but this file."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    operated.stop()
    before = operated.marker()
    operated.marker_path.unlink()

    assert "lading store adopt" in operated.refusal()
    assert operated.do("store", "status", "--json").json()["verdict"] == "objects-lost"
    assert "add --yes" in operated.refused("store", "adopt")
    assert "lading store adopt" in operated.refused("store", "mark-missing", "--yes")
    told = operated.do("store", "adopt", "--yes", "--json").json()

    assert (told["objects"], told["missing"]) == (1, 0)
    assert told["marker"] == {name: before[name] for name in ("store_uid", "database_uid", "seq")} | {"epoch": 2}
    operated.start()
    repository.request("GET", f"blobs/{digest_of(image.layers[0])}").expect(200)
    repository.push_image("v2")
    operated.stop()
    assert "belong together already" in operated.refused("store", "adopt", "--yes")


def test_objects_that_are_lost_are_pushed_again_once_the_operator_says_so(operated: OperatedRegistry) -> None:
    """A disk died. The database knows what was there; ordinary pushes bring it back, and pulls work again (E4)."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    layer = digest_of(image.layers[0])
    operated.stop()
    (operated.data / "objects").rename(operated.data / "dead-disk")

    assert "lading store mark-missing" in operated.refusal()
    assert "lading store mark-missing" in operated.refused("store", "adopt", "--yes")
    told = operated.do("store", "mark-missing", "--yes")

    assert "1 of 1 objects are absent" in told.output
    operated.start()
    repository.request("HEAD", f"blobs/{layer}").expect(404)
    repository.request("GET", f"blobs/{layer}").expect_error(404, "BLOB_UNKNOWN")
    repository.push_image("v1", image)
    repository.request("GET", f"blobs/{layer}").expect(200)
    operated.stop()

    shutil.rmtree(operated.data / "objects")
    (operated.data / "dead-disk").rename(operated.data / "objects")
    assert "but the objects in" in operated.refusal(), "the old objects were taken for the new ones"


def test_a_database_that_is_lost_can_begin_anew_over_the_objects(operated: OperatedRegistry) -> None:
    """There was no copy of it. What clients push again is stored again, and no old file is removed meanwhile."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    layer = digest_of(image.layers[0])
    operated.stop()
    (operated.data / "lading.db").unlink()

    refusal = operated.refusal()
    assert "lading restore-snapshot" in refusal
    assert "lading store adopt" in refusal
    told = operated.do("store", "adopt", "--yes")

    assert "lading store acknowledge" in told.output
    operated.start()
    repository.request("GET", "manifests/v1").expect(404)
    repository.push_image("v1", image)
    repository.request("GET", f"blobs/{layer}").expect(200)
    assert len(operated.objects_of(layer)) == 2
    operated.stop()
    assert operated.marker()["epoch"] == 2


def test_the_objects_of_another_registry_are_refused_until_they_are_adopted(operated: OperatedRegistry) -> None:
    """Two databases on one store remove each other's objects, so one of them has to be told to leave."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    repository.push_image("v1", new_image(LARGE_BYTES))
    operated.stop()
    operated.change_marker(database_uid="another", seq=100)

    assert "another" in operated.refusal()
    operated.do("store", "adopt", "--yes")

    marker = operated.marker()
    assert (marker["database_uid"], marker["epoch"]) != ("another", 1)
    operated.start()
    repository.push_image("v2")
    operated.stop()
    assert operated.do("store", "status", "--json").json()["store"]["held_reason"]


def test_a_marker_that_cannot_be_read_is_kept_when_the_objects_are_adopted(operated: OperatedRegistry) -> None:
    """It may be the only trace of whose objects these are."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    repository.push_image("v1", new_image(LARGE_BYTES))
    operated.stop()
    operated.marker_path.write_text("{ half")

    assert "lading store adopt" in operated.refusal()
    operated.do("store", "adopt", "--yes")

    (kept,) = operated.marker_path.parent.glob("registry-store.unreadable-*")
    assert kept.read_text() == "{ half"
    operated.start()
    operated.stop()


def test_a_database_that_was_rolled_back_removes_nothing_until_that_is_acknowledged(operated: OperatedRegistry) -> None:
    """Somebody put yesterday's file back. What was pushed since is not known to it, and must not be swept away."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    repository.push_image("v1", new_image(LARGE_BYTES))
    operated.stop()
    shutil.copy(operated.data / "lading.db", operated.data / "yesterday.db")
    operated.start()
    image = repository.push_image("v2", new_image(LARGE_BYTES))
    location = repository.start_upload()
    repository.send("PATCH", location, body=random_content(LARGE_BYTES)).expect(202)
    operated.stop()
    (operated.data / "yesterday.db").replace(operated.data / "lading.db")

    operated.start()

    repository.request("GET", "manifests/v1").expect(200)
    repository.request("GET", "manifests/v2").expect(404)
    repository.push_image("v2", image)
    repository.request("GET", f"blobs/{digest_of(image.layers[0])}").expect(200)
    told = operated.do("store", "status")
    assert "rolled back" in told.output
    assert operated.events("nothing is removed from the store until that is acknowledged")
    assert "another Lading server" in operated.refused("store", "acknowledge", "--yes")
    operated.stop()
    assert len(operated.staging_files()) == 1, "the sweep ran"

    operated.do("store", "acknowledge", "--yes")

    assert operated.marker()["epoch"] == 2
    assert operated.do("store", "status", "--json").json()["may_remove"] is True
    operated.start()
    assert until(lambda: operated.staging_files() == []), "the sweep does not run again"
    operated.stop()
    assert "nothing to acknowledge" in operated.refused("store", "acknowledge", "--yes")


def test_a_command_that_finds_no_registry_makes_none(operated: OperatedRegistry) -> None:
    """A typing error in `--data` must not leave an empty database that looks like a lost one."""
    for arguments in (("status",), ("adopt", "--yes"), ("mark-missing", "--yes"), ("acknowledge", "--yes")):
        assert "there is no registry in" in operated.refused("store", *arguments)

    assert not operated.data.exists()
