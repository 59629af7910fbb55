"""What takes room: the bytes of blobs, by who needs them and by who shows them.

Read in one transaction, into tables of the connection's own: `begin` once, then any question. A manifest holds its
blobs as long as it is live, or a live index names it; after that, until its undo window is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.blobs import digest_of
from lading.metadata.schema import (
    blobs,
    doomed_objects,
    manifest_blobs,
    manifest_children,
    manifest_pulls,
    manifests,
    repo_blobs,
    repositories,
    stores,
    tag_history,
    tags,
)
from lading.oci.digest import Digest

_LIVE, _UNDO, _UNNEEDED = 0, 1, 2


def _own(name: str, *columns: sa.Column[int] | sa.Column[str]) -> sa.Table:
    """Return a table that the connection has for itself, in memory, until it is closed."""
    return sa.Table(name, sa.MetaData(), *columns, prefixes=["TEMPORARY"], sqlite_with_rowid=False)


# Manifests that hold their blobs; the others only wait for the collector.
_needed = _own(
    "needed",
    sa.Column("manifest_id", sa.Integer, primary_key=True),
    sa.Column("repo_id", sa.Integer),
    sa.Column("state", sa.Integer),
)
# Every blob: the best state of the manifests that name it, and how many live ones and how many repositories do.
_held = _own(
    "held",
    sa.Column("blob_id", sa.Integer, primary_key=True),
    sa.Column("size", sa.Integer),
    sa.Column("state", sa.Integer),
    sa.Column("live_manifests", sa.Integer),
    sa.Column("links", sa.Integer),
)
# Tags that would be deleted together, then all manifests below them, then those of these that nothing else needs.
_chosen = _own("chosen", sa.Column("together", sa.Text, primary_key=True), sa.Column("name", sa.Text, primary_key=True))
_below = _own(
    "below", sa.Column("together", sa.Text, primary_key=True), sa.Column("manifest_id", sa.Integer, primary_key=True)
)
_going = _own(
    "going", sa.Column("together", sa.Text, primary_key=True), sa.Column("manifest_id", sa.Integer, primary_key=True)
)


def begin(tx: sa.Connection, *, undone_until_us: int) -> None:
    """Find out what is needed. What was deleted after `undone_until_us` can be brought back."""
    tx.exec_driver_sql("PRAGMA temp_store=MEMORY")  # who asks may have a full disk
    for table in (_needed, _held, _chosen, _below, _going):
        table.create(tx)
    live = sa.select(manifests.c.id, manifests.c.repo_id).where(manifests.c.deleted_us.is_(None))
    undo = sa.select(manifests.c.id, manifests.c.repo_id).where(
        manifests.c.deleted_us.is_not(None),
        sa.or_(
            manifests.c.deleted_us > undone_until_us,
            sa.exists().where(
                tag_history.c.manifest_id == manifests.c.id,
                sa.or_(tag_history.c.to_us.is_(None), tag_history.c.to_us > undone_until_us),
            ),
        ),
    )
    for state, roots in ((_LIVE, live), (_UNDO, undo)):
        tree = _with_children(roots)
        found = sa.select(tree.c.id, tree.c.repo_id, sa.literal(state))
        tx.execute(sa.insert(_needed).prefix_with("OR IGNORE").from_select(["manifest_id", "repo_id", "state"], found))
    links = sa.select(sa.func.count()).where(repo_blobs.c.blob_id == blobs.c.id).scalar_subquery()
    is_live = _needed.c.state == _LIVE
    tx.execute(
        sa.insert(_held).from_select(
            ["blob_id", "size", "state", "live_manifests", "links"],
            sa.select(
                blobs.c.id,
                blobs.c.size,
                sa.func.coalesce(sa.func.min(_needed.c.state), _UNNEEDED),
                sa.func.count(_needed.c.manifest_id.distinct()).filter(is_live),
                links,
            )
            .select_from(
                blobs.outerjoin(manifest_blobs, manifest_blobs.c.blob_id == blobs.c.id).outerjoin(
                    _needed, _needed.c.manifest_id == manifest_blobs.c.manifest_id
                )
            )
            .group_by(blobs.c.id),
        )
    )


def _with_children(roots: sa.Select[tuple[int, int]]) -> sa.CTE:
    """Return the manifests, and those that a row of an index among them names."""
    tree = roots.cte("tree", recursive=True)
    return tree.union(
        sa.select(manifest_children.c.child_id, tree.c.repo_id)
        .join(tree, tree.c.id == manifest_children.c.parent_id)
        .where(manifest_children.c.child_id.is_not(None))
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """The bytes of all blobs; `leased_bytes` is the part of `reclaimable_bytes` that is kept for manifests to come."""

    content_bytes: int
    live_bytes: int
    undo_bytes: int
    reclaimable_bytes: int
    leased_bytes: int
    leased_until_us: int | None


def totals(tx: sa.Connection, *, at_us: int) -> Totals:
    """Add up all blobs."""
    rows = tx.execute(sa.select(_held.c.state, sa.func.sum(_held.c.size)).group_by(_held.c.state))
    by_state: dict[int, int] = {state: size for state, size in rows}  # noqa: C416 - a row is no tuple for mypy
    leases = (
        sa.select(_held.c.size, sa.func.max(repo_blobs.c.keep_until_us).label("until_us"))
        .join(repo_blobs, repo_blobs.c.blob_id == _held.c.blob_id)
        .where(_held.c.state == _UNNEEDED, repo_blobs.c.keep_until_us > at_us)
        .group_by(_held.c.blob_id)
        .subquery()
    )
    leased = tx.execute(sa.select(sa.func.coalesce(sa.func.sum(leases.c.size), 0), sa.func.max(leases.c.until_us)))
    live, undo, unneeded = (by_state.get(state, 0) for state in (_LIVE, _UNDO, _UNNEEDED))
    return Totals(live + undo + unneeded, live, undo, unneeded, *leased.one())


@dataclass(frozen=True, slots=True)
class RepositoryUsage:
    """The bytes of the blobs that a repository links: exclusive or shared, and live, undo or reclaimable."""

    id: int
    name: str
    deleted: bool
    manifests: int
    tags: int
    content_bytes: int
    exclusive_bytes: int
    undo_bytes: int
    reclaimable_bytes: int
    pulls: int
    last_pull_us: int | None


def by_repository(tx: sa.Connection, name: str | None = None) -> list[RepositoryUsage]:
    """Return every repository, or that of the name alone; the biggest first."""
    linked = (
        sa.select(
            repo_blobs.c.repo_id,
            sa.func.sum(_held.c.size).label("content"),
            _sum_if(_held.c.links == 1).label("exclusive"),
            _sum_if(_held.c.state == _UNDO).label("undo"),
            _sum_if(_held.c.state == _UNNEEDED).label("reclaimable"),
        )
        .join(_held, _held.c.blob_id == repo_blobs.c.blob_id)
        .group_by(repo_blobs.c.repo_id)
        .subquery()
    )
    tagged = sa.select(tags.c.repo_id, sa.func.count().label("tags")).group_by(tags.c.repo_id).subquery()
    pulled = (
        sa.select(
            _needed.c.repo_id,
            sa.func.sum(manifest_pulls.c.pulls).label("pulls"),
            sa.func.max(manifest_pulls.c.last_us).label("last_us"),
        )
        .join(_needed, _needed.c.manifest_id == manifest_pulls.c.manifest_id)
        .group_by(_needed.c.repo_id)
        .subquery()
    )
    numbers = (tagged.c.tags, *(linked.c[part] for part in ("content", "exclusive", "undo", "reclaimable")))
    query = (
        sa.select(
            repositories.c.id,
            repositories.c.name,
            repositories.c.deleted_us.is_not(None),
            repositories.c.manifest_count,
            *(sa.func.coalesce(number, 0) for number in (*numbers, pulled.c.pulls)),
            pulled.c.last_us,
        )
        .select_from(repositories)
        .outerjoin(linked, linked.c.repo_id == repositories.c.id)
        .outerjoin(tagged, tagged.c.repo_id == repositories.c.id)
        .outerjoin(pulled, pulled.c.repo_id == repositories.c.id)
        .order_by(sa.func.coalesce(linked.c.content, 0).desc(), repositories.c.name)
    )
    if name is not None:
        query = query.where(repositories.c.name == name)
    return [RepositoryUsage(*row) for row in tx.execute(query)]


def _sum_if(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, _held.c.size), else_=0))


@dataclass(frozen=True, slots=True)
class TagUsage:
    """The bytes that a tag's manifest and its children refer to, and those that nothing else needs."""

    name: str
    digest: Digest
    content_bytes: int
    exclusive_bytes: int
    pulls: int
    last_pull_us: int | None


