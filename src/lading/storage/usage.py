"""How much room files take: looked at one by one, and what is gone meanwhile takes none."""

import os
from pathlib import Path


def object_bytes(data: Path, object_key: str) -> int:
    """Return the size of an object, 0 when it is not there."""
    return _size(data / "objects" / object_key)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below it, 0 when it is not there."""
    return sum(_size(Path(place, name)) for place, _, names in os.walk(folder) for name in names)


def database_bytes(database: Path) -> int:
    """Return the size of the database, its log and the log's index."""
    return sum(_size(database.with_name(database.name + suffix)) for suffix in ("", "-wal", "-shm"))


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
