"""Restoring a snapshot: an earlier state of the database takes over the store, and removes nothing from it at first."""

from dataclasses import dataclass
from pathlib import Path

from lading.metadata import restore as replacement
from lading.metadata import snapshots, stores
from lading.metadata.database import FILE, create_engine
from lading.metadata.snapshots import Contents, Snapshot
from lading.metadata.times import now_us
from lading.metadata.upgrade import migrate, refuse_newer
from lading.oci.errors import DatabaseUnusable, StoreMismatch
from lading.storage import identity
from lading.storage.identity import Marker


@dataclass(frozen=True, slots=True)
class Restoration:
    """What restoring `snapshot` means. `seen` is the newest change known of, None when nothing is known of any."""

    snapshot: Snapshot
    contents: Contents
    current: Contents | None
    marker: Marker | None
    seen: int | None

    @property
    def lost(self) -> int | None:
        """How many changes are newer than the snapshot; None when that is not known."""
        return None if self.seen is None else max(0, self.seen - self.contents.seq)


def plan(data: Path, snapshot: Snapshot) -> Restoration:
    """Look at a snapshot, and at what it would replace; nothing is changed. The caller has claimed the directory.

    Raises:
        DatabaseUnusable: the snapshot is damaged.
        SchemaTooNew: a newer Lading took it.
        StoreMismatch: it is another registry's.

    """
    replacement.finish(data / FILE)
    found = snapshots.contents(snapshot.path)
    refuse_newer(snapshot.path, found.revision)
    current, marker = _current(data / FILE), identity.read(data)
    if marker is not None and found.pair is not None and not set(found.pair) & set(marker.pair):
        raise StoreMismatch(
            f"{snapshot.path} is of database {found.pair[1]} with store {found.pair[0]}, but the objects in {data} "
            f"are store {marker.store_uid} of database {marker.database_uid}",
            "choose a snapshot of this registry: lading restore-snapshot --list",
        )
    known = [side.seq for side in (current, marker) if side is not None]
    return Restoration(snapshot, found, current, marker, max(known) if known else None)


def restore(data: Path, planned: Restoration) -> Path | None:
    """Put the snapshot in the database's place; return where the old one is kept, None if there was none.

    It begins a new epoch: the old database, should it come back, is only read. Nothing is removed from the store until
    that is acknowledged, since files of changes that are lost now may be all that is left of them.
    """
    sides = (planned.current, planned.marker, planned.contents)
    epoch = max(side.epoch for side in sides if side is not None) + 1
    kept = replacement.replace(data / FILE, planned.snapshot.path, lambda copy: _make_ready(copy, planned, epoch))
    return kept if kept.exists() else None


def _current(database: Path) -> Contents | None:
    try:
        return snapshots.contents(database, with_log=True)
    except DatabaseUnusable:
        return None


def _make_ready(copy: Path, planned: Restoration, epoch: int) -> None:
    migrate(copy)
    with create_engine(copy).connect() as connection:
        store = stores.find(connection)
        if store is not None:
            pair = planned.marker.pair if planned.marker else (store.store_uid, store.database_uid)
            stores.take_over(connection, store.id, store_uid=pair[0], database_uid=pair[1], epoch=epoch)
            reason = f"the database was restored from {planned.snapshot.path.name}"
            stores.hold(connection, store.id, reason, at_us=now_us())
