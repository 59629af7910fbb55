"""The marker among the objects: which store this is, and which database speaks of it (E1).

It lies in DATA/objects, so that another disk mounted there, or an empty one, is noticed.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import structlog

from lading.oci.errors import RegistryError, StoreMismatch, StoreUnavailable, Superseded
from lading.storage.disk import sync_directory

MARKER = "registry-store.json"
FORMAT = 1
_MOST_BYTES = 65536
_Stamp = tuple[int, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Marker:
    """The pair of ids, and how far the database that speaks of this store has been seen.

    `epoch` grows when another state of the database takes the store over; `seq` is the highest number of the change
    feed seen in that epoch. A marker from before they were written is in its first epoch.
    """

    store_uid: str
    database_uid: str
    epoch: int = 1
    seq: int = 0

    @property
    def pair(self) -> tuple[str, str]:
        """The two ids."""
        return self.store_uid, self.database_uid


def marker_path(data: Path) -> Path:
    """Return where the marker of a data directory is."""
    return data / "objects" / MARKER


def read(data: Path) -> Marker | None:
    """Return the marker, or None where there is none.

    Raises:
        StoreMismatch: there is one that cannot be read.

    """
    path = marker_path(data)
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
        written_format = document["format"]
        marker = Marker(
            str(document["store_uid"]),
            str(document["database_uid"]),
            _count(document.get("epoch", 1)),
            _count(document.get("seq", 0)),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreMismatch(
            f"{path} cannot be read: {error!r}",
            "restore it from a backup of the same data directory, or have it written anew: lading store adopt",
        ) from error
    if written_format != FORMAT:
        raise StoreMismatch(
            f"{path} has format {written_format!r}, this Lading knows format {FORMAT}", "start the newer Lading again"
        )
    return marker


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"not a count: {value!r}")
    return value


def write(data: Path, marker: Marker) -> None:
    """Write the marker, durably and whole; one process at a time."""
    path = marker_path(data)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".new")
    try:
        with scratch.open("w") as file:
            json.dump({"format": FORMAT, **asdict(marker)}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@dataclass(frozen=True, slots=True)
class DatabaseFile:
    """Which file a path led to before it was opened: taken later, it would be one that came in its place."""

    path: str
    number: _Stamp

    @classmethod
    def at(cls, path: Path) -> Self:
        """Look now, before the database is opened."""
        return cls(str(path), _stamp(str(path))[:2])

    def is_there(self) -> bool:
        """Whether the path still leads to it."""
        return _stamp(self.path)[:2] == self.number


class Watch:
    """Asked at every write whether the objects are still those of the start; while they are, it costs two stats.

    What is wrong is said in the log when it begins and when it ends, so that nobody needs to restart the server.
    """

    def __init__(self, data: Path, ours: Marker, database: DatabaseFile) -> None:
        self._data = data
        self._ours = ours
        # As text: a Path costs more than the call it is made for.
        self._marker_file = str(marker_path(data))
        self._database = database
        self._seen: _Stamp = ()
        self._trouble: tuple[str, RegistryError] | None = None

    def confirm_there(self) -> None:
        """Return when the objects are ours to read.

        Raises:
            StoreUnavailable: they are not there, or are another store's.

        """
        trouble = self._look()
        if isinstance(trouble, StoreUnavailable):
            raise trouble

    def confirm_writable(self) -> None:
        """Return when the objects are ours to write.

        Raises:
            StoreUnavailable: they are not there, or are another store's.
            Superseded: a later epoch has taken them over.

        """
        trouble = self._look()
        if trouble is not None:
            raise trouble

    def _look(self) -> RegistryError | None:
        stamp = _stamp(self._marker_file)
        is_same_database = self._database.is_there()
        if not stamp or stamp != self._seen or not is_same_database:
            self._note(self._judge() if is_same_database else self._database_gone())
            self._seen = stamp if self._trouble is None else ()
        return None if self._trouble is None else self._trouble[1]

    def _judge(self) -> tuple[str, RegistryError] | None:
        try:
            marker = read(self._data)
        except (StoreMismatch, OSError) as error:
            return str(error), StoreUnavailable()
        if marker is None:
            return f"{self._marker_file} is not there", StoreUnavailable()
        if marker.pair != self._ours.pair:
            found = f"the objects are store {marker.store_uid} of database {marker.database_uid}"
            return f"{found}, not {self._ours.store_uid} of {self._ours.database_uid}", StoreUnavailable()
        if marker.epoch > self._ours.epoch:
            found = f"the store is in epoch {marker.epoch}, this database in epoch {self._ours.epoch}"
            return f"{found}: lading store adopt puts this database in force", Superseded()
        return None

    def _database_gone(self) -> tuple[str, RegistryError]:
        found = f"{self._database.path} is another file than the one opened at the start"
        return f"{found}: put that one back, or start the server again", StoreUnavailable()

    def _note(self, trouble: tuple[str, RegistryError] | None) -> None:
        before, self._trouble = self._trouble, trouble
        if trouble is not None and (before is None or before[0] != trouble[0]):
            log.error("nothing is accepted: the store is not ours to write", reason=trouble[0])
        elif trouble is None and before is not None:
            log.info("the store is there again, and pushes are accepted", reason=before[0])


def _stamp(path: str) -> _Stamp:
    """Return the file's device and number, and what changes with its content; nothing where there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - see `Watch`
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
