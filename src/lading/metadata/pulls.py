"""Pulls: how often each manifest was fetched, and when last."""

from collections.abc import Sequence

import sqlalchemy as sa

from lading.metadata.database import Prepared
from lading.metadata.schema import insert, manifest_pulls, manifests

# By way of the manifest's row: one that has gone meanwhile is nobody's error.
_INSERT = insert(manifest_pulls).from_select(
    ["manifest_id", "pulls", "last_us"],
    sa.select(
        manifests.c.id,
        sa.bindparam("count", type_=sa.BigInteger),
        sa.bindparam("at_us", type_=sa.BigInteger),
    ).where(manifests.c.id == sa.bindparam("at_id")),
)
_ADD = Prepared(
    _INSERT.on_conflict_do_update(
        index_elements=["manifest_id"],
        set_={
            "pulls": manifest_pulls.c.pulls + _INSERT.excluded.pulls,
            "last_us": sa.func.max(manifest_pulls.c.last_us, _INSERT.excluded.last_us),
        },
    )
)


def add(tx: sa.Connection, counted: Sequence[tuple[int, int, int]]) -> None:
    """Add to each manifest, by its id, so many pulls, the last of them at that moment."""
    for manifest_id, count, last_us in counted:
        _ADD.run(tx, at_id=manifest_id, count=count, at_us=last_us)
