"""The schema: the migrations make what schema.py says, and no database is opened that they did not make."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pysqlite3 import dbapi2

import lading
from lading.metadata import schema, stores
from lading.metadata.database import OLDEST_SAFE_SQLITE, Database, create_engine, refuse_unsafe_library
from lading.metadata.stores import Store
from lading.metadata.upgrade import upgrade
from lading.oci.errors import DatabaseUnusable, DataDirectoryInUse, DiskFull, Internal, SchemaTooNew
from tests.metadata.loop import run

PACKAGE = Path(lading.__file__).parent
MIGRATIONS = PACKAGE / "metadata" / "migrations"
NEXT = f"{int(schema.REVISION) + 1:04}"
NEXT_MIGRATION = f"""
'''What the release after this one adds.'''
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = {NEXT!r}, {schema.REVISION!r}, None, None

def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer, primary_key=True))
    FAULT
"""
UPGRADE = "import sys, pathlib; from lading.metadata.upgrade import upgrade; upgrade(*map(pathlib.Path, sys.argv[1:]))"
Release = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]


def ask(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Return the rows of a statement, on a connection of its own."""
    connection = dbapi2.connect(path)
    try:
        rows: list[tuple[object, ...]] = connection.execute(statement).fetchall()
        return rows
    finally:
        connection.close()


def run_python(
    code: str, *arguments: Path, source: Path = PACKAGE.parent, before: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def release_after_this(folder: Path, fault: str = "") -> Release:
    """Make a copy of the package that has one more migration, and return how to upgrade with it."""
    source = folder / "next-release"
    shutil.copytree(PACKAGE, source / "lading", ignore=shutil.ignore_patterns("__pycache__"))
    migration = source / "lading" / "metadata" / "migrations" / "versions" / f"{NEXT}_later.py"
    migration.write_text(NEXT_MIGRATION.replace("FAULT", fault))
    page = source / "lading" / "metadata" / "schema.py"
    text, changed = re.subn(r'^REVISION = ".*"$', f'REVISION = "{NEXT}"', page.read_text(), flags=re.MULTILINE)
    assert changed == 1
    page.write_text(text)

    return lambda path, snapshots: run_python(UPGRADE, path, snapshots, source=source)


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """Return the folder that copies go to; it is made when there is one."""
    return tmp_path / "snapshots"


# One schema


def test_the_migrations_make_what_the_page_of_tables_says(path: Path) -> None:
    """Statements are written against the page, and run against what the migrations made."""
    with create_engine(path).connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)

    assert differences == []


def test_the_migrations_make_it_to_the_letter(path: Path, tmp_path: Path) -> None:
    """Alembic does not compare partial indexes, WITHOUT ROWID, AUTOINCREMENT or what a delete does to a reference."""
    fresh = tmp_path / "fresh.db"
    with create_engine(fresh).connect() as connection:
        schema.metadata.create_all(connection)

    listing = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL"
    by_migrations, by_page = ({name: normal(str(sql)) for name, sql in ask(file, listing)} for file in (path, fresh))

    assert by_migrations == by_page


def normal(sql: str) -> list[str]:
    """Return the parts of a CREATE statement without their order and spacing."""
    text = re.sub(r"\s+", " ", sql.replace('"', ""))
    head, _, rest = text.partition("(")
    body, _, tail = rest.rpartition(")")
    return [head.strip(), tail.strip(), *sorted(part.strip() for part in re.split(r",(?![^(]*\))", body))]


