"""The root of composition: in which order a worker and a command open what they work on."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.asgi import ask

from lading import app
from lading.metadata.database import Database
from lading.oci.errors import StoreUnavailable
from lading.settings import Settings


def write_by_command(settings: Settings) -> None:
    """Open the registry as a command does, and change something."""

    async def write() -> None:
        async with app.open_registry(settings) as opened:
            opened.confirm_writable()

    asyncio.run(write())


def write_by_worker(settings: Settings) -> None:
    """Open the application as a worker does, and start an upload."""

    async def write() -> None:
        async with app.open_application(settings) as application:
            status, _ = await ask(application, "POST", "/v2/team/app/blobs/uploads/")
        if status == 503:
            raise StoreUnavailable

    asyncio.run(write())


@pytest.mark.parametrize("write", [write_by_command, write_by_worker])
def test_a_database_that_is_replaced_while_it_is_opened_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Settings], None]
) -> None:
    """SQLite would write into the file that lost its name, and each 201 would be gone at the next start."""
    settings = Settings(data=tmp_path)
    app.prepare(settings)
    write(settings)

    def replaced_as_it_is_opened(path: Path, *rest: object) -> Database:
        database = Database(path, *rest)  # type: ignore[arg-type]
        shutil.copy(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
        return database

    monkeypatch.setattr(app, "Database", replaced_as_it_is_opened)

    with pytest.raises(StoreUnavailable):
        write(settings)
