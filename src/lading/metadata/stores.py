"""Stores: which store's objects this database speaks of (E1)."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.schema import blob_extents, stores


@dataclass(frozen=True, slots=True)
class Store:
    """A store of this database; the pair of uids is also in the store's marker."""

    id: int
    store_uid: str
    database_uid: str


def find(tx: sa.Connection) -> Store | None:
    """Return the store, or None in a database that has none yet."""
    row = tx.execute(sa.select(stores.c.id, stores.c.store_uid, stores.c.database_uid).order_by(stores.c.id)).first()
    return None if row is None else Store(*row)


def create(tx: sa.Connection, kind: str, store_uid: str, database_uid: str, *, at_us: int) -> None:
    """Tie the database to a store."""
    tx.execute(sa.insert(stores).values(kind=kind, store_uid=store_uid, database_uid=database_uid, created_us=at_us))


def has_objects(tx: sa.Connection, store_id: int) -> bool:
    """Tell whether any blob has its bytes in the store."""
    return (
        tx.execute(sa.select(blob_extents.c.blob_id).where(blob_extents.c.store_id == store_id).limit(1)).first()
        is not None
    )


def is_named(tx: sa.Connection, store_id: int, object_key: str) -> bool:
    """Tell whether a blob has its bytes in this object."""
    found = tx.execute(
        sa.select(blob_extents.c.blob_id).where(
            blob_extents.c.store_id == store_id, blob_extents.c.object_key == object_key
        )
    )
    return found.first() is not None
