"""Repositories: the catalog, and what is done to one as a whole."""

from collections.abc import Callable, Sequence

import sqlalchemy as sa

from lading.metadata import repositories, times
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.repositories import Contents
from lading.oci.errors import CommandRefused, NameUnknown
from lading.registry.tags import Page

_MAX_ROUNDS = 4
_INLINE_ENTRIES = 1000


class Repositories:
    """All repositories."""

    def __init__(self, database: Database, *, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    async def catalog(self, *, last: str, entries: int, may_pull: Callable[[str], bool]) -> Page:
        """Return up to `entries` repositories after `last` that have a manifest and that the caller may read.

        A bounded number of rows is looked at: a page may have fewer names than asked for, and still be followed.
        """
        run = self._database.read if entries <= _INLINE_ENTRIES else self._database.scan
        names: list[str] = []
        for _ in range(_MAX_ROUNDS if entries else 0):
            rows = await run(repositories.catalog, last=last, entries=entries + 1)
            for name in rows[:entries]:
                last = name
                if may_pull(name):
                    names.append(name)
                    if len(names) == entries:
                        return Page(names, None if name == rows[-1] else last)
            if len(rows) <= entries:
                return Page(names, None)
        return Page(names, last if entries else None)

    async def page(self, *, after: str, entries: int, deleted: bool) -> Sequence[Contents]:
        """Return up to `entries` repositories after a name: those that are deleted, or the others, empty ones too."""
        return await self._database.scan(repositories.page, after=after, entries=entries, deleted=deleted)

    async def contents(self, repository: str) -> Contents:
        """Return how much the repository has.

        Raises:
            NameUnknown: no such repository.

        """
        found = await self._database.scan(repositories.contents, repository)
        if found is None or found.deleted_us is not None:
            raise NameUnknown(_unknown(repository, None if found is None else found.deleted_us))
        return found

    async def delete(self, repository: str, *, actor: str) -> None:
        """Take the repository away with all its content, at once.

        Raises:
            NameUnknown: no such repository.

        """
        await self._database.release(_delete, repository, actor=actor, at_us=times.now_us(), retention=self._retention)

    async def rename(self, repository: str, new_name: str, *, actor: str) -> None:
        """Give the repository another name, with its content, its history and its unfinished uploads.

        Raises:
            NameUnknown: no such repository.
            CommandRefused: there is one of the new name, or there was, and it can still be restored.

        """
        await self._database.write(_rename, repository, new_name, actor=actor, at_us=times.now_us())


def _find(tx: sa.Connection, repository: str) -> int:
    found = repositories.find_any(tx, repository)
    if found is None or found.deleted_us is not None:
        raise NameUnknown(_unknown(repository, None if found is None else found.deleted_us))
    return found.id


def _unknown(repository: str, deleted_us: int | None) -> str:
    if deleted_us is None:
        return f"there is no repository {repository}"
    return f"{repository} was deleted on {times.to_second(deleted_us)}: lading repo restore {repository}"


def _delete(tx: sa.Connection, repository: str, *, actor: str, at_us: int, retention: Retention) -> None:
    repo_id = _find(tx, repository)
    repositories.delete(tx, repository, repo_id, actor=actor, at_us=at_us, retention=retention)


def _rename(tx: sa.Connection, repository: str, new_name: str, *, actor: str, at_us: int) -> None:
    repo_id = _find(tx, repository)
    other = repositories.find_any(tx, new_name)
    if other is not None and other.deleted_us is not None:
        raise CommandRefused(
            f"{new_name} was deleted on {times.to_second(other.deleted_us)} and can still be restored",
            "choose another name, or wait until it is removed for good",
        )
    if other is not None:
        raise CommandRefused(f"there is a repository {new_name}", "choose another name")
    repositories.rename(tx, repository, repo_id, new_name, actor=actor, at_us=at_us)
