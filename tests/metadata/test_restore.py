"""Replacing the database: whole or not at all, wherever the process is killed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from lading.metadata.restore import finish, replace

STEPS = 13
REPLACE = """
import os, sys, pathlib
from lading.metadata import restore

left = int(sys.argv[3])

def dying(call):
    def die_or(*arguments, **more):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments, **more)
    return die_or

for name in ("rename", "replace", "unlink", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
restore.replace(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), lambda copy: None)
"""


def make(path: Path, word: str, *, log: str | None = None) -> None:
    """Make a database that says `word`, and whose log, never moved into it, says `log`."""
    connection = dbapi2.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE words (word TEXT)")
    connection.execute("INSERT INTO words VALUES (?)", (word,))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if log is None:
        connection.close()
        return
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("UPDATE words SET word = ?", (log,))
    copies = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    for copy in copies:
        shutil.copy(copy, copy.with_name(f"kept-{copy.name}"))
    connection.close()
    for copy in copies:
        copy.with_name(f"kept-{copy.name}").replace(copy)


def word_in(path: Path) -> str:
    connection = dbapi2.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return str(connection.execute("SELECT word FROM words").fetchone()[0])
    finally:
        connection.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replaced(folder: Path) -> list[Path]:
    return [path for path in folder.glob("lading.db.replaced-*") if not path.name.endswith(("-wal", "-shm"))]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a database whose last change is in its log only."""
    path = tmp_path / "lading.db"
    make(path, "old", log="newest")
    return path


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Return a copy of another state."""
    path = tmp_path / "snapshot.db"
    make(path, "snapshot")
    return path


def test_the_log_of_the_old_database_goes_with_it(database: Path, snapshot: Path) -> None:
    """Beside the new one it would be replayed into it, page by page."""
    kept = replace(database, snapshot, lambda _: None)

    assert word_in(database) == "snapshot"
    assert word_in(kept) == "newest"
    assert word_in(snapshot) == "snapshot"


def test_it_takes_the_place_of_a_database_that_is_lost(tmp_path: Path, snapshot: Path) -> None:
    """That is when it is wanted most."""
    kept = replace(tmp_path / "lading.db", snapshot, lambda _: None)

    assert word_in(tmp_path / "lading.db") == "snapshot"
    assert not kept.exists()


def test_a_copy_that_cannot_be_made_ready_changes_nothing(database: Path, snapshot: Path) -> None:
    """The old database is all there is."""
    before = files(database.parent)

    def fail(copy: Path) -> None:
        connection = dbapi2.connect(copy)
        connection.execute("INSERT INTO words VALUES ('half')")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        replace(database, snapshot, fail)

    assert files(database.parent) == before
    assert word_in(database) == "newest"


def test_nothing_to_finish_changes_nothing(database: Path) -> None:
    """The ordinary start."""
    before = files(database.parent)

    finish(database)

    assert files(database.parent) == before
    assert word_in(database) == "newest"


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_a_kill_at_any_step_leaves_the_one_or_the_other(database: Path, snapshot: Path, step: int) -> None:
    """A database without its log, or with another's, is lost without anybody noticing."""
    done = subprocess.run([sys.executable, "-c", REPLACE, str(database), str(snapshot), str(step)], check=False)
    assert done.returncode in {0, 9}
    assert (done.returncode == 0) == (step >= STEPS), "the steps are not as many as this test counts"

    finish(database)

    word = word_in(database)
    assert word in {"newest", "snapshot"}
    kept = replaced(database.parent)
    assert [word_in(path) for path in kept] == (["newest"] if word == "snapshot" else [])
    assert not list(database.parent.glob("lading.db.incoming-*"))


KILLED_WHILE_READY = """
import os, sys, pathlib
from pysqlite3 import dbapi2
from lading.metadata import restore

def make_ready(copy):
    connection = dbapi2.connect(copy, isolation_level=None)
    connection.execute("UPDATE words SET word = 'half'")
    os._exit(9)

restore.replace(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), make_ready)
"""


def test_a_copy_that_was_not_ready_never_counts(database: Path, snapshot: Path) -> None:
    """Neither for the next start, nor for the next copy: its log would be replayed into that."""
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_READY, str(database), str(snapshot)], check=False)
    assert done.returncode == 9

    finish(database)
    assert word_in(database) == "newest"

    replace(database, snapshot, lambda copy: assert_says(copy, "snapshot"))
    assert word_in(database) == "snapshot"
    assert not list(database.parent.glob("lading.db.incoming*"))


def assert_says(path: Path, word: str) -> None:
    assert word_in(path) == word
