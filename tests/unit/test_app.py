"""The root of composition: in which order a worker and a command open what they work on."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.types import Message

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

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def write() -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        path = "/v2/team/app/blobs/uploads/"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        async with app.open_application(settings) as application:
            await application(scope, receive, send)
        if sent[0]["status"] == 503:
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
