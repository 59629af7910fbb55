"""`lading verify` as a command: its answers, its exit codes, and how it gets on with a server beside it."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa
from pysqlite3 import dbapi2

from lading.metadata.database import FILE
from lading.metadata.verify import ReadOnlyDatabase
from lading.storage.verify import THREADS
from lading.upkeep.verify import Report, Verification
from tests.capability.content import LARGE_BYTES, digest_of, random_content
from tests.capability.repository import Repository, with_digest
from tests.capability.server import LADING, RegistryProcess, until
from tests.faults.conftest import FULL
from tests.faults.load import Load, new_clients
from tests.faults.sound import APP, CONFIG, COPY, FIRST, LAYER, NAMES, OPEN, OPEN_BYTES, Sound, written
from tests.faults.verifying import VERIFY_SECONDS, verify

BIG_BYTES = 64 * 2**30
LOAD_SECONDS = 60.0 if FULL else 6.0
CLIENTS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    """Return the directory of a server that was stopped; not to be touched."""
    with written(tmp_path_factory.mktemp("sound")) as sound:
        yield sound


@pytest.fixture
def sound(original: Sound, tmp_path: Path) -> Sound:
    """Return a copy to be damaged."""
    return original.copy(tmp_path / "data")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LADING, "verify", *arguments], capture_output=True, text=True, timeout=VERIFY_SECONDS, check=False
    )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[RegistryProcess]:
    """Serve the copied directory, and stop."""
    server = RegistryProcess(folder)
    server.start()
    try:
        yield server
        server.stop()
    finally:
        server.kill()


def test_a_clean_directory_is_exit_code_0(sound: Sound) -> None:
    """Scripts ask by the exit code, and people read the last line."""
    done = run("--data", str(sound.data))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "no damage found"


def test_damage_is_exit_code_1_and_says_where_and_what_heals_it(sound: Sound) -> None:
    """Who reads it at night must not have to look anything up."""
    path = sound.object_of(NAMES["layer"])
    path.unlink()

    done = run("--data", str(sound.data))

    assert (done.returncode, done.stderr) == (1, "")
    assert f"damage object-missing: {NAMES['layer']}: its object is not there\n" in done.stdout
    assert "    in team/app, team/copy\n" in done.stdout
    assert f"    at {path.relative_to(sound.data)}\n" in done.stdout
    assert "    Push an image that has it again" in done.stdout
    assert done.stdout.splitlines()[-1] == "damage found"


def cut_short(path: Path) -> None:
    os.truncate(path, 10)


def overwrite_and_move_away(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))
    path.rename(path.parents[2] / "moved-away")


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, overwrite_and_move_away])
def test_what_it_says_heals_an_object_does(sound: Sound, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A sentence about healing is a promise too."""
    damage(sound.object_of(NAMES["layer"]))

    with running(tmp_path) as server:
        Repository(server.wire, APP).push_blob(LAYER)

    assert verify(sound.data).found == []


def test_what_it_says_heals_a_link_and_a_tag_does(sound: Sound, tmp_path: Path) -> None:
    """Likewise."""
    sound.change(
        f"DELETE FROM repo_blobs WHERE repo_id = (SELECT id FROM repositories WHERE name = '{COPY}');"
        "UPDATE tags SET manifest_id = (SELECT id FROM manifests WHERE deleted_us IS NOT NULL) WHERE name = 'v1'"
    )
    assert len(verify(sound.data).found) == 3

    with running(tmp_path) as server:
        for content in (CONFIG, LAYER):
            Repository(server.wire, COPY).push_blob(content)
        Repository(server.wire, APP).put_manifest("v1", FIRST).expect(201)

    assert verify(sound.data).found == []


def test_waste_alone_is_exit_code_0(sound: Sound) -> None:
    """Bytes that nobody asks for are told of, and wake nobody up."""
    (sound.data / "objects" / "notes").touch()

    verified = verify(sound.data)

    assert (verified.exit_code, verified.found) == (0, [("file-stray", "objects/notes")])
    assert verified.document["damaged"] is False


def test_a_name_that_no_terminal_can_show_is_escaped(sound: Sound) -> None:
    """Whoever can make a file must not be able to end the report, or to write over it."""
    with open(os.fsencode(sound.data) + b"/objects/\xff\x1b[2J", "w"):  # noqa: PTH123 - not a path that Path can spell
        pass

    done = run("--data", str(sound.data))

    assert done.returncode == 0
    assert "waste file-stray: objects/\\udcff\\x1b[2J: " in done.stdout