def by_tag(tx: sa.Connection, repo_id: int) -> list[TagUsage]:
    """Return every tag of the repository; the biggest first."""
    each = sa.select(tags.c.name.label("together"), tags.c.name).where(tags.c.repo_id == repo_id)
    tx.execute(sa.insert(_chosen).from_select(["together", "name"], each))
    _trace(tx, repo_id)
    content = _sizes(_below).subquery()
    exclusive = _sizes(_going, only_they=True).subquery()
    rows = tx.execute(
        sa.select(
            tags.c.name,
            manifests.c.alg,
            manifests.c.digest,
            sa.func.coalesce(content.c.bytes, 0),
            sa.func.coalesce(exclusive.c.bytes, 0),
            sa.func.coalesce(manifest_pulls.c.pulls, 0),
            manifest_pulls.c.last_us,
        )
        .select_from(tags)
        .join(manifests, manifests.c.id == tags.c.manifest_id)
        .outerjoin(content, content.c.together == tags.c.name)
        .outerjoin(exclusive, exclusive.c.together == tags.c.name)
        .outerjoin(manifest_pulls, manifest_pulls.c.manifest_id == tags.c.manifest_id)
        .where(tags.c.repo_id == repo_id)
        .order_by(sa.func.coalesce(content.c.bytes, 0).desc(), tags.c.name)
    )
    return [TagUsage(name, digest_of(alg, raw), *numbers) for name, alg, raw, *numbers in rows]


