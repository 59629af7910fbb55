"""Pulls are counted in memory and written together; what cannot be written waits, and does not grow."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from lading.metadata import schema
from lading.metadata.database import Database, create_engine
from lading.registry import pulls
from lading.registry.pulls import Pulls
from lading.storage.space import Space
from tests.metadata.loop import run


@pytest.fixture
def path(path: Path) -> Path:
    """Return the path of a database with three manifests."""
    with create_engine(path).connect() as connection:
        connection.execute(sa.insert(schema.repositories).values(id=1, name="team/app", manifest_count=3, created_us=1))
        row = {"repo_id": 1, "alg": 1, "media_type": "a/b", "size": 2, "created_us": 1, "payload": b"{}"}
        connection.execute(
            sa.insert(schema.manifests), [{**row, "id": n, "digest": bytes([n]) * 32} for n in (1, 2, 3)]
        )
    return path


def rows(path: Path) -> list[tuple[int, int]]:
    table = schema.manifest_pulls
    with create_engine(path).connect() as connection:
        found = connection.execute(sa.select(table.c.manifest_id, table.c.pulls).order_by(table.c.manifest_id))
        return [(row[0], row[1]) for row in found]


def sql(path: Path, statement: str) -> None:
    with create_engine(path).connect() as connection:
        connection.exec_driver_sql(statement)


def test_what_two_workers_counted_adds_up_and_a_manifest_that_is_gone_is_passed_over(path: Path) -> None:
    """Each worker writes for itself, and the collector does not wait for either."""

    async def pull(database: Database) -> None:
        first, second = Pulls(database, Space(path.parent)), Pulls(database, Space(path.parent))
        for manifest_id in (1, 1, 1, 2, 99):
            first.count(manifest_id)
        second.count(1)
        await second.write()
        await first.write()
        await first.write()

    run(path, pull)

    assert rows(path) == [(1, 4), (2, 1)]


def test_pulls_that_cannot_be_written_are_kept_and_not_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a week must cost neither the counts nor the memory."""
    monkeypatch.setattr(pulls, "_MAX_MANIFESTS", 2)

    async def pull(database: Database) -> None:
        counter = Pulls(database, Space(path.parent))
        sql(path, "ALTER TABLE manifest_pulls RENAME TO away")
        for manifest_id in (1, 2, 3, 1):
            counter.count(manifest_id)
        await counter.write()
        counter.count(1)
        counter.count(3)
        await counter.write()
        sql(path, "ALTER TABLE away RENAME TO manifest_pulls")
        await counter.write()
        counter.count(3)
        await counter.write()

    with capture_logs() as entries:
        run(path, pull)

    assert rows(path) == [(1, 3), (2, 1), (3, 1)]
    assert [entry["log_level"] for entry in entries if "pulls" in entry["event"]] == ["warning"] * 2


def test_the_disks_last_room_is_not_for_pulls(path: Path) -> None:
    """It is what deletes need, to make room again."""

    async def pull(database: Database) -> None:
        counter = Pulls(database, Space(path.parent, floor_bytes=2**62))
        counter.count(1)
        await counter.write()

    run(path, pull)

    assert rows(path) == []
