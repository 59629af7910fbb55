"""Snapshots of a running registry, and the way back to one of them."""

import os
import random
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pysqlite3 import dbapi2

from lading.metadata.schema import REVISION
from tests.capability import preloaded
from tests.capability.content import LARGE_BYTES, Image, digest_of, new_image, random_content
from tests.capability.operated import OperatedRegistry
from tests.capability.repository import Repository, new_name
from tests.capability.server import LADING, until
from tests.faults.conftest import FULL, SEED

BACK_TO_THE_FIRST_SCHEMA = """
    DROP TABLE passes;
    DROP TABLE manifest_pulls;
    DROP INDEX ix_uploads_actor;
    DROP INDEX ix_tag_history_repo_id_name;
    DROP INDEX ix_tag_history_manifest_id;
    DROP INDEX ix_tag_history_to_us;
    DROP INDEX ix_doomed_objects_not_before_us;
    DROP INDEX ix_doomed_objects_object_key;
    DROP INDEX ix_gc_blob_queue_review_after_us;
    DROP INDEX ix_gc_manifest_queue_review_after_us;
    DROP INDEX ix_manifest_blobs_blob_id_repo_id;
    CREATE INDEX ix_manifest_blobs_blob_id ON manifest_blobs (blob_id);
    ALTER TABLE manifest_blobs DROP COLUMN repo_id;
    ALTER TABLE feed DROP COLUMN renamed_from;
    ALTER TABLE uploads DROP COLUMN actor;
    ALTER TABLE repositories DROP COLUMN deleted_us;
    ALTER TABLE stores DROP COLUMN epoch;
    ALTER TABLE stores DROP COLUMN held_us;
    ALTER TABLE stores DROP COLUMN held_reason;
    UPDATE alembic_version SET version_num = '0001';
"""


def snapshots(registry: OperatedRegistry) -> list[Path]:
    return sorted((registry.data / "snapshots").glob("*.db"))


