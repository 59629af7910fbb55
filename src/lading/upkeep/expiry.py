"""Upload sessions whose time is over, and staging files whose session is gone."""

from lading.metadata import uploads
from lading.metadata.database import Database
from lading.metadata.stores import is_named
from lading.metadata.times import now_us
from lading.registry.uploads import Uploads
from lading.storage.disk import DiskStore

_BATCH = 100


class Expiry:
    """Frees what uploads have left behind."""

    def __init__(self, database: Database, store: DiskStore, sessions: Uploads, *, store_id: int) -> None:
        self._database = database
        self._store = store
        self._sessions = sessions
        self._store_id = store_id

    async def end_expired_sessions(self) -> None:
        """End each expired session, but one that is being written this very moment."""
        while True:
            expired = await self._database.scan(uploads.expired, at_us=now_us(), entries=_BATCH)
            ended = [upload_id for upload_id in expired if await self._sessions.drop(upload_id)]
            if len(expired) < _BATCH or not ended:
                return

    async def sweep_staging_files(self) -> None:
        """Remove staging files whose session has no row: their process was killed between its commit and its clean-up.

        If the commit was cut short before its row, its object goes first: the staging file is what finds it.
        """
        for upload_id in await self._store.list_staged():
            if await self._database.scan(uploads.exists, upload_id):
                continue
            staging = self._store.stage(upload_id)
            if staging is None:
                continue
            with staging:
                if await self._database.scan(uploads.exists, upload_id):
                    continue
                for object_key in await self._store.objects_of(upload_id):
                    if not await self._database.scan(is_named, self._store_id, object_key):
                        await self._store.remove(object_key)
                staging.discard()
