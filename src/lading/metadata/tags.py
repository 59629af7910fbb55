"""Tags, and their history: who moved one, when, from what to what."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata import feed, garbage
from lading.metadata.blobs import digest_of
from lading.metadata.database import Prepared
from lading.metadata.garbage import Retention
from lading.metadata.schema import insert, manifests, tag_history, tags
from lading.oci.digest import Digest

_GET = Prepared(
    sa.select(tags.c.manifest_id).where(tags.c.repo_id == sa.bindparam("repo_id"), tags.c.name == sa.bindparam("name"))
)
_SET_INSERT = insert(tags).values({name: sa.bindparam(name) for name in ("repo_id", "name", "manifest_id")})
_SET = Prepared(
    _SET_INSERT.on_conflict_do_update(
        index_elements=["repo_id", "name"], set_={"manifest_id": _SET_INSERT.excluded.manifest_id}
    )
)
_DELETE = Prepared(
    sa.delete(tags).where(tags.c.repo_id == sa.bindparam("repo_id"), tags.c.name == sa.bindparam("name"))
)
_OF_MANIFEST = Prepared(sa.select(tags.c.name).where(tags.c.manifest_id == sa.bindparam("manifest_id")))
_PAGE = Prepared(
    sa.select(tags.c.name)
    .where(tags.c.repo_id == sa.bindparam("repo_id"), tags.c.name > sa.bindparam("last"))
    .order_by(tags.c.name)
    .limit(sa.bindparam("entries"))
)
_OPEN = Prepared(
    sa.insert(tag_history).values(
        {name: sa.bindparam(name) for name in ("repo_id", "name", "manifest_id", "from_us", "actor")}
    )
)
_CLOSE = Prepared(
    sa.update(tag_history)
    .where(
        tag_history.c.repo_id == sa.bindparam("at_repo"),
        tag_history.c.name == sa.bindparam("at_name"),
        tag_history.c.to_us.is_(None),
    )
    .values(to_us=sa.bindparam("at_us"))
)


def put(  # noqa: PLR0913 - which tag to which manifest, and who did it when
    tx: sa.Connection,
    repository: str,
    repo_id: int,
    name: str,
    manifest_id: int,
    digest: Digest,
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> bool:
    """Point the tag at the manifest; False when it does already, and nothing is changed."""
    row = _GET.one(tx, repo_id=repo_id, name=name)
    if row is not None and row[0] == manifest_id:
        return False
    _SET.run(tx, repo_id=repo_id, name=name, manifest_id=manifest_id)
    if row is not None:
        _close(tx, repo_id, name, row[0], at_us, retention)
    _OPEN.insert(tx, repo_id=repo_id, name=name, manifest_id=manifest_id, from_us=at_us, actor=actor)
    feed.append(tx, feed.Kind.TAG_SET, repository=repository, tag=name, digest=digest, actor=actor, at_us=at_us)
    return True


def delete(  # noqa: PLR0913 - which tag, and who did it when
    tx: sa.Connection, repository: str, repo_id: int, name: str, *, actor: str, at_us: int, retention: Retention
) -> bool:
    """Remove the tag; False when there is none."""
    row = _GET.one(tx, repo_id=repo_id, name=name)
    if row is None:
        return False
    _DELETE.run(tx, repo_id=repo_id, name=name)
    _close(tx, repo_id, name, row[0], at_us, retention)
    feed.append(tx, feed.Kind.TAG_DELETED, repository=repository, tag=name, actor=actor, at_us=at_us)
    return True


def of_manifest(tx: sa.Connection, manifest_id: int) -> list[str]:
    """Return the tags that name the manifest."""
    return [row[0] for row in _OF_MANIFEST.all(tx, manifest_id=manifest_id)]


def page(tx: sa.Connection, repo_id: int, *, last: str, entries: int) -> list[str]:
    """Return up to `entries` tags after `last`, in bytewise order."""
    return [row[0] for row in _PAGE.all(tx, repo_id=repo_id, last=last, entries=entries)]


@dataclass(frozen=True, slots=True)
class Described:
    """A tag, what it names, and since when."""

    name: str
    digest: Digest
    since_us: int
    media_type: str
    artifact_type: str | None


def described(tx: sa.Connection, repo_id: int, *, last: str, entries: int) -> list[Described]:
    """Return up to `entries` tags after `last`, in bytewise order, with what they name."""
    is_open = sa.and_(
        tag_history.c.repo_id == tags.c.repo_id, tag_history.c.name == tags.c.name, tag_history.c.to_us.is_(None)
    )
    rows = tx.execute(
        sa.select(
            tags.c.name,
            manifests.c.alg,
            manifests.c.digest,
            tag_history.c.from_us,
            manifests.c.media_type,
            manifests.c.artifact_type,
        )
        .select_from(tags.join(manifests, manifests.c.id == tags.c.manifest_id).join(tag_history, is_open))
        .where(tags.c.repo_id == repo_id, tags.c.name > last)
        .order_by(tags.c.name)
        .limit(entries)
    )
    return [Described(name, digest_of(alg, raw), *rest) for name, alg, raw, *rest in rows]


def _close(tx: sa.Connection, repo_id: int, name: str, manifest_id: int, at_us: int, retention: Retention) -> None:
    """End the tag's open history row; its manifest may go once the undo window is over."""
    _CLOSE.run(tx, at_repo=repo_id, at_name=name, at_us=at_us)
    garbage.review_manifest(tx, manifest_id, after_us=at_us + retention.undo_us, event="untagged")
