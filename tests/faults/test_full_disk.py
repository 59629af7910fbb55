"""A full disk: pushes are refused in time, everything else goes on, and nothing has to be restarted afterwards."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.capability.content import Image, digest_of, new_image, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess, until
from tests.faults.checker import Checker
from tests.faults.conftest import FULL
from tests.faults.disks import Disk, ext4, tmpfs
from tests.faults.verifying import assert_verified
from tests.wire import Reply

pytestmark = pytest.mark.slow
MIB = 1 << 20
TAGS = [f"tag{number}" for number in range(200)]
KINDS: dict[str, Callable[[Path], AbstractContextManager[Disk]]] = {"ext4": ext4, "tmpfs": tmpfs}


@pytest.fixture(params=KINDS if FULL else ["ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """Mount a disk of 64 MiB where the server will have its data."""
    with KINDS[request.param](tmp_path / "data") as disk:
        yield disk


@pytest.fixture
def server(disk: Disk) -> Iterator[RegistryProcess]:
    """Return a server on that disk, not started; what it writes to its standard output is elsewhere."""
    process = RegistryProcess(disk.place.parent)
    try:
        yield process
    finally:
        process.kill()


def push_until_full(repository: Repository) -> tuple[dict[str, bytes], Reply]:
    """Push blobs of 1 MiB until one is refused; return what was acknowledged, and the refusal."""
    pushed: dict[str, bytes] = {}
    while True:
        content = random_content(MIB)
        digest = digest_of(content)
        started = repository.request("POST", "blobs/uploads/", body=b"")
        if started.status != 202:
            return pushed, started
        reply = repository.send("PUT", with_digest(started["Location"], digest), body=content)
        if reply.status != 201:
            return pushed, reply
        pushed[digest] = content


def assert_clean(server: RegistryProcess) -> None:
    """Look at the data directory as an auditor would."""
    assert Checker(server.data).problems() == []
    assert_verified(server.data)


def assert_stops(server: RegistryProcess) -> None:
    """Stop it; it answered 507, which is no fault here."""
    with contextlib.suppress(AssertionError):
        server.stop()
    assert not server.running
    assert "Traceback" not in server.output()


def ballast_files(server: RegistryProcess) -> list[Path]:
    """Return the files that hold space for deletes."""
    return list((server.data / "ballast").iterdir())


@dataclass(frozen=True, slots=True)
class Content:
    """What a repository had before the disk was full: tags, an unused blob, and two open uploads of 300,000 bytes."""

    repository: Repository
    image: Image
    unused: str
    started: bytes
    kept: str
    cancelled: str


def fill_repository(server: RegistryProcess) -> Content:
    """Push all that a test of a full disk looks at."""
    repository = Repository(server.wire, new_name())
    image = repository.push_image("kept")
    repository.set_tags(image.digest, image.manifest, TAGS)
    started = random_content(300_000)
    kept, cancelled = repository.start_upload(), repository.start_upload()
    for location in (kept, cancelled):
        repository.send("PATCH", location, body=started).expect(202)
    return Content(repository, image, repository.push_blob(random_content(1000)), started, kept, cancelled)


def assert_nothing_new(server: RegistryProcess, content: Content, pushed: str) -> None:
    """Try to store something, in every way there is."""
    repository = content.repository
    repository.request("POST", "blobs/uploads/", body=b"").expect_error(507, "UNAVAILABLE")
    mount = f"blobs/uploads/?mount={pushed}&from={repository.name}"
    Repository(server.wire, new_name()).request("POST", mount, body=b"").expect_error(507, "UNAVAILABLE")
    repository.put_manifest("another", content.image.manifest).expect_error(507, "UNAVAILABLE")
    for chunked in (False, True):
        part = random_content(MIB)
        repository.send("PATCH", content.kept, body=part, chunked=chunked).expect_error(507, "UNAVAILABLE")
        assert repository.upload_range(content.kept) == f"0-{len(content.started) - 1}"


def assert_deletes(content: Content) -> None:
    """Delete a tag, many tags, a blob and an upload."""
    repository = content.repository
    for tag in TAGS:
        repository.request("DELETE", f"manifests/{tag}").expect(202)
    assert repository.tags() == ["kept"]
    repository.request("DELETE", f"blobs/{content.unused}").expect(202)
    repository.request("HEAD", f"blobs/{content.unused}").expect(404)
    repository.send("DELETE", content.cancelled).expect(204)
    repository.send("GET", content.cancelled).expect(404)


def assert_pushes(content: Content) -> None:
    """Push an image, and go on with the upload that was left open."""
    repository, rest = content.repository, random_content(100_000)
    repository.push_image("later", new_image(100_000))
    whole = content.started + rest
    repository.send("PUT", with_digest(content.kept, digest_of(whole)), body=rest).expect(201)
    assert repository.request("GET", f"blobs/{digest_of(whole)}").expect(200).body == whole


def test_pushes_are_refused_and_all_else_goes_on(server: RegistryProcess, disk: Disk) -> None:
    """What fills the disk may be the registry first and any other program after it: deletes must work all the same."""
    server.start()
    content = fill_repository(server)
    repository = content.repository
    assert len(ballast_files(server)) == 8

    pushed, refused = push_until_full(repository)

    refused.expect_error(507, "UNAVAILABLE")
    assert "make room" in refused.json()["errors"][0]["message"]
    assert len(pushed) > 30, len(pushed)
    disk.fill()
    assert disk.free_bytes == 0
    assert_nothing_new(server, content, next(iter(pushed)))
    for digest, blob in pushed.items():
        assert repository.request("GET", f"blobs/{digest}").expect(200).body == blob
        repository.request("HEAD", f"blobs/{digest}").expect(200, {"Content-Length": str(len(blob))})
    assert repository.request("GET", "manifests/kept").expect(200).body == content.image.manifest
    assert len(repository.tags()) == len(TAGS) + 1
    assert_deletes(content)
    assert ballast_files(server) == [], "the ballast was not needed: delete more tags"
    assert_nothing_new(server, content, next(iter(pushed)))
    assert_clean(server)

    disk.free()

    assert_pushes(content)
    repository.request("DELETE", f"manifests/{content.image.digest}").expect(202)
    assert until(lambda: len(ballast_files(server)) == 8, seconds=60)
    assert_clean(server)
    assert_stops(server)


def test_the_ballast_is_for_deletes_alone(server: RegistryProcess, disk: Disk) -> None:
    """An upload whose bytes are there may end while there is room for its row, and no longer."""
    server.start()
    content = fill_repository(server)
    repository = content.repository
    blobs = [random_content(16_000) for _ in range(300)]
    locations = [repository.start_upload() for _ in blobs]
    for location, blob in zip(locations, blobs, strict=True):
        repository.send("PATCH", location, body=blob).expect(202)
    disk.fill()

    for location, blob in zip(locations, blobs, strict=True):
        reply = repository.send("PUT", with_digest(location, digest_of(blob)), body=b"")
        if reply.status != 201:
            break

    reply.expect_error(507, "UNAVAILABLE")
    assert repository.upload_range(location) == "0-15999"
    assert len(ballast_files(server)) == 8
    assert_deletes(content)
    assert ballast_files(server) == []
    disk.free()
    repository.send("PUT", with_digest(location, digest_of(blob)), body=b"").expect(201)
    assert repository.request("GET", f"blobs/{digest_of(blob)}").expect(200).body == blob
    assert_clean(server)


def test_a_full_disk_can_be_served(server: RegistryProcess, disk: Disk) -> None:
    """A machine that starts again with a full disk must not keep its images from those who pull them."""
    server.start()
    content = fill_repository(server)
    server.stop()
    disk.fill()

    server.start()

    assert content.repository.request("GET", "manifests/kept").expect(200).body == content.image.manifest
    assert_nothing_new(server, content, digest_of(content.image.config))
    assert_deletes(content)
    server.kill()
    server.start()
    assert content.repository.tags() == ["kept"]
    disk.free()
    assert_pushes(content)
    assert_clean(server)
    assert_stops(server)


def test_a_new_directory_on_a_full_disk_is_refused_with_a_sentence(server: RegistryProcess, disk: Disk) -> None:
    """There is nothing to serve, and a registry that refuses its first push helps nobody."""
    disk.fill()

    with pytest.raises(AssertionError, match=r"is full.*\n?.*[mM]ake room on it") as refused:
        server.start()

    assert "Traceback" not in str(refused.value)


def test_inodes_can_run_out_as_well(tmp_path: Path) -> None:
    """The kernel says the same of them, though there are bytes left."""
    with tmpfs(tmp_path / "data", mib=256, inodes=500) as disk:
        server = RegistryProcess(tmp_path)
        try:
            server.start()
            content = fill_repository(server)
            pushed, refused = push_until_full(content.repository)
            refused.expect_error(507, "UNAVAILABLE")
            assert_stops(server)
            disk.fill_inodes()

            server.start()

            assert_nothing_new(server, content, next(iter(pushed)))
            assert_deletes(content)
            disk.free()
            assert_pushes(content)
            assert_clean(server)
            assert_stops(server)
        finally:
            server.kill()


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """The line of a request is worth less than the request; what is written later is whole again."""
    with tmpfs(tmp_path / "logs", mib=1) as logs:
        server = RegistryProcess(logs.place)
        server.data = tmp_path / "data"
        try:
            server.start()
            logs.fill()
            repository = Repository(server.wire, new_name())

            image = repository.push_image("v1")
            repository.request("GET", "manifests/v1").expect(200)
            repository.request("DELETE", "manifests/v1").expect(202)

            logs.free()
            repository.request("GET", f"manifests/{image.digest}").expect(200)
            server.stop()
            assert server.access_log()[-1]["digest"] == image.digest
        finally:
            server.kill()
