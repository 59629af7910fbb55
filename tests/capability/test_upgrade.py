"""A data directory that the first version wrote: every later one opens it, and nothing of it is lost."""

import shutil
import tarfile
from pathlib import Path

import pytest

from tests.capability import first_version as given
from tests.capability.content import digest_of
from tests.capability.first_version import APP, COPY, DEAD, INDEX, MANIFESTS, ONE, REFERRER, STRONG
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, with_digest
from tests.faults.verifying import verify

ARCHIVE = Path(__file__).parents[1] / "data" / "first-version.tar.xz"


@pytest.fixture
def upgraded(operated: OperatedRegistry, tmp_path: Path) -> OperatedRegistry:
    """Return a server that is not started yet, on a copy of what the first version left."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "first", filter="data")
    shutil.move(tmp_path / "first" / "data", operated.data)
    # What was leased then is long over, whenever this runs.
    operated.sql("UPDATE repo_blobs SET keep_until_us = 1")
    operated.sql("UPDATE gc_manifest_queue SET review_after_us = 1")
    operated.sql("UPDATE gc_blob_queue SET review_after_us = 1")
    operated.set("LADING_BLOBS__INLINE_MAX_BYTES", "1024")
    return operated


def test_what_the_first_version_stored_is_all_there(upgraded: OperatedRegistry) -> None:
    """Nobody can push again what a registry has kept for years."""
    upgraded.start()
    app, copy = Repository(upgraded.wire, APP), Repository(upgraded.wire, COPY)

    assert not verify(upgraded.data).document["findings"]
    for content in given.BLOBS:
        assert app.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
    assert app.request("GET", f"blobs/{digest_of(STRONG, 'sha512')}").expect(200).body == STRONG
    for tag, (manifest, media_type) in MANIFESTS.items():
        reply = app.request("GET", f"manifests/{tag}").expect(200)
        assert (reply.body, reply["Content-Type"]) == (manifest, media_type)
    assert app.tags() == sorted(MANIFESTS)
    assert copy.request("GET", "manifests/copied").expect(200).body == ONE.manifest
    assert app.request("GET", f"manifests/{DEAD.digest}").status == 404
    referrers = app.request("GET", f"referrers/{ONE.digest}").expect(200).json()["manifests"]
    assert [found["digest"] for found in referrers] == [digest_of(REFERRER)]
    _finish_the_upload(app, upgraded)
    assert not verify(upgraded.data).document["findings"]
    upgraded.stop()


def _finish_the_upload(app: Repository, server: OperatedRegistry) -> None:
    (upload,) = server.staging_files()
    location = f"/v2/{APP}/blobs/uploads/{upload.name}"
    assert app.upload_range(location) == f"0-{given.RECEIVED_BYTES - 1}"
    digest = digest_of(given.UNFINISHED)
    app.send("PUT", with_digest(location, digest), body=given.UNFINISHED[given.RECEIVED_BYTES :]).expect(201)
    assert app.request("GET", f"blobs/{digest}").expect(200).body == given.UNFINISHED


def test_what_the_first_version_deleted_is_collected_and_nothing_else(upgraded: OperatedRegistry) -> None:
    """Its queues are those that the collector reads."""
    dead = [path for layer in DEAD.layers for path in upgraded.objects_of(digest_of(layer))]
    assert len(dead) == 1
    upgraded.start()
    app = Repository(upgraded.wire, APP)
    app.request("DELETE", "manifests/multi").expect(202)
    app.request("DELETE", f"manifests/{digest_of(INDEX)}").expect(202)

    upgraded.do("garbage-collect", "--now", "--yes")

    assert not dead[0].exists()
    for digest in (DEAD.digest, digest_of(INDEX)):
        assert not upgraded.sql("SELECT id FROM manifests WHERE digest = ?", bytes.fromhex(digest.partition(":")[2]))
    for content in given.BLOBS:
        assert app.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
    assert not verify(upgraded.data).document["findings"]
    upgraded.stop()