def test_the_page_knows_the_newest_migration() -> None:
    """The start compares this one word, so that Alembic need not be imported."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))

    scripts = ScriptDirectory.from_config(config)

    assert scripts.get_heads() == [schema.REVISION]
    assert [script.revision for script in scripts.walk_revisions()] == sorted(
        (script.revision for script in scripts.walk_revisions()), reverse=True
    ), "a newer schema is recognised by its greater number"


# Opening


def test_a_new_database_is_at_the_newest_revision(path: Path) -> None:
    """The fixture's copy was made by the program's own start."""
    assert ask(path, "SELECT version_num FROM alembic_version") == [(schema.REVISION,)]


def test_an_up_to_date_database_is_left_alone(path: Path, snapshots: Path) -> None:
    """A restart must not cost a copy of the database."""
    before = path.read_bytes()

    upgrade(path, snapshots)

    assert path.read_bytes() == before
    assert not snapshots.exists()


def test_a_database_is_copied_before_it_is_upgraded(path: Path, tmp_path: Path, snapshots: Path) -> None:
    """The way back from a bad release is a file that its migration has not touched."""
    add_repository(path)

    done = release_after_this(tmp_path)(path, snapshots)

    assert done.returncode == 0, done.stderr
    (copy,) = snapshots.iterdir()
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}Z-{schema.REVISION}-before-upgrade\.db", copy.name)
    assert ask(copy, "SELECT version_num FROM alembic_version") == [(schema.REVISION,)]
    assert ask(copy, "SELECT name FROM repositories") == [("team/app",)]
    assert ask(copy, "PRAGMA integrity_check") == [("ok",)]
    assert ask(path, "SELECT version_num, name FROM alembic_version, repositories") == [(NEXT, "team/app")]
    upgrade(copy, snapshots)


def test_a_database_of_the_first_schema_is_upgraded(tmp_path: Path, snapshots: Path) -> None:
    """The registries that are out there start with this release, and can go back to the one before."""
    path = tmp_path / "lading.db"
    migrate_to(path, "0001")
    connection = dbapi2.connect(path, isolation_level=None)
    connection.execute("INSERT INTO stores VALUES (7, 'disk', 'store', 'database', 1)")
    connection.execute("INSERT INTO repositories (name, manifest_count, created_us) VALUES ('team/app', 0, 1)")
    connection.close()

    upgrade(path, snapshots)

    with create_engine(path).connect() as upgraded:
        assert stores.find(upgraded) == Store(7, "store", "database", epoch=1, held_us=None, held_reason=None)
        assert upgraded.exec_driver_sql("SELECT name FROM repositories").scalar_one() == "team/app"
        assert compare_metadata(MigrationContext.configure(upgraded), schema.metadata) == []
    (copy,) = snapshots.iterdir()
    assert copy.name.endswith("-0001-before-upgrade.db")
    assert ask(copy, "SELECT version_num, name FROM alembic_version, repositories") == [("0001", "team/app")]
    assert ask(copy, "SELECT * FROM stores") == [(7, "disk", "store", "database", 1)]


def migrate_to(path: Path, revision: str) -> None:
    """Make a database as the release of that schema did."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with create_engine(path).connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_a_migration_that_fails_leaves_the_database_as_it_was(path: Path, tmp_path: Path, snapshots: Path) -> None:
    """The older release has to start again on it."""
    add_repository(path)
    fault = "op.execute('INSERT INTO nowhere VALUES (1)')"

    done = release_after_this(tmp_path, fault)(path, snapshots)

    assert done.returncode != 0
    assert ask(path, "SELECT version_num, name FROM alembic_version, repositories") == [(schema.REVISION, "team/app")]
    assert ask(path, "SELECT name FROM sqlite_master WHERE name = 'later'") == []
    upgrade(path, snapshots)


def test_a_schema_is_not_changed_under_another_server(tmp_path: Path) -> None:
    """It runs, and the columns that it knows are those that are there; where nothing is to be changed, both may."""
    path, snapshots = tmp_path / "lading.db", tmp_path / "snapshots"

    with pytest.raises(DataDirectoryInUse, match="needs a newer schema"):
        upgrade(path, snapshots, alone=False)

    assert not path.exists()
    upgrade(path, snapshots)
    upgrade(path, snapshots, alone=False)


def test_a_newer_schema_is_refused_with_a_sentence(path: Path, tmp_path: Path, snapshots: Path) -> None:
    """An older program would write rows that the newer one cannot explain."""
    assert release_after_this(tmp_path)(path, snapshots).returncode == 0
    before = path.read_bytes()

    with pytest.raises(SchemaTooNew) as caught:
        upgrade(path, snapshots)

    assert f"has schema {NEXT}" in caught.value.message
    assert f"knows schemas up to {schema.REVISION}" in caught.value.message
    assert str(path) in caught.value.message
    assert "start the newer Lading again" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"this is a text file, and long enough to have a header of a hundred bytes" * 9])
