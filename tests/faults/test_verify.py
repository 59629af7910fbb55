"""`lading verify` finds each kind of damage that is done on purpose to a sound data directory, and nothing else."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from lading.metadata.database import FILE
from lading.upkeep.findings import KINDS
from lading.upkeep.verify import Report, Verification
from tests.capability.content import digest_of
from tests.faults import sound as written
from tests.faults.sound import APP, COPY, NAMES, Sound

pytestmark = pytest.mark.slow

Expected = list[tuple[str, str]]
Plant = Callable[[Sound], Expected]

STRAY = "aa/" + "aa" * 32 + ".00000000-0000-4000-8000-000000000000"
OTHER = "00000000-0000-4000-8000-000000000000"
HOURS_AGO = 3 * 3600
LAYER_ROW = "(SELECT id FROM blobs WHERE size = 100000)"
CONFIG_ROW = "(SELECT blob_id FROM manifest_blobs WHERE position = 0 ORDER BY manifest_id LIMIT 1)"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    """Return the directory of a server that has seen something of everything and was stopped; not to be touched."""
    with written.written(tmp_path_factory.mktemp("sound")) as sound:
        yield sound


@pytest.fixture
def sound(original: Sound, tmp_path: Path) -> Sound:
    """Return a copy to be damaged."""
    return original.copy(tmp_path / "data")


class NoProgress:
    """Nobody watches."""

    def begin(self, stage: str, total: int | None, *, of_bytes: bool = False) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""


def run(sound: Sound, *, quick: bool = False) -> Report:
    return Verification(sound.data, sound.data / FILE, quick=quick, progress=NoProgress()).run()


def found(report: Report) -> Expected:
    """Return each finding as its code and the best name of what it is about; SQLite's own only once."""
    told = [
        (finding.code, finding.tag or finding.digest or finding.path or "".join(finding.repositories))
        for finding in report.findings
    ]
    return sorted({*told}) if {code for code, _ in told} == {"database-damaged"} else sorted(told)


def test_a_sound_directory_is_clean_and_left_as_it_was(sound: Sound) -> None:
    """It runs on the only copy that somebody has: no file is made, not even SQLite's own."""
    before = sound.contents()

    report = run(sound)

    assert not report.findings
    assert sound.contents() == before
    assert (report.counts.repositories, report.counts.tags, report.counts.manifests) == (2, 7, 8)
    assert report.hashed_bytes > report.counts.object_bytes > 0


# Damage to files


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def plant_a_flipped_byte(sound: Sound) -> Expected:
    flip_a_byte(sound.object_of(NAMES["layer"]))
    return [("object-wrong", NAMES["layer"])]


def plant_a_flipped_byte_under_sha512(sound: Sound) -> Expected:
    flip_a_byte(sound.object_of(NAMES["strong"]))
    return [("object-wrong", NAMES["strong"])]


def plant_two_swapped_files(sound: Sound) -> Expected:
    one, other = sound.object_of(NAMES["layer"]), sound.object_of(NAMES["healed"])
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [("object-short", NAMES["layer"]), ("object-long", NAMES["healed"])]


def plant_a_truncated_file(sound: Sound) -> Expected:
    os.truncate(sound.object_of(NAMES["layer"]), 99_999)
    return [("object-short", NAMES["layer"])]


def plant_an_emptied_file(sound: Sound) -> Expected:
    os.truncate(sound.object_of(NAMES["strong"]), 0)
    return [("object-short", NAMES["strong"])]


def plant_a_grown_file(sound: Sound) -> Expected:
    with sound.object_of(NAMES["layer"]).open("ab") as file:
        file.write(b"x")
    return [("object-long", NAMES["layer"])]


def plant_a_file_gone(sound: Sound) -> Expected:
    sound.object_of(NAMES["layer"]).unlink()
    return [("object-missing", NAMES["layer"])]


def plant_a_file_that_cannot_be_read(sound: Sound) -> Expected:
    path = sound.object_of(NAMES["layer"])
    path.unlink()
    path.symlink_to(path)
    return [("object-unreadable", NAMES["layer"])]


def plant_a_folder_for_a_file(sound: Sound) -> Expected:
    path = sound.object_of(NAMES["layer"])
    path.unlink()
    path.mkdir()
    return [("object-wrong", NAMES["layer"])]


def plant_all_objects_gone(sound: Sound) -> Expected:
    shutil.rmtree(sound.data / "objects")
    missing = [("object-missing", NAMES[name]) for name in ("layer", "healed", "strong")]
    return [*missing, ("store-mismatch", "")]


def plant_an_orphan(sound: Sound) -> Expected:
    (sound.data / "objects" / STRAY).write_bytes(b"nobody's")
    return [("object-unreferenced", f"objects/{STRAY}")]


