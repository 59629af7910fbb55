"""Existence is a statement about one store: a server whose objects changed says so, and the operator has ways out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.capability.content import LARGE_BYTES, digest_of, new_image, random_content
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import until


@contextmanager
def another_store(server: OperatedRegistry, tmp_path: Path) -> Iterator[Path]:
    """Have another registry's objects in the place of the server's while the block lasts."""
    ours, place, theirs = server.data / "objects-of-ours", server.data / "objects", tmp_path / "theirs"
    shutil.copytree(place, theirs)
    place.rename(ours)
    theirs.rename(place)
    server.change_marker(store_uid="another", database_uid="another")
    try:
        yield place
    finally:
        place.rename(theirs)
        ours.rename(place)


# While it runs


def test_a_store_that_goes_away_is_not_written_to_and_heals_by_itself(operated: OperatedRegistry) -> None:
    """A mount that failed must neither swallow pushes nor say of anything that it exists, or that it does not (E1)."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    layer, new = digest_of(image.layers[0]), random_content(LARGE_BYTES)
    location = repository.start_upload()

    (operated.data / "objects").rename(operated.data / "moved")

    for _ in range(4):  # between them they reach both workers
        repository.request("POST", "blobs/uploads/", body=b"").expect_error(503, "UNAVAILABLE")
        repository.request("POST", f"blobs/uploads/?mount={layer}&from={repository.name}").expect_error(
            503, "UNAVAILABLE"
        )
        repository.send("PATCH", location, body=b"more").expect_error(503, "UNAVAILABLE")
        repository.send("PUT", with_digest(location, digest_of(b"")), body=b"").expect_error(503, "UNAVAILABLE")
        repository.put_manifest("v2", image.manifest).expect_error(503, "UNAVAILABLE")
        repository.request("DELETE", "manifests/v1").expect_error(503, "UNAVAILABLE")
        repository.request("HEAD", f"blobs/{layer}").expect_error(503, "UNAVAILABLE")
        repository.request("GET", f"blobs/{layer}").expect_error(503, "UNAVAILABLE")
        repository.request("GET", "manifests/v1").expect(200)
        assert b"storage is not there" in repository.send("GET", "/readyz").expect(503).body
    assert not (operated.data / "objects").exists()

    (operated.data / "moved").rename(operated.data / "objects")

    for _ in range(4):
        repository.send("GET", "/readyz").expect(200)
        repository.request("GET", f"blobs/{layer}").expect(200)
    repository.push_blob(new)
    repository.request("HEAD", f"blobs/{digest_of(new)}").expect(200)
    told = operated.events("nothing is accepted: the store is not ours to write")
    assert 1 <= len(told) <= 2, "once for each worker"
    operated.stop()


def test_nothing_is_put_into_another_registrys_store(operated: OperatedRegistry, tmp_path: Path) -> None:
    """The other disk was mounted: what is stored there is lost with the next mount, and foreign to it till then."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    content = random_content(LARGE_BYTES)
    location = repository.start_upload()
    repository.send("PATCH", location, body=content).expect(202)

    with another_store(operated, tmp_path) as theirs:
        before = sorted(path for path in theirs.rglob("*") if path.is_file())
        for _ in range(4):
            repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect_error(503, "UNAVAILABLE")
        assert sorted(path for path in theirs.rglob("*") if path.is_file()) == before

    repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect(201)
    repository.request("GET", f"blobs/{digest_of(content)}").expect(200)
    repository.request("GET", f"blobs/{digest_of(image.layers[0])}").expect(200)
    operated.stop()


def test_a_push_that_was_under_way_is_not_committed_into_another_store(
    operated: OperatedRegistry, tmp_path: Path
) -> None:
    """Its first look was long ago: what counts is where the bytes are when the row says that they are there (I1)."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    content = random_content(LARGE_BYTES)
    target = with_digest(repository.start_upload(), digest_of(content))
    with operated.wire.connect() as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.send(head.encode() + content[:-1])
        assert until(lambda: operated.staging_files() != []), "the server did not begin to receive"

        with another_store(operated, tmp_path) as theirs:
            connection.send(content[-1:])
            connection.read_reply(head).expect_error(503, "UNAVAILABLE")
            assert list(theirs.glob(f"*/{digest_of(content)[7:]}.*")) == []

    repository.request("HEAD", f"blobs/{digest_of(content)}").expect(404)
    repository.push_blob(content)
    operated.stop()


def test_a_registry_that_was_superseded_is_read_only_and_says_so(operated: OperatedRegistry) -> None:
    """What it accepted now, the database that took over would never know; what it has, clients may have."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    image = repository.push_image("v1", new_image(LARGE_BYTES))
    layer = digest_of(image.layers[0])
    operated.sql("UPDATE repo_blobs SET keep_until_us = 0")

    operated.change_marker(epoch=2)

    for _ in range(4):
        reply = repository.request("POST", "blobs/uploads/", body=b"").expect_error(405, "UNSUPPORTED")
        assert "read-only" in reply.json()["errors"][0]["message"]
        assert reply["Allow"] == "GET, HEAD"
        repository.put_manifest("v2", image.manifest).expect_error(405, "UNSUPPORTED")
        repository.request("DELETE", "manifests/v1").expect_error(405, "UNSUPPORTED")
        repository.request("HEAD", f"blobs/{layer}").expect(200)
        repository.request("GET", f"blobs/{layer}").expect(200)
        repository.request("GET", "manifests/v1").expect(200)
        repository.send("GET", "/readyz").expect(200)
    assert operated.sql("SELECT max(keep_until_us) FROM repo_blobs") == [(0,)], "a HEAD wrote a lease"
    assert "read-only" in operated.do("store", "status").output

    operated.stop()
    operated.start()

    repository.request("POST", "blobs/uploads/", body=b"").expect_error(405, "UNSUPPORTED")
    repository.request("GET", f"blobs/{layer}").expect(200)
    operated.stop()
    assert operated.marker()["epoch"] == 2


def test_a_database_that_is_replaced_under_the_server_stops_the_pushes(operated: OperatedRegistry) -> None:
    """SQLite would go on writing into the file that lost its name, and each 201 would be gone at the next start."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    repository.push_image("v1")
    path = operated.data / "lading.db"
    path.rename(path.with_suffix(".old"))
    shutil.copy(path.with_suffix(".old"), path)

    for _ in range(4):
        repository.request("POST", "blobs/uploads/", body=b"").expect_error(503, "UNAVAILABLE")

    path.with_suffix(".old").replace(path)
    repository.push_image("v2")
    operated.stop()


def test_a_clean_stop_tells_the_marker_how_far_the_database_is(operated: OperatedRegistry) -> None:
    """A backup that is put back after it is known to be older."""
    repository = Repository(operated.wire, new_name())
    operated.start()
    repository.push_image("v1")

    operated.stop()

    (newest,) = operated.sql("SELECT max(seq) FROM feed")[0]
    assert newest > 3
    assert (operated.marker()["epoch"], operated.marker()["seq"]) == (1, newest)
