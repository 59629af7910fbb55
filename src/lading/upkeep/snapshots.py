"""Snapshots of the database, regularly: one in a while, the newest few kept."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from lading.metadata import snapshots
from lading.metadata.database import Database
from lading.metadata.schema import REVISION
from lading.metadata.snapshots import Kind
from lading.oci.errors import DatabaseUnusable, StorageFull
from lading.storage.space import Space

log = structlog.get_logger(__name__)


class Snapshots:
    """Takes a snapshot when the newest is old enough, however often the server is started."""

    def __init__(self, database: Database, space: Space, folder: Path, *, every_seconds: int, keep: int) -> None:
        self._database = database
        self._space = space
        self._folder = folder
        self._every = timedelta(seconds=every_seconds)
        self._keep = keep

    async def take_when_due(self) -> None:
        """Take one, and then remove the oldest that are too many. Where there is no room, the older ones stay."""
        if not self._is_due():
            return
        try:
            path = await self._take()
        except StorageFull:
            log.warning("no room for a snapshot of the database; the older ones stay", folder=str(self._folder))
            return
        except (DatabaseUnusable, OSError) as error:
            log.warning("no snapshot of the database was taken; the older ones stay", reason=str(error))
            return
        snapshots.prune(self._folder, keep=self._keep)
        log.info("snapshot of the database taken", path=str(path), bytes=path.stat().st_size)

    def _is_due(self) -> bool:
        newest = next((found for found in snapshots.find(self._folder) if found.kind is Kind.REGULAR), None)
        return newest is None or abs(datetime.now(UTC) - newest.at) >= self._every

    async def _take(self) -> Path:
        stopped = threading.Event()
        try:
            return await self._database.scan(
                snapshots.take,
                self._folder,
                REVISION,
                Kind.REGULAR,
                stopped=stopped.is_set,
                has_room=self._space.has_room_for,
            )
        except asyncio.CancelledError:
            stopped.set()  # the thread sees it at its next step, and the stop of the server does not wait long
            raise
