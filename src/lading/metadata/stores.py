"""Stores: which store's objects this database speaks of (E1), and whether it may remove any."""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.schema import blob_extents, stores


@dataclass(frozen=True, slots=True)
class Store:
    """A store of this database; the pair of uids is also in the store's marker, and so is the newest epoch.

    `held_reason` says why nothing is removed from it, since `held_us`; None when nothing is held.
    """

    id: int
    store_uid: str
    database_uid: str
    epoch: int
    held_us: int | None
    held_reason: str | None


def find(tx: sa.Connection) -> Store | None:
    """Return the store, or None in a database that has none yet."""
    columns = (stores.c[name] for name in Store.__slots__)
    row = tx.execute(sa.select(*columns).order_by(stores.c.id)).first()
    return None if row is None else Store(*row)


def created_us(tx: sa.Connection, store_id: int) -> int:
    """Return when the store was made."""
    return int(tx.execute(sa.select(stores.c.created_us).where(stores.c.id == store_id)).scalar_one())


def create(tx: sa.Connection, kind: str, store_uid: str, database_uid: str, *, at_us: int, epoch: int = 1) -> None:
    """Tie the database to a store."""
    values = {"store_uid": store_uid, "database_uid": database_uid, "epoch": epoch}
    tx.execute(sa.insert(stores).values(kind=kind, created_us=at_us, **values))


def take_over(tx: sa.Connection, store_id: int, *, store_uid: str, database_uid: str, epoch: int) -> None:
    """Give the store's row the identity that its marker has, or is about to get."""
    tx.execute(
        sa.update(stores)
        .where(stores.c.id == store_id)
        .values(store_uid=store_uid, database_uid=database_uid, epoch=epoch)
    )


def hold(tx: sa.Connection, store_id: int, reason: str, *, at_us: int) -> None:
    """Have nothing removed from the store until `release`."""
    tx.execute(sa.update(stores).where(stores.c.id == store_id).values(held_us=at_us, held_reason=reason))


def release(tx: sa.Connection, store_id: int, *, epoch: int) -> None:
    """End the hold, and begin the epoch in which what this database does not know may go."""
    tx.execute(sa.update(stores).where(stores.c.id == store_id).values(held_us=None, held_reason=None, epoch=epoch))


def has_objects(tx: sa.Connection, store_id: int) -> bool:
    """Tell whether any blob has its bytes in the store."""
    return (
        tx.execute(sa.select(blob_extents.c.blob_id).where(blob_extents.c.store_id == store_id).limit(1)).first()
        is not None
    )


def objects(tx: sa.Connection, store_id: int) -> Iterator[tuple[str, int]]:
    """Yield the key and the length in bytes of each object that a blob has in the store."""
    rows = tx.execute(
        sa.select(blob_extents.c.object_key, blob_extents.c.size).where(blob_extents.c.store_id == store_id),
        execution_options={"stream_results": True, "max_row_buffer": 1000},
    )
    yield from ((row.object_key, row.size) for row in rows)


def count_objects(tx: sa.Connection, store_id: int) -> int:
    """Return how many objects blobs have in the store."""
    return tx.execute(
        sa.select(sa.func.count()).select_from(blob_extents).where(blob_extents.c.store_id == store_id)
    ).scalar_one()


def is_named(tx: sa.Connection, store_id: int, object_key: str) -> bool:
    """Tell whether a blob has its bytes in this object."""
    found = tx.execute(
        sa.select(blob_extents.c.blob_id).where(
            blob_extents.c.store_id == store_id, blob_extents.c.object_key == object_key
        )
    )
    return found.first() is not None
