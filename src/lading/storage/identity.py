"""The marker among the objects: which store this is, and which database speaks of it (E1).

It lies in DATA/objects, so that another disk mounted there, or an empty one, is noticed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lading.oci.errors import StoreMismatch
from lading.storage.disk import sync_directory

MARKER = "registry-store.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Marker:
    """The id pair."""

    store_uid: str
    database_uid: str


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
        document = json.loads(path.read_bytes())
        marker = Marker(str(document["store_uid"]), str(document["database_uid"]))
        written_format = document["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreMismatch(
            f"{path} cannot be read: {error!r}", "restore it from a backup of the same data directory"
        ) from error
    if written_format != FORMAT:
        raise StoreMismatch(
            f"{path} has format {written_format!r}, this Lading knows format {FORMAT}", "start the newer Lading again"
        )
    return marker


def write(data: Path, marker: Marker) -> None:
    """Write the marker, durably and whole."""
    path = marker_path(data)
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".new")
    with scratch.open("w") as file:
        json.dump(
            {"format": FORMAT, "store_uid": marker.store_uid, "database_uid": marker.database_uid}, file, indent=1
        )
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_directory(path.parent)
