"""Referrers: the manifests that name another as their subject (distribution-spec "Listing Referrers")."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import manifests, repositories
from lading.metadata.database import Database
from lading.metadata.manifests import Referrer
from lading.oci.digest import Digest

_MAX_PAGE_BYTES = 4 * 1024 * 1024
_FIRST_BATCH = 100
_MAX_ROWS = 10_000
_DESCRIPTOR_BYTES = 300


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """Referrers, oldest first; `next_cursor` when the list is too big for one index of about 4 MiB."""

    referrers: list[Referrer]
    next_cursor: int | None


class Referrers:
    """Who refers to whom, by repository."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, repository: str, subject: Digest, *, artifact_types: AbstractSet[str], after: int = 0
    ) -> ReferrersPage:
        """Return the referrers of `subject`, all or those of `artifact_types`; none where nothing is known."""
        first = await self._database.read(_batch, repository, subject, after, _FIRST_BATCH)
        if len(first) < _FIRST_BATCH:
            return _page(first, artifact_types, last_batch=True)
        more = await self._database.scan(_batch, repository, subject, first[-1].cursor, _MAX_ROWS - _FIRST_BATCH)
        return _page(first + more, artifact_types, last_batch=len(more) < _MAX_ROWS - _FIRST_BATCH)


def _page(rows: list[Referrer], artifact_types: AbstractSet[str], *, last_batch: bool) -> ReferrersPage:
    """Keep what was asked for, up to the size of a page; a page may be short, and still be followed."""
    listed: list[Referrer] = []
    page_bytes = 0
    for referrer in rows:
        if artifact_types and referrer.artifact_type not in artifact_types:
            continue
        listed.append(referrer)
        page_bytes += _size(referrer)
        if page_bytes > _MAX_PAGE_BYTES:
            more = not last_batch or referrer is not rows[-1]
            return ReferrersPage(listed, referrer.cursor if more else None)
    return ReferrersPage(listed, None if last_batch or not rows else rows[-1].cursor)


def _batch(tx: sa.Connection, repository: str, subject: Digest, after: int, entries: int) -> list[Referrer]:
    repo_id = repositories.find(tx, repository)
    if repo_id is None:
        return []
    return manifests.referrers(tx, repo_id, subject, after=after, entries=entries)


def _size(referrer: Referrer) -> int:
    """Return about how many bytes its descriptor takes."""
    return _DESCRIPTOR_BYTES + sum(len(key) + len(value) + 8 for key, value in referrer.annotations.items())
