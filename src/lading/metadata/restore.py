"""Putting another database in the place of the present one: whole, or not at all, whenever the process is killed.

    lading.db.incoming.partial     1. the new one is made ready here; a kill leaves this behind, and nothing else
    lading.db.incoming-<time>      2. it gets this name: from now on it will be the database
    lading.db.replaced-<time>      3. the old one goes here, its log first: beside another database it would destroy it
    lading.db                      4. the new one goes here

From 2 on, `finish` does what is left. It is called before anything opens the database.
"""

import contextlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from lading.metadata.snapshots import sync

_INCOMING = ".incoming-"
_REPLACED = ".replaced-"
_LOG, _LOG_INDEX = "-wal", "-shm"


def replace(database: Path, content: Path, make_ready: Callable[[Path], None]) -> Path:
    """Put a copy of `content` in the place of `database`; return where the old one is kept.

    `make_ready` changes the copy before it counts; it closes what it opens.
    """
    finish(database)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    partial = _beside(database, ".incoming.partial")
    _remove(partial)  # what a killed process left: its log would be replayed into the new copy
    try:
        shutil.copyfile(content, partial)
        make_ready(partial)
        sync(partial)
        partial.replace(_beside(database, _INCOMING + stamp))
    except BaseException:
        _remove(partial)
        raise
    sync(database.parent)
    finish(database)
    return _beside(database, _REPLACED + stamp)


def is_unfinished(database: Path) -> bool:
    """Tell whether a replacement has begun to count, and `finish` has something to do."""
    return any(database.parent.glob(f"{database.name}{_INCOMING}*"))


def finish(database: Path) -> None:
    """Do what is left of a replacement that had begun to count. Nobody has the database open."""
    for incoming in sorted(database.parent.glob(f"{database.name}{_INCOMING}*")):
        stamp = incoming.name.removeprefix(database.name + _INCOMING)
        replaced = _beside(database, _REPLACED + stamp)
        if not replaced.exists():
            for suffix in (_LOG, ""):
                with contextlib.suppress(FileNotFoundError):
                    _beside(database, suffix).rename(_beside(replaced, suffix))
        for suffix in (_LOG, _LOG_INDEX):  # also those of whoever came between
            _beside(database, suffix).unlink(missing_ok=True)
        sync(database.parent)
        incoming.rename(database)
        sync(database.parent)


def _remove(path: Path) -> None:
    for suffix in ("", _LOG, _LOG_INDEX):
        _beside(path, suffix).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
