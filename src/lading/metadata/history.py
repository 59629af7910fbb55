"""The past of tags and repositories: what a tag named when, and what the feed still tells of what is gone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from lading.metadata import feed
from lading.metadata.blobs import digest_of
from lading.metadata.feed import Kind
from lading.metadata.schema import manifests, tag_history
from lading.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Naming:
    """For a time a tag named a manifest: until `to_us`, or still."""

    digest: Digest
    from_us: int
    to_us: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """A tag was set to a manifest by `actor`, or deleted while it named it."""

    at_us: int
    deleted: bool
    digest: Digest
    media_type: str
    content_bytes: int
    actor: str


def namings(tx: sa.Connection, repo_id: int, tag: str) -> list[Naming]:
    """Return what the tag named, as far as it can be brought back, the newest first."""
    rows = tx.execute(
        sa.select(manifests.c.alg, manifests.c.digest, tag_history.c.from_us, tag_history.c.to_us)
        .select_from(tag_history.join(manifests, manifests.c.id == tag_history.c.manifest_id))
        .where(tag_history.c.repo_id == repo_id, tag_history.c.name == tag)
        .order_by(tag_history.c.id.desc())
    )
    return [Naming(digest_of(alg, raw), from_us, to_us) for alg, raw, from_us, to_us in rows]


def events(  # noqa: PLR0913 - of which tag, and the filters of the draft
    tx: sa.Connection,
    repo_id: int,
    tag: str,
    *,
    before_us: int | None,
    since_us: int | None,
    digest: Digest | None,
    entries: int,
) -> list[Event]:
    """Return up to `entries` events of the tag, the newest first: those before, after, and of what is asked for.

    A naming that ends where the next one begins was ended by that one, and no delete.
    """
    following = sa.func.lead(tag_history.c.from_us).over(order_by=tag_history.c.id)
    rows = (
        sa.select(tag_history, following.label("next_us"))
        .where(tag_history.c.repo_id == repo_id, tag_history.c.name == tag)
        .subquery()
    )
    both = sa.union_all(
        sa.select(
            rows.c.id, rows.c.from_us.label("at_us"), sa.literal(0).label("deleted"), rows.c.manifest_id, rows.c.actor
        ),
        sa.select(rows.c.id, rows.c.to_us, sa.literal(1), rows.c.manifest_id, rows.c.actor).where(
            rows.c.to_us.is_not(None), rows.c.to_us.is_distinct_from(rows.c.next_us)
        ),
    ).subquery()
    conditions = [
        *([] if before_us is None else [both.c.at_us < before_us]),
        *([] if since_us is None else [both.c.at_us > since_us]),
        *([] if digest is None else [manifests.c.alg == int(digest.algorithm), manifests.c.digest == digest.raw]),
    ]
    found = tx.execute(
        sa.select(
            both.c.at_us,
            both.c.deleted,
            manifests.c.alg,
            manifests.c.digest,
            manifests.c.media_type,
            manifests.c.size,
            both.c.actor,
        )
        .select_from(both.join(manifests, manifests.c.id == both.c.manifest_id))
        .where(*conditions)
        .order_by(both.c.at_us.desc(), both.c.id.desc(), both.c.deleted.desc())
        .limit(entries)
    )
    return [
        Event(at, bool(gone), digest_of(alg, raw), kind, size, actor) for at, gone, alg, raw, kind, size, actor in found
    ]


# A repository as it was


@dataclass(frozen=True, slots=True)
class Moment:
    """A state of a repository: at `at_us`, or, without it, just before it was deleted at `deleted_us`."""

    at_us: int | None
    deleted_us: int | None

    def ended_later(self, end: sa.Column[Any]) -> sa.ColumnElement[bool]:
        """Tell of a row that went at `end` whether it was there. What a deletion took has its very moment."""
        return end == self.deleted_us if self.at_us is None else end > self.at_us

    def had_begun(self, start: sa.Column[Any]) -> sa.ColumnElement[bool]:
        """Tell of a row that came at `start` whether it was there."""
        return sa.true() if self.at_us is None else start <= self.at_us


def tags_then(tx: sa.Connection, repo_id: int, moment: Moment) -> list[tuple[str, Digest]]:
    """Return the tags of that moment, as far as they can be brought back, with what they named."""
    gone_later = moment.ended_later(tag_history.c.to_us)
    newest = (
        sa.select(sa.func.max(tag_history.c.id))
        .where(
            tag_history.c.repo_id == repo_id,
            moment.had_begun(tag_history.c.from_us),
            gone_later if moment.at_us is None else sa.or_(gone_later, tag_history.c.to_us.is_(None)),
        )
        .group_by(tag_history.c.name)
    )
    rows = tx.execute(
        sa.select(tag_history.c.name, manifests.c.alg, manifests.c.digest)
        .select_from(tag_history.join(manifests, manifests.c.id == tag_history.c.manifest_id))
        .where(tag_history.c.id.in_(newest))
        .order_by(tag_history.c.name)
    )
    return [(name, digest_of(alg, raw)) for name, alg, raw in rows]


def manifests_gone_since(tx: sa.Connection, repo_id: int, moment: Moment) -> list[Digest]:
    """Return the manifests that were there at that moment, are deleted, and can be brought back; the oldest first."""
    rows = tx.execute(
        sa.select(manifests.c.alg, manifests.c.digest)
        .where(
            manifests.c.repo_id == repo_id,
            moment.had_begun(manifests.c.created_us),
            moment.ended_later(manifests.c.deleted_us),
        )
        .order_by(manifests.c.id)
    )
    return [digest_of(*row) for row in rows]


# What only the feed tells. It has no index for this: each reads the whole of it.


def told_namings(tx: sa.Connection, repository: str, tag: str) -> list[Naming]:
    """Return what the tag has ever named, the newest first."""
    found: list[Naming] = []
    for kind, at_us, alg, raw in _told_of_tag(tx, repository, tag, "kind", "at_us", "alg", "digest"):
        if found and found[-1].to_us is None:
            found[-1] = Naming(found[-1].digest, found[-1].from_us, at_us)
        if kind == Kind.TAG_SET.value:
            found.append(Naming(digest_of(alg, raw), at_us, None))
    return found[::-1]


def deleters(tx: sa.Connection, repository: str, tag: str) -> Mapping[int, str]:
    """Return who deleted the tag, or its repository, by the moment."""
    rows = _told_of_tag(tx, repository, tag, "kind", "at_us", "actor")
    return {at_us: actor for kind, at_us, actor in rows if kind != Kind.TAG_SET.value}


def _told_of_tag(tx: sa.Connection, repository: str, tag: str, *columns: str) -> Iterable[Any]:
    row = feed.told(tx, Kind.TAG_SET, Kind.TAG_DELETED, Kind.REPOSITORY_DELETED)
    return tx.execute(
        sa.select(*(row.c[name] for name in columns))
        .where(_is_of(row, repository), sa.or_(row.c.tag == tag, row.c.tag.is_(None)))
        .order_by(row.c.seq)
    )


def collected_us(tx: sa.Connection, repository: str, digest: Digest | None = None) -> int | None:
    """Return when the manifest, or the last one of any, was removed from the repository for good."""
    row = feed.told(tx, Kind.MANIFEST_COLLECTED)
    is_it = sa.true() if digest is None else sa.and_(row.c.alg == int(digest.algorithm), row.c.digest == digest.raw)
    return tx.execute(sa.select(sa.func.max(row.c.at_us)).where(_is_of(row, repository), is_it)).scalar()


def ends_of_repository(tx: sa.Connection, repository: str) -> tuple[int | None, int | None]:
    """Return when the repository was last deleted, and when what had the name was last removed for good."""
    row = feed.told(tx, Kind.REPOSITORY_DELETED, Kind.REPOSITORY_COLLECTED)
    ends = tx.execute(
        sa.select(row.c.kind, sa.func.max(row.c.at_us)).where(_is_of(row, repository)).group_by(row.c.kind)
    )
    by_kind = {str(kind): int(at_us) for kind, at_us in ends}
    return by_kind.get(Kind.REPOSITORY_DELETED.value), by_kind.get(Kind.REPOSITORY_COLLECTED.value)


def _is_of(row: sa.Subquery, repository: str) -> sa.ColumnElement[bool]:
    """Tell of a row whether it is of what is called so, or of what was until it went."""
    return sa.or_(row.c.now == repository, sa.and_(row.c.now == "", row.c.repository == repository))


def choose(past: Sequence[Naming], *, at_us: int | None, digest: Digest | None) -> Naming | None:
    """Return the naming, of those with the newest first, that is meant.

    By the digest; or by the moment; or, without either, the last one that is not what the tag names now.
    """
    if digest is not None:
        return next((one for one in past if one.digest == digest), None)
    if at_us is not None:
        return next((one for one in past if one.from_us <= at_us and (one.to_us is None or at_us < one.to_us)), None)
    now = past[0].digest if past and past[0].to_us is None else None
    return next((one for one in past if one.digest != now), None)
