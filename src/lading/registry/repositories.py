"""Repositories: the catalog."""

from collections.abc import Callable

from lading.metadata import repositories
from lading.metadata.database import Database
from lading.registry.tags import Page

_MAX_ROUNDS = 4
_INLINE_ENTRIES = 1000


class Repositories:
    """All repositories."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