def test_the_document_has_everything(sound: Sound) -> None:
    """Monitoring reads it, so its names stay."""
    path = sound.object_of(NAMES["layer"])
    path.unlink()

    verified = verify(sound.data)

    document = verified.document
    assert verified.exit_code == 1
    assert list(document) == ["damaged", "data", "quick", "seconds", "counts", "found", "findings"]
    assert (document["damaged"], document["quick"], document["found"]) == (True, False, {"object-missing": 1})
    assert document["counts"]["objects"] == 3
    (finding,) = document["findings"]
    assert finding.pop("heals").startswith("Push an image")
    assert finding == {
        "code": "object-missing",
        "severity": "damage",
        "what": "its object is not there",
        "repositories": ["team/app", "team/copy"],
        "tag": None,
        "digest": NAMES["layer"],
        "path": str(path.relative_to(sound.data)),
    }


def test_quick_sees_what_is_missing_and_not_what_is_changed(sound: Sound) -> None:
    """It is for every hour, and says of itself that it is no proof."""
    changed, lost = sound.object_of(NAMES["layer"]), sound.object_of(NAMES["healed"])
    changed.write_bytes(bytes(changed.stat().st_size))
    lost.unlink()

    verified = verify(sound.data, "--quick")

    assert verified.found == [("object-missing", NAMES["healed"])]
    assert verified.document["counts"]["hashed_bytes"] == 0


@pytest.mark.parametrize("present", [False, True], ids=["no directory", "an empty file"])
def test_nothing_to_look_at_is_exit_code_2(tmp_path: Path, *, present: bool) -> None:
    """Code 1 would say that damage was found, and code 0 that there is none."""
    if present:
        (tmp_path / FILE).touch()

    done = run("--data", str(tmp_path))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "--data" in done.stderr


def test_a_database_of_another_version_is_exit_code_2(sound: Sound) -> None:
    """Checks that do not fit its tables would call everything damage."""
    sound.change("UPDATE alembic_version SET version_num = '9999'")

    done = run("--data", str(sound.data))

    assert (done.returncode, done.stdout) == (2, "")
    assert "9999" in done.stderr


def target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # closed meanwhile
        return ""


