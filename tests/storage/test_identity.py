"""The marker's file, and the watch over it that a running server keeps."""

import json
import os
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lading.oci.errors import StoreMismatch, StoreUnavailable, Superseded
from lading.storage import identity
from lading.storage.identity import DatabaseFile, Marker, Watch

OURS = Marker("store-of-ours", "database-of-ours", epoch=2, seq=7)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data directory with a marker and something that stands for a database."""
    (tmp_path / "lading.db").write_bytes(b"a database")
    identity.write(tmp_path, OURS)
    return tmp_path


@pytest.fixture
def watch(data: Path) -> Watch:
    """Return a watch as a worker makes it at its start."""
    return Watch(data, OURS, DatabaseFile.at(data / "lading.db"))


def change(data: Path, **fields: object) -> None:
    """Change fields of the marker's file behind the program's back; None takes one away."""
    path = identity.marker_path(data)
    document = {**json.loads(path.read_text()), **fields}
    replacement = path.with_suffix(".changed")
    replacement.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
    replacement.replace(path)


# The file


def test_a_marker_is_written_whole_or_not_at_all(data: Path) -> None:
    """A power cut in the middle of writing it would refuse the next start."""
    identity.write(data, Marker("first", "first"))
    identity.write(data, OURS)

    assert identity.read(data) == OURS
    assert [path.name for path in (data / "objects").iterdir()] == [identity.MARKER]


def test_a_marker_that_cannot_be_written_leaves_the_one_before(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not cost a registry its identity."""

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)

    with pytest.raises(OSError, match="No space left"):
        identity.write(data, Marker("second", "second"))

    assert identity.read(data) == OURS
    assert [path.name for path in (data / "objects").iterdir()] == [identity.MARKER]


def test_a_marker_of_before_is_in_its_first_epoch(data: Path) -> None:
    """A registry that was made by an older Lading goes on."""
    change(data, epoch=None, seq=None)

    assert identity.read(data) == Marker(OURS.store_uid, OURS.database_uid, epoch=1, seq=0)


@pytest.mark.parametrize("field", ["epoch", "seq"])
@pytest.mark.parametrize("value", [-1, 1.5, "7", True, [7], {}])
def test_a_marker_with_a_wrong_number_is_refused(data: Path, field: str, value: object) -> None:
    """A number that is misread as zero would call a rolled back database good."""
    change(data, **{field: value})

    with pytest.raises(StoreMismatch, match="cannot be read"):
        identity.read(data)


# The watch


def test_a_store_that_is_ours_is_written_to(watch: Watch) -> None:
    """The ordinary case, and asked at each push."""
    watch.confirm_there()
    watch.confirm_writable()


def test_a_store_that_went_away_is_noticed_at_once_and_so_is_its_return(watch: Watch, data: Path) -> None:
    """An hour of pushes into the wrong place is too much, and a restart to heal it as well."""
    watch.confirm_writable()
    (data / "objects").rename(data / "moved")
    with pytest.raises(StoreUnavailable):
        watch.confirm_writable()
    with pytest.raises(StoreUnavailable):
        watch.confirm_there()

    (data / "moved").rename(data / "objects")

    watch.confirm_writable()


@pytest.mark.parametrize(
    "change_of_marker",
    [{"store_uid": "another"}, {"database_uid": "another"}, {"format": 99}, {"seq": "many"}, {"store_uid": None}],
)
def test_a_store_that_became_another_is_noticed(watch: Watch, data: Path, change_of_marker: dict[str, object]) -> None:
    """A disk was mounted over it."""
    watch.confirm_writable()

    change(data, **change_of_marker)

    with pytest.raises(StoreUnavailable):
        watch.confirm_there()


def test_a_store_that_is_emptied_is_noticed(watch: Watch, data: Path) -> None:
    """Its folders may be there again, made by whoever emptied it."""
    watch.confirm_writable()
    shutil.rmtree(data / "objects")
    (data / "objects").mkdir()

    with pytest.raises(StoreUnavailable):
        watch.confirm_writable()


def test_a_copy_of_the_same_store_is_the_same_store(watch: Watch, data: Path) -> None:
    """Objects may move to a bigger disk."""
    watch.confirm_writable()
    shutil.copytree(data / "objects", data / "copy")
    (data / "objects").rename(data / "old")
    (data / "copy").rename(data / "objects")

    watch.confirm_writable()


def test_a_later_epoch_leaves_us_reading(watch: Watch, data: Path) -> None:
    """What was promised is still there; what would be promised now, the other database would not know."""
    watch.confirm_writable()

    change(data, epoch=OURS.epoch + 1)

    watch.confirm_there()
    with pytest.raises(Superseded):
        watch.confirm_writable()


def test_a_later_number_of_ours_is_our_own_doing(watch: Watch, data: Path) -> None:
    """Every hour one worker writes how far the database is, and the others go on."""
    watch.confirm_writable()

    identity.write(data, Marker(OURS.store_uid, OURS.database_uid, OURS.epoch, OURS.seq + 100))

    watch.confirm_writable()


def test_a_database_that_was_replaced_under_us_is_noticed(watch: Watch, data: Path) -> None:
    """SQLite goes on writing into the file that has no name any more, and a restart forgets all of it."""
    watch.confirm_writable()
    (data / "lading.db").rename(data / "old.db")
    (data / "lading.db").write_bytes(b"a database")

    with pytest.raises(StoreUnavailable):
        watch.confirm_writable()


def test_trouble_is_told_when_it_begins_and_when_it_ends(watch: Watch, data: Path) -> None:
    """A line for each refused push would bury the one that says why."""
    watch.confirm_writable()

    with capture_logs() as entries:
        (data / "objects").rename(data / "moved")
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                watch.confirm_writable()
        (data / "moved").rename(data / "objects")
        for _ in range(3):
            watch.confirm_writable()

    assert [entry["log_level"] for entry in entries] == ["error", "info"]
    assert f"{identity.marker_path(data)} is not there" in entries[0]["reason"]