def test_a_file_that_is_no_database_is_refused_with_a_sentence(path: Path, snapshots: Path, damage: bytes) -> None:
    """It may be the only trace of what was there, so it is not replaced."""
    path.write_bytes(damage)

    with pytest.raises(DatabaseUnusable) as caught:
        upgrade(path, snapshots)

    assert str(path) in caught.value.message
    assert str(snapshots) in caught.value.hint
    assert path.read_bytes() == damage


def test_a_place_where_no_database_can_be_made_is_refused_with_a_sentence(tmp_path: Path, snapshots: Path) -> None:
    """A traceback of SQLAlchemy tells an operator nothing."""
    with pytest.raises(DatabaseUnusable, match="unable to open database file"):
        upgrade(tmp_path / "absent" / "lading.db", snapshots)


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 3, 12, 20])
def test_a_disk_without_room_for_a_new_database_is_told_as_such(tmp_path: Path, snapshots: Path, write: int) -> None:
    """The next step is to free space, not to report a bug, whichever write is the one that finds no room."""
    done = run_python(UPGRADE, tmp_path / "lading.db", snapshots, before=full_from(write, tmp_path / "trace"))

    assert done.returncode == 1
    assert f"{DiskFull.__name__}: no room" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_disk_without_room_for_the_index_of_the_log_is_told_in_a_sentence(tmp_path: Path, snapshots: Path) -> None:
    """SQLite calls that an I/O error, which may have another cause; a traceback it is not."""
    done = run_python(UPGRADE, tmp_path / "lading.db", snapshots, before=full_from(5, tmp_path / "trace"))

    assert done.returncode == 1
    assert re.search(rf"({DiskFull.__name__}|{DatabaseUnusable.__name__}): ", done.stderr), done.stderr


def full_from(write: int, trace: Path) -> tuple[str, ...]:
    """Return the command under which the disk is full from that write on."""
    inject = f"inject=pwrite64:error=ENOSPC:when={write}+"
    return ("strace", "-f", "-e", "trace=pwrite64", "-e", inject, "-o", str(trace))


# The library and the connections


def test_the_library_is_one_that_keeps_what_it_commits() -> None:
    """SQLite 3.7.0 to 3.51.2 can lose committed writes in its log (the WAL-reset bug)."""
    assert OLDEST_SAFE_SQLITE == (3, 51, 3)
    assert dbapi2.sqlite_version_info >= OLDEST_SAFE_SQLITE
    refuse_unsafe_library()


def pragmas(tx: sa.Connection) -> dict[str, object]:
    names = ("foreign_keys", "synchronous", "journal_mode", "wal_autocheckpoint")
    return {name: tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}


def test_every_connection_enforces_references_and_syncs_its_commits(path: Path) -> None:
    """I3 is nothing but foreign keys, SQLite's default is off, and a setting counts only for its own connection."""

    async def ask_each(database: Database) -> list[dict[str, object]]:
        return [await database.read(pragmas), await database.scan(pragmas), await database.write(pragmas)]

    wanted = {"foreign_keys": 1, "synchronous": 2, "journal_mode": "wal", "wal_autocheckpoint": 0}

    assert run(path, ask_each) == [wanted, wanted, wanted]


@pytest.mark.parametrize("door", ["read", "scan", "write"])
def test_a_reference_to_nothing_is_refused_on_every_connection(path: Path, door: str) -> None:
    """The pragma is one thing, what it does another."""

    def refer(tx: sa.Connection) -> None:
        tx.execute(sa.insert(schema.tags).values(repo_id=1, name="v1", manifest_id=1))

    async def through(database: Database) -> None:
        await getattr(database, door)(refer)

    with pytest.raises(Internal) as caught:
        run(path, through)

    assert "FOREIGN KEY constraint failed" in str(caught.value.__cause__)


def add_repository(path: Path) -> None:
    with create_engine(path).connect() as connection:
        connection.execute(sa.insert(schema.repositories).values(name="team/app", manifest_count=0, created_us=1))