def plant_stray_files(sound: Sound) -> Expected:
    strays = ("objects/readme", "objects/zz", "objects/aa/notes", f"objects/ab/{STRAY.partition('/')[2]}")
    for path in strays:
        (sound.data / path).touch()
    return [("file-stray", path) for path in strays]


def plant_a_marker_of_another_store(sound: Sound) -> Expected:
    path = sound.data / "objects" / "registry-store.json"
    path.write_text(path.read_text().replace('"store_uid": "', '"store_uid": "x'))
    return [("store-mismatch", "")]


def plant_a_marker_of_garbage(sound: Sound) -> Expected:
    (sound.data / "objects" / "registry-store.json").write_text("{")
    return [("store-mismatch", "")]


def plant_a_marker_gone(sound: Sound) -> Expected:
    (sound.data / "objects" / "registry-store.json").unlink()
    return [("store-mismatch", "")]


# Damage to uploads


def plant_a_short_staging_file(sound: Sound) -> Expected:
    os.truncate(sound.data / "uploads" / sound.upload_id, written.OPEN_BYTES - 1)
    return [("session-short", f"uploads/{sound.upload_id}")]


def plant_a_lost_staging_file(sound: Sound) -> Expected:
    (sound.data / "uploads" / sound.upload_id).unlink()
    return [("session-short", f"uploads/{sound.upload_id}")]


def plant_other_bytes_in_a_staging_file(sound: Sound) -> Expected:
    flip_a_byte(sound.data / "uploads" / sound.upload_id)
    return [("session-wrong", f"uploads/{sound.upload_id}")]


def plant_other_bytes_after_another_boot(sound: Sound) -> Expected:
    """Do what a power cut may; the registry does not believe a digest of another boot."""
    flip_a_byte(sound.data / "uploads" / sound.upload_id)
    return sql("UPDATE uploads SET boot_id = 'another'")(sound)


def plant_an_upload_that_should_have_ended(sound: Sound) -> Expected:
    return sql("UPDATE uploads SET expires_us = 1", ("session-expired", f"uploads/{sound.upload_id}"))(sound)


def plant_a_left_over_staging_file(sound: Sound) -> Expected:
    for name, age in ((OTHER, HOURS_AGO), (OTHER.replace("0", "1"), 0)):
        path = sound.data / "uploads" / name
        path.touch()
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    return [("staging-leftover", f"uploads/{OTHER}")]


def plant_what_a_killed_commit_leaves(sound: Sound) -> Expected:
    """Leave an object with its other name, by which the sweep finds it: nothing is lost or forgotten."""
    path = sound.data / "uploads" / OTHER
    path.write_bytes(b"linked, and killed before its row")
    (sound.data / "objects" / STRAY).hardlink_to(path)
    return []


# Damage to the database


def sql(statement: str, *expected: tuple[str, str]) -> Plant:
    """Return damage that is done to the tables, which no foreign key holds back here, as `Sound.change` does."""

    def plant(sound: Sound) -> Expected:
        sound.change(statement)
        return list(expected)

    return plant


def plant_a_lost_extent(sound: Sound) -> Expected:
    path = sound.object_of(NAMES["layer"])
    return sql(
        f"DELETE FROM blob_extents WHERE blob_id = {LAYER_ROW}",
        ("blob-without-bytes", NAMES["layer"]),
        ("object-unreferenced", str(path.relative_to(sound.data))),
    )(sound)


def plant_a_doubled_extent(sound: Sound) -> Expected:
    path = sound.object_of(NAMES["layer"])
    double = path.with_name(f"{path.name.partition('.')[0]}.{OTHER}")
    double.write_bytes(path.read_bytes())
    return sql(
        f"INSERT INTO blob_extents SELECT blob_id, store_id, 1, '{double.parent.name}/{double.name}', size"
        f" FROM blob_extents WHERE blob_id = {LAYER_ROW}",
        ("extent-doubled", NAMES["layer"]),
    )(sound)


def plant_a_broken_index(sound: Sound) -> Expected:
    with closing(dbapi2.connect(str(sound.data / FILE))) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_tags_manifest_id'").fetchone()
    with (sound.data / FILE).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    return [("database-damaged", "")]


def plant_a_database_of_garbage(sound: Sound) -> Expected:
    (sound.data / FILE).write_bytes(b"this is no database, but it is not empty either" * 100)
    return [("database-damaged", "")]


def manifest(name: str) -> str:
    return f"(SELECT id FROM manifests WHERE digest = x'{NAMES[name].partition(':')[2]}' ORDER BY id LIMIT 1)"