@dataclass(frozen=True, slots=True)
class Freed:
    """What the deletion of some tags leads to: manifests to delete, and the bytes that nothing needs then.

    `leased_until_us` is when the last lease on these bytes is over.
    """

    manifests: Sequence[Digest]
    content_bytes: int
    leased_until_us: int | None


def absent(tx: sa.Connection, repo_id: int, names: Sequence[str]) -> list[str]:
    """Return those of the names that are no tags of the repository."""
    query = sa.select(tags.c.manifest_id).where(tags.c.repo_id == repo_id)
    return [name for name in names if tx.execute(query.where(tags.c.name == name)).first() is None]


def if_deleted(tx: sa.Connection, repo_id: int, names: Sequence[str]) -> Freed:
    """Tell what goes with these tags: their manifests and children, but what another tag or index names."""
    tx.execute(sa.insert(_chosen), [{"together": "", "name": name} for name in names])
    _trace(tx, repo_id)
    rows = tx.execute(
        sa.select(manifests.c.alg, manifests.c.digest)
        .join(_going, _going.c.manifest_id == manifests.c.id)
        .order_by(manifests.c.id.desc())  # an index came after its children
    )
    freed = _blobs_of(_going, only_they=True).subquery()
    content = tx.execute(sa.select(sa.func.coalesce(sa.func.sum(freed.c.size), 0))).scalar_one()
    until = sa.select(sa.func.max(repo_blobs.c.keep_until_us)).join(freed, freed.c.blob_id == repo_blobs.c.blob_id)
    return Freed([digest_of(*row) for row in rows], content, tx.execute(until).scalar_one())


def _trace(tx: sa.Connection, repo_id: int) -> None:
    """Follow the chosen tags: what is below them, and what of it nothing else needs."""
    roots = (
        sa.select(_chosen.c.together, tags.c.manifest_id)
        .join(tags, sa.and_(tags.c.repo_id == repo_id, tags.c.name == _chosen.c.name))
        .cte("tree", recursive=True)
    )
    tree = _descend(roots)
    tx.execute(sa.insert(_below).from_select(["together", "manifest_id"], sa.select(tree.c.together, tree.c[1])))
    beside, parent = _below.alias("beside"), manifest_children.alias("parent")
    is_named = sa.exists().where(
        tags.c.manifest_id == _below.c.manifest_id,
        ~sa.exists()
        .where(_chosen.c.together == _below.c.together, _chosen.c.name == tags.c.name)
        .correlate(_below, tags),
    )
    is_child = sa.exists().where(
        parent.c.child_id == _below.c.manifest_id,
        sa.exists().where(_needed.c.manifest_id == parent.c.parent_id, _needed.c.state == _LIVE),
        ~sa.exists()
        .where(beside.c.together == _below.c.together, beside.c.manifest_id == parent.c.parent_id)
        .correlate(_below, parent),
    )
    stays = _descend(
        sa.select(_below.c.together, _below.c.manifest_id)
        .where(sa.or_(is_named, is_child))
        .cte("stays", recursive=True)
    )
    going = sa.select(_below.c.together, _below.c.manifest_id).except_(sa.select(stays.c.together, stays.c[1]))
    tx.execute(sa.insert(_going).from_select(["together", "manifest_id"], going))


def _descend(roots: sa.CTE) -> sa.CTE:
    return roots.union(
        sa.select(roots.c.together, manifest_children.c.child_id)
        .join(roots, roots.c.manifest_id == manifest_children.c.parent_id)
        .where(manifest_children.c.child_id.is_not(None))
    )


def _blobs_of(group: sa.Table, *, only_they: bool = False) -> sa.Select[tuple[str, int, int]]:
    """Return each blob of a group's manifests once; with `only_they` those that no live manifest beside them names."""
    query = (
        sa.select(group.c.together, _held.c.blob_id, _held.c.size)
        .select_from(group)
        .join(manifest_blobs, manifest_blobs.c.manifest_id == group.c.manifest_id)
        .join(_held, _held.c.blob_id == manifest_blobs.c.blob_id)
        .group_by(group.c.together, _held.c.blob_id)
    )
    if only_they:
        query = query.having(sa.func.count(group.c.manifest_id.distinct()) == _held.c.live_manifests)
    return query


def _sizes(group: sa.Table, *, only_they: bool = False) -> sa.Select[tuple[str, int]]:
    each = _blobs_of(group, only_they=only_they).subquery()
    return sa.select(each.c.together, sa.func.sum(each.c.size).label("bytes")).group_by(each.c.together)


def doomed(tx: sa.Connection) -> list[tuple[str, int]]:
    """Return the key of each object that no blob needs, and when it may be deleted."""
    query = sa.select(doomed_objects.c.object_key, doomed_objects.c.not_before_us)
    return [(row[0], row[1]) for row in tx.execute(query)]


def held_reason(tx: sa.Connection) -> str | None:
    """Return why nothing is removed from the store, if that is so."""
    reason: str | None = tx.execute(sa.select(stores.c.held_reason).where(stores.c.held_us.is_not(None))).scalar()
    return reason
