"""Pulls: counted in memory by each worker, and written now and then. A kill loses what was not written yet."""

import itertools
from collections.abc import Sequence

import structlog

from lading.metadata import pulls
from lading.metadata.database import Database
from lading.metadata.times import now_us
from lading.oci.errors import LadingError
from lading.storage.space import Space

_MAX_MANIFESTS = 20_000
"""How many are counted between two writes: 4 MB at most, also while nothing can be written."""
_ROWS_AT_ONCE = 1000

log = structlog.get_logger(__name__)


class Pulls:
    """The pulls of this worker that are not written yet, by the manifest's id."""

    def __init__(self, database: Database, space: Space) -> None:
        self._database = database
        self._space = space
        self._counts: dict[int, int] = {}
        self._last_us: dict[int, int] = {}

    def count(self, manifest_id: int) -> None:
        """Count one pull, now: two dictionaries, since every pull comes by here."""
        count = self._counts.get(manifest_id, 0)
        if not count and len(self._counts) >= _MAX_MANIFESTS:
            return
        self._counts[manifest_id] = count + 1
        self._last_us[manifest_id] = now_us()

    async def write(self) -> None:
        """Write what is counted. What cannot be written now is kept; the disk's last room is for deletes."""
        waiting = iter(list(self._counts))
        while batch := [
            (manifest_id, self._counts.pop(manifest_id), self._last_us.pop(manifest_id))
            for manifest_id in itertools.islice(waiting, 0 if self._space.is_scarce() else _ROWS_AT_ONCE)
        ]:
            try:
                await self._database.write(pulls.add, batch)
            except LadingError as error:
                self._take_back(batch)
                log.warning("pulls are not written yet; they will be tried again", error=str(error))
                return

    def _take_back(self, batch: Sequence[tuple[int, int, int]]) -> None:
        for manifest_id, count, last_us in batch:
            self._counts[manifest_id] = self._counts.get(manifest_id, 0) + count
            self._last_us[manifest_id] = max(self._last_us.get(manifest_id, 0), last_us)
