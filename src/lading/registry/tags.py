"""Tags: list and delete. Setting one is part of putting its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import repositories, tags
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.tags import Described
from lading.metadata.times import now_us
from lading.oci.errors import DeleteDisabled, ManifestUnknown, NameUnknown
from lading.oci.names import Tag

_INLINE_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """A page of names in bytewise order; `following` is the `last` that asks for the next page, if there is one."""

    names: list[str]
    following: str | None


class Tags:
    """The tags of all repositories."""

    def __init__(self, database: Database, *, retention: Retention, deletes_enabled: bool) -> None:
        self._database = database
        self._retention = retention
        self._deletes_enabled = deletes_enabled

    async def list(self, repository: str, *, last: str, entries: int) -> Page:
        """Return up to `entries` tags after `last`, which need not exist.

        Raises:
            NameUnknown: no such repository.

        """
        run = self._database.read if entries <= _INLINE_ENTRIES else self._database.scan
        names = await run(_page, repository, last, entries + 1)
        more = 0 < entries < len(names)
        return Page(names[:entries], names[entries - 1] if more else None)

    async def described(self, repository: str, *, last: str, entries: int) -> Sequence[Described]:
        """Return up to `entries` tags after `last`, with what they name and since when.

        Raises:
            NameUnknown: no such repository.

        """
        return await self._database.scan(_described, repository, last, entries)

    async def delete(self, repository: str, tag: Tag, *, actor: str) -> None:
        """Remove the tag, and nothing else.

        Raises:
            NameUnknown, ManifestUnknown: nothing there.
            DeleteDisabled: by setting.

        """
        if not self._deletes_enabled:
            raise DeleteDisabled(("GET", "HEAD", "PUT"))
        await self._database.release(
            _delete, repository, tag.name, actor=actor, at_us=now_us(), retention=self._retention
        )


def _page(tx: sa.Connection, repository: str, last: str, entries: int) -> list[str]:
    repo_id = repositories.find(tx, repository)
    if repo_id is None:
        raise NameUnknown(detail={"name": repository})
    return tags.page(tx, repo_id, last=last, entries=entries)


def _described(tx: sa.Connection, repository: str, last: str, entries: int) -> Sequence[Described]:
    repo_id = repositories.find(tx, repository)
    if repo_id is None:
        raise NameUnknown(detail={"name": repository})
    return tags.described(tx, repo_id, last=last, entries=entries)


def _delete(tx: sa.Connection, repository: str, name: str, *, actor: str, at_us: int, retention: Retention) -> None:
    repo_id = repositories.find(tx, repository)
    if repo_id is None:
        raise NameUnknown(detail={"name": repository})
    if not tags.delete(tx, repository, repo_id, name, actor=actor, at_us=at_us, retention=retention):
        raise ManifestUnknown("this repository has no such tag", detail={"name": repository, "reference": name})