def names_in(database: Path) -> list[str]:
    with closing(dbapi2.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM tags ORDER BY name")]


def test_a_new_registry_is_copied_and_a_restart_does_not_copy_it_again(operated: OperatedRegistry) -> None:
    """A server that is restarted all day must not push a week of snapshots out."""
    operated.start()
    assert until(lambda: len(snapshots(operated)) == len(operated.events("ready")) == 1)
    operated.stop()

    operated.start()
    assert until(lambda: len(operated.events("ready")) == 2)
    operated.stop()

    assert len(snapshots(operated)) == 1
    assert len(operated.events("snapshot of the database taken")) == 1


@pytest.mark.slow
def test_snapshots_are_taken_while_clients_push_and_the_newest_are_kept(operated: OperatedRegistry) -> None:
    """Each is a state that was, with all that was acknowledged before it began."""
    operated.set("LADING_SNAPSHOTS__EVERY_SECONDS", "1")
    operated.set("LADING_SNAPSHOTS__KEEP", "2")
    operated.start()
    repository = Repository(operated.wire, new_name())
    acknowledged: list[tuple[float, str]] = []

    began = time.time()
    while len(operated.events("snapshot of the database taken")) < 5:
        tag = f"v{len(acknowledged):04}"
        repository.push_image(tag)
        acknowledged.append((time.time(), tag))
        assert time.time() < began + 60, operated.output()
    operated.stop()

    kept = snapshots(operated)
    assert len(kept) == 2
    assert sorted(path.name for path in kept[0].parent.iterdir()) == [path.name for path in kept]
    for path in kept:
        taken = time.mktime(time.strptime(path.name[:16], "%Y%m%dT%H%M%SZ")) - time.timezone
        names = names_in(path)
        assert names == [tag for _, tag in acknowledged[: len(names)]]
        assert [tag for at, tag in acknowledged if at < taken] == [
            tag for at, tag in acknowledged if at < taken and tag in names
        ]


@pytest.mark.slow
def test_no_snapshot_is_taken_where_that_is_switched_off(operated: OperatedRegistry) -> None:
    """Some have their own copies."""
    operated.set("LADING_SNAPSHOTS__EVERY_SECONDS", "0")

    operated.start()
    time.sleep(1.0)
    operated.stop()

    assert snapshots(operated) == []


def registry_with_history(operated: OperatedRegistry) -> tuple[Repository, Image, Image]:
    """Run a registry that has a snapshot with the first image, and a second image since; return the three, stopped."""
    operated.start()
    repository = Repository(operated.wire, new_name())
    assert until(lambda: len(snapshots(operated)) == 1)
    first = repository.push_image("v1", new_image(LARGE_BYTES))
    operated.stop()
    snapshots(operated)[0].unlink()
    time.sleep(1.0)
    operated.start()
    assert until(lambda: len(snapshots(operated)) == 1)
    second = repository.push_image("v2", new_image(LARGE_BYTES))
    operated.stop()
    return repository, first, second


@pytest.mark.slow
def test_a_registry_goes_back_to_a_snapshot_and_ends_up_working(operated: OperatedRegistry) -> None:
    """What the operator is told is what then happens: the newer image is gone, comes back by a push, loses no file."""
    repository, first, second = registry_with_history(operated)
    (snapshot,) = snapshots(operated)
    listed = operated.do("restore-snapshot", "--list", "--json").json()["snapshots"]
    assert [one["name"] for one in listed] == [snapshot.name]
    assert listed[0]["seq"] > 0
    assert snapshot.name in operated.do("restore-snapshot", "--list").output
    assert "add --yes" in operated.refused("restore-snapshot")
    (newest,) = operated.sql("SELECT max(seq) FROM feed")[0]

    told = operated.do("restore-snapshot", snapshot.name, "--yes", "--json").json()

    assert told["restored"] == snapshot.name
    assert told["lost"] == newest - listed[0]["seq"] > 0
    assert names_in(Path(told["replaced"])) == ["v1", "v2"]
    operated.start()
    repository.request("GET", "manifests/v1").expect(200)
    repository.request("GET", f"blobs/{digest_of(first.layers[0])}").expect(200)
    repository.request("GET", "manifests/v2").expect(404)
    assert len(operated.objects_of(digest_of(second.layers[0]))) == 1, "a file of the lost changes was removed"
    repository.push_image("v2", second)
    repository.request("GET", f"blobs/{digest_of(second.layers[0])}").expect(200)
    assert operated.events("nothing is removed from the store until that is acknowledged")
    assert snapshot.name in operated.do("store", "status").output
    operated.stop()
    assert operated.marker()["epoch"] == 2
    operated.do("store", "acknowledge", "--yes")
    operated.start()
    operated.stop()
    assert operated.do("verify").code == 0


@pytest.mark.slow
def test_the_replaced_database_is_read_only_when_it_is_put_back_and_can_be_put_in_force(
    operated: OperatedRegistry,
) -> None:
    """The operator thinks again. Two databases that both count would remove each other's files."""
    repository, _, second = registry_with_history(operated)
    told = operated.do("restore-snapshot", "--yes", "--json").json()
    operated.start()
    third = repository.push_image("v3", new_image(LARGE_BYTES))
    operated.stop()
    Path(told["replaced"]).replace(operated.data / "lading.db")

    operated.start()
    repository.request("GET", "manifests/v2").expect(200)
    repository.request("POST", "blobs/uploads/", body=b"").expect_error(405, "UNSUPPORTED")
    operated.stop()
    assert "read-only" in operated.do("store", "status").output
    operated.do("store", "adopt", "--yes")

    operated.start()
    repository.request("GET", f"blobs/{digest_of(second.layers[0])}").expect(200)
    repository.push_image("v3", third)
    repository.request("GET", f"blobs/{digest_of(third.layers[0])}").expect(200)
    operated.stop()
    assert operated.marker()["epoch"] == 3


@pytest.mark.slow
def test_a_snapshot_takes_the_place_of_a_database_that_is_lost_or_damaged(operated: OperatedRegistry) -> None:
    """That is the day it is there for."""
    repository, _, _ = registry_with_history(operated)
    path = operated.data / "lading.db"
    path.write_bytes(random_content(LARGE_BYTES))
    assert "lading restore-snapshot" in operated.refusal()

    told = operated.do("restore-snapshot", "--yes")

    assert "At least" in told.output
    operated.start()
    repository.request("GET", "manifests/v1").expect(200)
    operated.stop()

    path.unlink()
    assert "lading restore-snapshot" in operated.refusal()
    operated.do("restore-snapshot", "--yes")
    operated.start()
    repository.request("GET", "manifests/v1").expect(200)
    operated.stop()


@pytest.mark.slow
def test_a_snapshot_of_the_first_schema_is_restored(operated: OperatedRegistry) -> None:
    """The way back from an upgrade is such a copy."""
    repository, _, _ = registry_with_history(operated)
    (snapshot,) = snapshots(operated)
    with closing(dbapi2.connect(snapshot, isolation_level=None)) as connection:
        connection.executescript(BACK_TO_THE_FIRST_SCHEMA)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    older = snapshot.with_name(snapshot.name.replace(f"-{REVISION}", "-0001-before-upgrade"))
    snapshot.rename(older)

    operated.do("restore-snapshot", older.name, "--yes")

    operated.start()
    repository.request("GET", "manifests/v1").expect(200)
    repository.push_image("v2")
    operated.stop()
    assert [path.name for path in snapshots(operated) if "before-upgrade" in path.name] == [older.name]


@pytest.mark.slow
def test_what_cannot_be_restored_is_refused_and_changes_nothing(operated: OperatedRegistry, tmp_path: Path) -> None:
    """The database that is there may be better than what was asked for."""
    registry_with_history(operated)
    (snapshot,) = snapshots(operated)
    before = (operated.data / "lading.db").read_bytes()
    foreign = OperatedRegistry(_folder(tmp_path, "foreign"), parent=preloaded.shared())
    foreign.start()
    assert until(lambda: len(snapshots(foreign)) == 1)
    foreign.stop()

    assert "no snapshot nothing" in operated.refused("restore-snapshot", "nothing", "--yes")
    (operated.data / "snapshots" / "20200101T000000Z-0002.db").write_bytes(b"half a file")
    assert "no database of a registry" in operated.refused("restore-snapshot", "20200101T000000Z-0002", "--yes")
    snapshots(foreign)[0].rename(operated.data / "snapshots" / "20200102T000000Z-0002.db")
    assert "is of database" in operated.refused("restore-snapshot", "20200102T000000Z-0002", "--yes")
    newer = operated.data / "snapshots" / "20200103T000000Z-9999.db"
    newer.write_bytes(snapshot.read_bytes())
    with closing(dbapi2.connect(newer, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert "has schema 9999" in operated.refused("restore-snapshot", newer.name, "--yes")

    assert (operated.data / "lading.db").read_bytes() == before
    operated.start()
    assert "another Lading server" in operated.refused("restore-snapshot", "--yes")
    operated.stop()


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


MUTATING = "rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,ftruncate,pwrite64"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_restore_that_is_killed_leaves_the_one_database_or_the_other(
    operated: OperatedRegistry, tmp_path: Path
) -> None:
    """Killed before any of its system calls, and the next start serves a whole database."""
    repository, _, _ = registry_with_history(operated)
    trace = tmp_path / "trace"
    saved = tmp_path / "saved"
    subprocess.run(["cp", "-a", operated.data, saved], check=True)
    calls = _calls_of_a_restore(operated, trace)
    ends = set()

    for call in _kills(calls, SEED):
        subprocess.run(["rm", "-rf", operated.data], check=True)
        subprocess.run(["cp", "-a", saved, operated.data], check=True)
        _restore_under_strace(operated, trace, f"inject={MUTATING}:signal=KILL:when={call}")
        operated.start()
        repository.request("GET", "manifests/v1").expect(200)
        status = repository.request("GET", "manifests/v2").status
        ends.add(status)
        repository.push_image("v3")
        operated.stop()
        assert operated.do("verify").code == 0, f"seed {SEED}, killed at {calls[call - 1]}"

    assert ends == {200, 404}, "the kills did not meet both sides of the moment that decides"


def _restore_under_strace(operated: OperatedRegistry, trace: Path, *inject: str) -> None:
    options = [part for entry in inject for part in ("-e", entry)]
    command = ["strace", "-f", "-o", str(trace), "-e", f"trace={MUTATING}", *options]
    command += [*LADING, "restore-snapshot", "--yes", "--data", str(operated.data)]
    environment: dict[str, Any] = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


def _calls_of_a_restore(operated: OperatedRegistry, trace: Path) -> list[str]:
    _restore_under_strace(operated, trace)
    calls = [line for line in trace.read_text().splitlines() if re.match(r"\d+ +\w+\(", line)]
    pids = {line.split()[0] for line in calls}
    assert len(pids) == 1, "the calls are counted for each thread"
    return calls


def _kills(calls: Sequence[str], seed: str) -> Sequence[int]:
    """Return before which calls to kill: the ends, around the one that decides, as runs differ by a call, and another.

    In the long form, all.
    """
    if FULL:
        return range(1, len(calls) + 1)
    (decides,) = [number for number, call in enumerate(calls, 1) if re.search(r"rename.*\.incoming\.partial", call)]
    return [1, decides - 2, decides, decides + 2, random.Random(seed).randint(1, len(calls)), len(calls)]