def test_ctrl_c_ends_it_at_once(sound: Sound) -> None:
    """An hour of hashing must not be an hour of waiting."""
    path = sound.object_of(NAMES["layer"])
    os.truncate(path, BIG_BYTES)
    sound.change(f"UPDATE blobs SET size = {BIG_BYTES} WHERE size = 100000")
    process = subprocess.Popen(
        [*LADING, "verify", "--data", str(sound.data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    descriptors = Path(f"/proc/{process.pid}/fd")
    assert until(lambda: str(path) in map(target, descriptors.iterdir()), seconds=60), "it never came to hash the file"

    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, errors = process.communicate(timeout=60)

    assert time.monotonic() - began < 3
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors


def test_a_killed_servers_directory_is_read_with_its_log(server: RegistryProcess, seed: str) -> None:
    """What was acknowledged last is in SQLite's log only; it is read there, and nothing is tidied up."""
    server.start()
    (client,) = new_clients(server.wire, 1, prefix="killed", seed=seed)
    client.work(60)
    client.push_image()
    client.disconnect()
    server.kill()
    files = {path.name for path in server.data.iterdir()}

    verified = verify(server.data)

    assert f"{FILE}-wal" in files
    assert (verified.exit_code, verified.found) == (0, [])
    assert verified.document["counts"]["manifests"] >= len(client.state.manifests) > 0
    assert {path.name for path in server.data.iterdir()} == files


def test_what_a_server_does_beside_it_is_no_finding(tmp_path: Path, seed: str) -> None:
    """Under load, with uploads that expire, through a stop, a start and a kill: it looks again before it tells."""
    server = RegistryProcess(tmp_path, {"LADING_UPLOADS__TTL_SECONDS": "2"})
    server.start()
    clients = new_clients(server.wire, CLIENTS, prefix="beside", seed=seed)
    with Watching(server.data) as watching:
        for end in (server.stop, server.kill, server.stop):
            with Load(clients) as load, Uploading(server):
                time.sleep(LOAD_SECONDS / 3)
                load.stop()
            end()
            time.sleep(0.3)
            server.start()
            for client in clients:
                client.sessions.clear()  # they have expired, or will before anybody goes on
        server.kill()
    shutil.rmtree(tmp_path, ignore_errors=True)

    assert not watching.findings, f"seed {seed}: {watching.findings}"
    assert watching.rounds >= 5
    print(f"{watching.rounds} rounds, {sum(client.acknowledged for client in clients)} requests")


def test_what_is_removed_while_it_looks_is_no_finding(sound: Sound, tmp_path: Path) -> None:
    """As a collector does it, rows first and then the file, while the page that names the file is being worked on."""
    with running(tmp_path) as server:
        late = [Repository(server.wire, APP).push_blob(random_content(LARGE_BYTES)) for _ in range(4 * THREADS)][-1]
    path = sound.object_of(late)

    def collect() -> None:
        blob = f"(SELECT id FROM blobs WHERE digest = x'{late.partition(':')[2]}')"
        for table in ("repo_blobs", "blob_extents", "gc_blob_queue"):
            sound.change(f"DELETE FROM {table} WHERE blob_id = {blob}")
        sound.change(f"DELETE FROM blobs WHERE digest = x'{late.partition(':')[2]}'")
        path.unlink()

    with contextlib.closing(dbapi2.connect(str(sound.data / FILE))) as beside:
        beside.execute("SELECT count(*) FROM blobs").fetchone()  # as a server would, so that there is a log
        report = Verification(
            sound.data, sound.data / FILE, quick=False, progress=AtFirstPiece("objects", collect)
        ).run()

    assert not path.exists()
    assert not report.findings


def test_an_upload_that_ends_while_it_looks_is_no_finding(sound: Sound, tmp_path: Path) -> None:
    """The page names it, and then its row and its file are gone: it asks for the row again."""
    with running(tmp_path) as server:
        repository = Repository(server.wire, APP)
        locations = [repository.start_upload() for _ in range(4)]
        for location in locations:
            repository.send("PATCH", location, body=OPEN).expect(202)

        def cancel() -> None:
            for location in locations:
                repository.send("DELETE", location)

        progress = AtFirstPiece("uploads", cancel)
        report = Verification(sound.data, sound.data / FILE, quick=False, progress=progress).run()

    assert progress.acted
    assert not report.findings


def test_a_look_during_which_somebody_wrote_is_repeated(sound: Sound) -> None:
    """Where no log was, SQLite is told that nobody writes; a server that starts just then makes that untrue."""
    looks: list[sa.Connection] = []

    def look(tx: sa.Connection) -> int:
        if not looks:
            sound.change("UPDATE repositories SET manifest_count = 77")
        looks.append(tx)
        return int(tx.exec_driver_sql("SELECT max(manifest_count) FROM repositories").scalar_one())

    assert ReadOnlyDatabase(sound.data / FILE).read(look) == 77
    assert len(looks) == 2


class AtFirstPiece:
    """Does something when the first piece of a stage was hashed; all threads wait for it."""

    def __init__(self, stage: str, action: Callable[[], None]) -> None:
        self.acted = False
        self._stage = stage
        self._action = action
        self._lock = threading.Lock()
        self._present: tuple[str, int | None, bool] = ("", None, False)

    def begin(self, stage: str, total: int | None, *, of_bytes: bool = False) -> None:
        """Remember the stage."""
        self._present = (stage, total, of_bytes)

    def advance(self, amount: int) -> None:
        """Act once."""
        with self._lock:
            if amount and self._present[0] == self._stage and not self.acted:
                self._action()
                self.acted = True


class Uploading:
    """Uploads that the registry remembers the digest of, committed or cancelled in turn, while the block lasts."""

    def __init__(self, server: RegistryProcess) -> None:
        self._repository = Repository(server.wire, "uploading")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            content = random_content(OPEN_BYTES)
            location = self._repository.start_upload()
            self._repository.send("PATCH", location, body=content)  # on a busy machine it may have expired
            if number % 2:
                self._repository.send("DELETE", location)
            else:
                self._repository.send("PUT", with_digest(location, digest_of(content)), body=b"")


class Watching:
    """Verifies a directory again and again in a thread, while the block lasts."""

    def __init__(self, data: Path) -> None:
        self.rounds = 0
        self.findings: list[object] = []
        self._data = data
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.findings += self._once().findings
            except Exception as error:  # noqa: BLE001 - a thread's error is a finding of the test
                self.findings.append(error)
            self.rounds += 1

    def _once(self) -> Report:
        return Verification(self._data, self._data / FILE, quick=False, progress=self).run()

    def begin(self, stage: str, total: int | None, *, of_bytes: bool = False) -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""