IN_DATABASE: dict[str, Plant] = {
    "payload row gone": sql(
        f"DELETE FROM blob_payloads WHERE blob_id = {CONFIG_ROW}", ("blob-without-bytes", NAMES["config"])
    ),
    "payload changed": sql(
        f"UPDATE blob_payloads SET data = zeroblob(length(data)) WHERE blob_id = {CONFIG_ROW}",
        ("payload-wrong", NAMES["config"]),
    ),
    "blob row gone": sql(
        f"DELETE FROM blobs WHERE id = {CONFIG_ROW}",
        ("link-to-nowhere", APP),
        ("link-to-nowhere", COPY),
        ("reference-to-nowhere", NAMES["first"]),
        ("reference-to-nowhere", NAMES["first"]),  # in the other repository
        ("reference-to-nowhere", digest_of(written.STRONG_IMAGE)),
        ("reference-to-nowhere", digest_of(written.AWAITING)),
        ("row-to-nowhere", ""),  # its payload
        ("row-to-nowhere", ""),  # its place in the queue
    ),
    "wrong size of a file's blob": sql(
        f"UPDATE blobs SET size = size + 1 WHERE id = {LAYER_ROW}", ("size-wrong", NAMES["layer"])
    ),
    "wrong size of an extent": sql(
        f"UPDATE blob_extents SET size = size - 1 WHERE blob_id = {LAYER_ROW}", ("size-wrong", NAMES["layer"])
    ),
    "wrong size of a small blob": sql(
        f"UPDATE blobs SET size = size + 1 WHERE id = {CONFIG_ROW}", ("size-wrong", NAMES["config"])
    ),
    "wrong size of a manifest": sql(
        f"UPDATE manifests SET size = size + 1 WHERE id = {manifest('second')}", ("size-wrong", NAMES["second"])
    ),
    "both rows say another size": sql(
        "UPDATE blobs SET size = 40001 WHERE size = 40000; UPDATE blob_extents SET size = 40001 WHERE size = 40000",
        ("object-short", NAMES["healed"]),
        ("descriptor-wrong", NAMES["second"]),
    ),
    "object doomed": sql(
        "INSERT INTO doomed_objects (store_id, object_key, not_before_us, reason)"
        f" SELECT store_id, object_key, 1, '' FROM blob_extents WHERE blob_id = {LAYER_ROW}",
        ("object-doomed", NAMES["layer"]),
    ),
    "manifest changed": sql(
        f"UPDATE manifests SET payload = zeroblob(length(payload)) WHERE id = {manifest('referrer')}",
        ("manifest-wrong", NAMES["referrer"]),
    ),
    "deleted manifest changed": sql(
        "UPDATE manifests SET payload = x'00' WHERE deleted_us IS NOT NULL",
        ("manifest-wrong", digest_of(written.DELETED)),
    ),
    "subject changed": sql(
        "UPDATE manifests SET subject_digest = zeroblob(32) WHERE subject_digest IS NOT NULL",
        ("manifest-misread", NAMES["referrer"]),
    ),
    "annotations changed": sql(
        "UPDATE manifests SET annotations = '{' WHERE annotations IS NOT NULL",
        ("manifest-misread", NAMES["referrer"]),
    ),
    "media type changed": sql(
        f"UPDATE manifests SET media_type = 'text/plain' WHERE id = {manifest('index')}",
        ("manifest-misread", NAMES["index"]),
    ),
    "reference to a blob gone": sql(
        f"DELETE FROM manifest_blobs WHERE position = 1 AND manifest_id = {manifest('second')}",
        ("reference-missing", NAMES["second"]),
    ),
    "reference to a child gone": sql(
        "DELETE FROM manifest_children WHERE position = 1", ("reference-missing", NAMES["index"])
    ),
    "awaited reference gone": sql(
        "DELETE FROM manifest_blobs WHERE blob_id IS NULL", ("reference-missing", digest_of(written.AWAITING))
    ),
    "reference to another blob": sql(
        f"UPDATE manifest_blobs SET blob_id = {CONFIG_ROW} WHERE position = 1 AND manifest_id = {manifest('second')}",
        ("reference-wrong", NAMES["second"]),
    ),
    "reference to another child": sql(
        f"UPDATE manifest_children SET child_id = {manifest('referrer')} WHERE position = 1",
        ("reference-wrong", NAMES["index"]),
    ),
    "awaited reference to another blob": sql(
        "UPDATE manifest_blobs SET awaited_digest = zeroblob(32) WHERE blob_id IS NULL",
        ("reference-wrong", digest_of(written.AWAITING)),
    ),
    "reference too many": sql(
        f"INSERT INTO manifest_blobs (manifest_id, position, blob_id) VALUES ({manifest('second')}, 9, {LAYER_ROW})",
        ("reference-wrong", NAMES["second"]),
    ),
    "reference to no blob": sql(
        f"UPDATE manifest_blobs SET blob_id = 999 WHERE position = 1 AND manifest_id = {manifest('second')}",
        ("reference-to-nowhere", NAMES["second"]),
    ),
    "reference to no child": sql(
        "UPDATE manifest_children SET child_id = 999 WHERE position = 1", ("reference-to-nowhere", NAMES["index"])
    ),
    "link missing": sql(
        f"DELETE FROM repo_blobs WHERE blob_id = {LAYER_ROW} AND repo_id = (SELECT id FROM repositories"
        f" WHERE name = '{COPY}')",
        ("link-missing", NAMES["first"]),
    ),
    "link hidden": sql(
        "UPDATE repo_blobs SET hidden_us = 1 WHERE blob_id = (SELECT id FROM blobs WHERE size = 40000)",
        ("link-missing", NAMES["second"]),
    ),
    "link to a missing blob": sql(
        f"INSERT INTO repo_blobs (repo_id, blob_id, keep_until_us) SELECT id, 999, 1 FROM repositories"
        f" WHERE name = '{COPY}'",
        ("link-to-nowhere", COPY),
    ),
    "tag to nowhere": sql("UPDATE tags SET manifest_id = 999 WHERE name = 'v1'", ("tag-to-nowhere", "v1")),
    "tag to a deleted manifest": sql(
        "UPDATE tags SET manifest_id = (SELECT id FROM manifests WHERE deleted_us IS NOT NULL) WHERE name = 'v1'",
        ("tag-to-deleted", "v1"),
    ),
    "tag to another repository's manifest": sql(
        f"UPDATE tags SET manifest_id = {manifest('second')} WHERE name = 'copied'",
        ("tag-to-other-repository", "copied"),
    ),
    "tag gone": sql("DELETE FROM tags WHERE name = 'v1'", ("history-differs", "v1")),
    "tag moved by hand": sql(
        f"UPDATE tags SET manifest_id = {manifest('second')} WHERE name = 'v1'", ("history-differs", "v1")
    ),
    "history of another manifest": sql(
        f"UPDATE tag_history SET manifest_id = {manifest('second')}"
        " WHERE id = (SELECT min(id) FROM tag_history WHERE name = 'latest')",
        ("history-gap", "latest"),
    ),
    "first move gone": sql(
        "DELETE FROM tag_history WHERE id = (SELECT min(id) FROM tag_history WHERE name = 'latest')",
        ("history-gap", "latest"),
    ),
    "middle move gone": sql(
        "DELETE FROM tag_history WHERE name = 'latest' AND to_us IS NOT NULL"
        " AND id > (SELECT min(id) FROM tag_history WHERE name = 'latest')",
        ("history-gap", "latest"),
    ),
    "last move of a deleted tag gone": sql("DELETE FROM tag_history WHERE name = 'gone'", ("history-gap", "gone")),
    "move that ends early": sql(
        "UPDATE tag_history SET to_us = to_us - 1 WHERE id = (SELECT min(id) FROM tag_history WHERE name = 'latest')",
        ("history-gap", "latest"),
    ),
    "history that goes on": sql("UPDATE tag_history SET to_us = NULL WHERE name = 'gone'", ("history-differs", "gone")),
    "count wrong": sql(
        f"UPDATE repositories SET manifest_count = manifest_count + 1 WHERE name = '{COPY}'", ("count-wrong", COPY)
    ),
    "first events gone": sql("DELETE FROM feed WHERE seq < 3", ("feed-gap", "")),
    "event gone": sql("DELETE FROM feed WHERE seq = 3", ("feed-gap", "")),
    "last event gone": sql("DELETE FROM feed WHERE seq = (SELECT max(seq) FROM feed)", ("feed-gap", "")),
    "row to nowhere": sql("INSERT INTO gc_blob_queue VALUES (999, 1, 'x')", ("row-to-nowhere", "")),
}
ON_DISK = {
    name.removeprefix("plant_").replace("_", " "): plant
    for name, plant in list(globals().items())
    if name.startswith("plant_")
}
PLANTS = {**ON_DISK, **IN_DATABASE}


@pytest.mark.parametrize("name", PLANTS)
def test_each_damage_is_found_and_nothing_else(sound: Sound, name: str) -> None:
    """What it cannot see, it cannot prove; and one that cries at everything is not listened to."""
    expected = PLANTS[name](sound)
    before = sound.contents()

    report = run(sound)

    assert found(report) == sorted(expected), report.findings
    assert report.damaged == any(KINDS[code].severity == "damage" for code, _ in expected)
    assert sound.contents() == before


def test_every_kind_of_finding_is_planted() -> None:
    """A code word that no damage brings about is a promise that nobody has tried."""
    planted = set(re.findall(r'\("([a-z-]+)", ', Path(__file__).read_text("utf-8")))

    assert planted >= set(KINDS)
