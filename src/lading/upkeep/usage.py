"""What eats the disk, what goes by itself, and what a deletion would free: one moment of the database, and file sizes.

Nothing is changed, and no writer waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from lading.metadata import usage
from lading.metadata.database import FILE
from lading.metadata.garbage import Retention
from lading.metadata.snapshots import FOLDER
from lading.metadata.times import HOUR_US
from lading.metadata.usage import Freed, RepositoryUsage, TagUsage, Totals
from lading.metadata.verify import ReadOnlyDatabase
from lading.oci.errors import CommandRefused
from lading.storage.scrub import QUARANTINE
from lading.storage.usage import database_bytes, folder_bytes, object_bytes


@dataclass(frozen=True, slots=True)
class Doomed:
    """Files that no blob needs any more and that wait for their time; those that an hour's collection deletes."""

    objects: int
    content_bytes: int
    hour_objects: int
    hour_bytes: int
    last_us: int | None


@dataclass(frozen=True, slots=True)
class Survey:
    """A data directory as a whole. `held_reason` says why nothing is removed, if that is so."""

    totals: Totals
    repositories: Sequence[RepositoryUsage]
    doomed: Doomed
    held_reason: str | None
    database_bytes: int
    uploads_bytes: int
    snapshots_bytes: int
    quarantine_bytes: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """What the deletion of tags would free, and when, if it were done now."""

    freed: Freed
    at_us: int
    held_reason: str | None


class Usage:
    """The questions, each answered for the moment `at_us`."""

    def __init__(self, database: ReadOnlyDatabase, data: Path, retention: Retention, *, at_us: int) -> None:
        self._database = database
        self._data = data
        self._retention = retention
        self._at_us = at_us

    def survey(self) -> Survey:
        """Return what the whole directory holds."""

        def ask(
            tx: sa.Connection,
        ) -> tuple[Totals, Sequence[RepositoryUsage], Sequence[tuple[str, int]], str | None]:
            self._begin(tx)
            return (
                usage.totals(tx, at_us=self._at_us),
                usage.by_repository(tx),
                usage.doomed(tx),
                usage.held_reason(tx),
            )

        totals, repositories, doomed, held_reason = self._database.read(ask)
        return Survey(
            totals,
            repositories,
            self._weighed(doomed, held=held_reason is not None),
            held_reason,
            database_bytes(self._data / FILE),
            folder_bytes(self._data / "uploads"),
            folder_bytes(self._data / FOLDER),
            folder_bytes(self._data / QUARANTINE),
        )

    def repository(self, name: str) -> tuple[RepositoryUsage, Sequence[TagUsage]]:
        """Return what one repository holds, and each of its tags.

        Raises:
            CommandRefused: there is none.

        """

        def ask(tx: sa.Connection) -> tuple[RepositoryUsage, Sequence[TagUsage]]:
            found = self._find(tx, name)
            return found, usage.by_tag(tx, found.id)

        return self._database.read(ask)

    def if_deleted(self, name: str, tags: Sequence[str]) -> Deletion:
        """Return what goes when these tags are deleted now, with their manifests and what only those refer to.

        Raises:
            CommandRefused: there is no such repository, or no such tag.

        """

        def ask(tx: sa.Connection) -> tuple[Freed, str | None]:
            found = self._find(tx, name)
            if absent := usage.absent(tx, found.id, tags):
                raise CommandRefused(f"{name} has no tag {', '.join(absent)}", f"see its tags: lading usage {name}")
            return usage.if_deleted(tx, found.id, tags), usage.held_reason(tx)

        freed, held_reason = self._database.read(ask)
        forgotten_us = max(self._at_us + self._retention.undo_us, freed.leased_until_us or 0)
        return Deletion(freed, forgotten_us + self._retention.delay_us, held_reason)

    def _begin(self, tx: sa.Connection) -> None:
        usage.begin(tx, undone_until_us=self._at_us - self._retention.undo_us)

    def _find(self, tx: sa.Connection, name: str) -> RepositoryUsage:
        self._begin(tx)
        found = usage.by_repository(tx, name)
        if not found:
            raise CommandRefused(f"there is no repository {name}", "see which there are: lading usage")
        return found[0]

    def _weighed(self, doomed: Sequence[tuple[str, int]], *, held: bool) -> Doomed:
        sizes = [(object_bytes(self._data, key), not_before_us) for key, not_before_us in doomed]
        soon = [size for size, not_before_us in sizes if not_before_us <= self._at_us + HOUR_US and not held]
        last_us = max((not_before_us for _, not_before_us in sizes), default=None)
        return Doomed(len(sizes), sum(size for size, _ in sizes), len(soon), sum(soon), last_us)
