"""The checker can fail: each kind of damage, done on purpose to a sound data directory, is found by it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pysqlite3 import dbapi2

from tests.capability.server import RegistryProcess
from tests.faults.checker import DATABASE, Checker
from tests.faults.load import new_clients

pytestmark = pytest.mark.slow

STEPS = 150
STRAY = "aa/" + "aa" * 32 + ".00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, seed: str) -> Iterator[Path]:
    """Return the data directory of a server that has worked for a while and was stopped; to be copied, not touched."""
    folder = tmp_path_factory.mktemp("sound")
    server = RegistryProcess(folder)
    try:
        server.start()
        (client,) = new_clients(server.wire, 1, prefix="sound", seed=seed)
        client.work(STEPS)
        client.push_image()  # whatever was deleted before, there is something of each kind to damage
        client.disconnect()
        server.stop()
        yield server.data
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def data(sound: Path, tmp_path: Path) -> Path:
    """Return a copy to be damaged."""
    return shutil.copytree(sound, tmp_path / "data")


def change(statement: str) -> Callable[[Path], None]:
    """Return damage that is done to the tables."""

    def damage(data: Path) -> None:
        with closing(dbapi2.connect(str(data / DATABASE), isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount > 0, f"changed nothing: {statement}"

    return damage


def an_object(data: Path) -> Path:
    """Return an object that a row names."""
    with closing(dbapi2.connect(str(data / DATABASE))) as connection:
        (key,) = connection.execute("SELECT object_key FROM blob_extents LIMIT 1").fetchone()
    return data / "objects" / str(key)


def flip_a_bit(data: Path) -> None:
    path = an_object(data)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(data: Path) -> None:
    path = an_object(data)
    path.write_bytes(path.read_bytes()[:-1])


def lose_an_object(data: Path) -> None:
    an_object(data).unlink()


def test_a_sound_directory_is_clean(data: Path) -> None:
    """A checker that cries at everything is not listened to."""
    assert Checker(data).problems() == []
    assert Checker(data).leftovers() == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_bit, "is something else"),
        (cut_short, "its row says"),
        (lose_an_object, "is not there"),
        (change("DELETE FROM feed WHERE seq = 2"), "feed: "),
        (change("DELETE FROM feed WHERE seq = (SELECT max(seq) FROM feed WHERE kind = 'tag.set')"), "tag history of"),
        (change("DELETE FROM tags"), "open rows and tags differ"),
        (change("UPDATE tag_history SET to_us = from_us WHERE to_us IS NULL"), "open rows and tags differ"),
        (change("UPDATE repositories SET manifest_count = manifest_count + 1"), "live manifests, counted"),
        (change("UPDATE manifests SET payload = zeroblob(length(payload))"), "its payload is something else"),
        (change("UPDATE manifests SET deleted_us = 1"), "names a manifest that is deleted"),
        (change("DELETE FROM manifest_blobs"), "its repository does not hold"),
        (change("UPDATE repo_blobs SET hidden_us = 1"), "its repository does not hold"),
        (change("UPDATE blobs SET size = size + 1"), "its repository does not hold"),
        (change("UPDATE blob_payloads SET data = zeroblob(length(data))"), "in the database are something else"),
        (change("DELETE FROM blob_payloads"), "its bytes are in 0 places"),
        (change("DELETE FROM repositories"), "foreign_key_check"),
    ],
)
def test_damage_is_found(data: Path, damage: Callable[[Path], None], told: str) -> None:
    """What the checker cannot see, no run under faults can prove."""
    damage(data)

    assert [problem for problem in Checker(data).problems() if told in problem]


def test_files_without_a_row_are_found(data: Path) -> None:
    """They cost room for ever, and nobody asks for them."""
    (data / "objects" / STRAY).touch()
    (data / "uploads" / STRAY.partition(".")[2]).touch()

    assert len(Checker(data).leftovers()) == 2


def test_a_session_with_other_bytes_than_it_remembers_is_found(data: Path) -> None:
    """Its closing PUT would be believed, and the blob would be something else."""
    upload_id = STRAY.partition(".")[2]
    (data / "uploads" / upload_id).write_bytes(b"other")
    change(
        "INSERT INTO uploads (id, repository, alg, digest_offset, digest, boot_id, started_us, expires_us)"
        f" VALUES ('{upload_id}', 'sound/client0', 1, 5, zeroblob(32), 'this', 1, 1)"
    )(data)

    assert [problem for problem in Checker(data).problems() if f"session {upload_id}" in problem]
