"""A database of the test's own, made by the migrations."""

from pathlib import Path

import pytest

from lading.metadata.upgrade import upgrade


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a new database: Alembic takes half a second, a copy does not."""
    folder = tmp_path_factory.mktemp("migrated")
    upgrade(folder / "lading.db", folder / "snapshots")
    return (folder / "lading.db").read_bytes()


@pytest.fixture
def path(tmp_path: Path, migrated: bytes) -> Path:
    """Return the path of a database without a row."""
    path = tmp_path / "lading.db"
    path.write_bytes(migrated)
    return path
