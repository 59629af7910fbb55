"""What waits for its deletion, and when a deletion would free what: dates, and files as they lie there."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from lading.metadata import schema
from lading.metadata.database import FILE, create_engine
from lading.metadata.garbage import Retention
from lading.metadata.snapshots import FOLDER
from lading.metadata.times import HOUR_US
from lading.metadata.upgrade import upgrade
from lading.metadata.verify import ReadOnlyDatabase
from lading.oci.errors import CommandRefused
from lading.upkeep.usage import Doomed, Usage

NOW = 1000 * HOUR_US
RETENTION = Retention(undo_us=10 * HOUR_US, delay_us=2 * HOUR_US)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory with one image of two blobs, and files that wait for their deletion."""
    upgrade(tmp_path / FILE, tmp_path / FOLDER)
    for name, content_bytes in (("aa/soon", 10), ("bb/due", 200), ("cc/late", 3000)):
        (tmp_path / "objects" / name).parent.mkdir(parents=True)
        (tmp_path / "objects" / name).write_bytes(bytes(content_bytes))
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "session").write_bytes(bytes(77))
    rows: list[tuple[sa.Table, list[dict[str, object]]]] = [
        (
            schema.stores,
            [{"id": 1, "kind": "disk", "store_uid": "s", "database_uid": "d", "created_us": 1, "epoch": 1}],
        ),
        (schema.repositories, [{"id": 1, "name": "team/app", "manifest_count": 1, "created_us": 1}]),
        (
            schema.blobs,
            [{"id": n, "alg": 1, "digest": bytes([n]) * 32, "size": 10**n, "created_us": 1} for n in (1, 2)],
        ),
        (schema.repo_blobs, [{"repo_id": 1, "blob_id": n, "keep_until_us": NOW + 1} for n in (1, 2)]),
        (
            schema.manifests,
            [
                {"id": 1, "repo_id": 1, "alg": 1, "digest": bytes(32), "media_type": "a/b", "size": 2}
                | {"created_us": 1, "payload": b"{}"}
            ],
        ),
        (
            schema.manifest_blobs,
            [{"manifest_id": 1, "position": n, "blob_id": n, "repo_id": 1} for n in (1, 2)],
        ),
        (schema.tags, [{"repo_id": 1, "name": "v1", "manifest_id": 1}]),
        (
            schema.doomed_objects,
            [
                {"store_id": 1, "object_key": key, "not_before_us": at_us, "reason": "unreferenced"}
                for key, at_us in (
                    ("aa/soon", NOW + HOUR_US),
                    ("bb/due", NOW - 5),
                    ("cc/late", NOW + HOUR_US + 1),
                    ("dd/gone", NOW),
                )
            ],
        ),
    ]
    with create_engine(tmp_path / FILE).connect() as connection:
        for table, values in rows:
            connection.execute(sa.insert(table), values)
    return tmp_path


def usage(data: Path) -> Usage:
    return Usage(ReadOnlyDatabase(data / FILE), data, RETENTION, at_us=NOW)


def sql(data: Path, statement: str) -> None:
    with create_engine(data / FILE).connect() as connection:
        connection.exec_driver_sql(statement)


def test_what_an_hours_collection_frees_is_what_is_due_by_then(data: Path) -> None:
    """The operator of a full disk asks whether waiting helps."""
    survey = usage(data).survey()

    assert survey.doomed == Doomed(4, 3210, 3, 210, NOW + HOUR_US + 1)
    assert survey.uploads_bytes == 77
    assert survey.database_bytes >= (data / FILE).stat().st_size
    assert survey.held_reason is None


def test_a_store_that_is_held_frees_nothing_within_the_hour(data: Path) -> None:
    """A promise of room that does not come costs the hour."""
    sql(data, "UPDATE stores SET held_us = 1, held_reason = 'it was rolled back'")

    survey = usage(data).survey()

    assert (survey.doomed.hour_objects, survey.doomed.hour_bytes) == (0, 0)
    assert survey.held_reason == "it was rolled back"
    assert usage(data).if_deleted("team/app", ["v1"]).held_reason == "it was rolled back"


def test_a_deletion_frees_after_the_undo_window_or_the_last_lease_and_the_delay(data: Path) -> None:
    """Whichever ends last keeps the bytes."""
    after_undo = usage(data).if_deleted("team/app", ["v1"])
    sql(data, f"UPDATE repo_blobs SET keep_until_us = {NOW + 11 * HOUR_US} WHERE blob_id = 2")
    after_lease = usage(data).if_deleted("team/app", ["v1"])

    assert after_undo.freed.content_bytes == 110
    assert after_undo.at_us == NOW + 12 * HOUR_US
    assert after_lease.at_us == NOW + 13 * HOUR_US


def test_a_repository_that_is_not_there_is_refused(data: Path) -> None:
    """A sum of nothing would look like an answer."""
    with pytest.raises(CommandRefused, match="there is no repository team/other"):
        usage(data).repository("team/other")
