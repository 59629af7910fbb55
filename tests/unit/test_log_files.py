"""Log files under rotation and on a full disk, through real files, and through /dev/full."""

import contextlib
import json
import os
import resource
import stat
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.capability.server import until

from lading import logs
from lading.logs import courier, file, lost
from lading.logs.courier import Courier
from lading.logs.file import LogFile
from lading.oci.errors import LogUnusable


class Tally:
    """How many records were lost."""

    def __init__(self) -> None:
        self.lost = 0

    def __call__(self, count: int) -> None:
        """Count some more."""
        self.lost += count


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what waits for a place give up soon."""
    monkeypatch.setattr(courier, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(courier, "STUCK_SECONDS", 0.02)
    monkeypatch.setattr(courier, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(courier, "PATIENCE_SECONDS", 0.05)


@contextlib.contextmanager
def delivering(place: Path, tally: Tally) -> Iterator[Courier]:
    """Yield a courier to a file that delivers in the background, as a worker has it."""
    target = courier.courier_to(LogFile(place))
    with logs.in_background(tally):
        yield target


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """Return the name of a log file on a disk without room."""
    place = tmp_path / "full.log"
    place.symlink_to("/dev/full")
    return place


def test_records_come_in_order_and_nobody_waits_for_them(tmp_path: Path) -> None:
    """Many go into one write; the last ones are brought before the worker ends."""
    place = tmp_path / "lading.log"
    logs.make_file(place)
    tally = Tally()
    with delivering(place, tally) as target:
        for number in range(5000):
            target.put(b"%d\n" % number)

    assert place.read_bytes() == b"".join(b"%d\n" % number for number in range(5000))
    assert tally.lost == 0
    assert threading.active_count() == 1


def test_a_renamed_file_is_left_alone_and_its_name_made_again(tmp_path: Path) -> None:
    """This is every rotation but copytruncate; who makes the new file may be the rotation, or we."""
    place = tmp_path / "lading.log"
    records = LogFile(place)
    records.deliver(deque([b"first\n"]))
    place.rename(tmp_path / "lading.log.1")
    records.deliver(deque([b"second\n"]))

    assert (tmp_path / "lading.log.1").read_bytes() == b"first\n"
    assert place.read_bytes() == b"second\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


def test_a_missing_name_is_first_left_to_who_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at once, it would be in the way of logrotate's own, which has the mode and the owner that are wanted."""
    monkeypatch.setattr(file, "GRACE_SECONDS", 0.5)  # so that the other thread is in time also on a busy machine
    place = tmp_path / "lading.log"
    begun = threading.Event()

    def make_it() -> None:
        begun.wait()
        place.touch(0o600)

    other = threading.Thread(target=make_it)
    other.start()
    begun.set()
    LogFile(place).deliver(deque([b"line\n"]))
    other.join()

    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_a_truncated_file_has_no_hole(tmp_path: Path) -> None:
    """After copytruncate, a writer that keeps its offset makes a file that begins with NULs."""
    place = tmp_path / "lading.log"
    records = LogFile(place)
    records.deliver(deque([b"before\n"]))
    os.truncate(place, 0)
    records.deliver(deque([b"after\n"]))

    assert place.read_bytes() == b"after\n"


def test_a_line_that_the_disk_cut_is_written_again_whole(tmp_path: Path) -> None:
    """The cut one is ended, so that it spoils no other."""
    place = tmp_path / "lading.log"
    records = deque([b"one\n", b"two\n", b"three\n"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            LogFile(place).deliver(records)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    LogFile(place).deliver(records)

    assert place.read_bytes() == b"one\ntw\ntwo\nthree\n"
    assert not records


@pytest.mark.usefixtures("quick")
def test_a_full_disk_costs_lines_and_no_request_a_wait(full_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What waits for room is bounded; it is said once, where somebody may see it, and counted."""
    tally = Tally()
    record = b"x" * 65535 + b"\n"
    with delivering(full_disk, tally) as target:
        for _ in range(200):
            target.put(record)
        assert tally.lost == 200 - courier.MAX_WAITING_BYTES // len(record)
        said = [""]
        assert until(lambda: bool(_more(said, capfd)))

    assert tally.lost == 200
    assert "".join([*said, capfd.readouterr().err]) == (
        f"lading: the log file {full_disk} takes nothing (no space left on device): what is logged waits, or is lost\n"
    )


def _more(said: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Take in what came on standard error since, and return it."""
    said.append(capfd.readouterr().err)
    return said[-1]


@pytest.mark.usefixtures("quick")
def test_what_waited_for_room_arrives_and_what_did_not_fit_is_told(
    full_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A disk that was full for a minute costs nothing, as long as memory lasts."""
    logs.configure("json", file=full_disk)
    tally = Tally()
    record = b"x" * (courier.MAX_WAITING_BYTES // 2) + b"\n"
    with delivering(full_disk, tally) as target:
        for _ in range(3):
            target.put(record)
        assert until(lambda: "takes nothing" in capfd.readouterr().err)
        full_disk.unlink()
        full_disk.touch()

    *kept, report = full_disk.read_bytes().splitlines(keepends=True)
    assert kept == [record]
    assert tally.lost == 2
    assert (json.loads(report)["event"], json.loads(report)["count"]) == ("log lines were dropped", 2)


@pytest.mark.usefixtures("quick")
def test_one_large_record_always_fits(full_disk: Path) -> None:
    """A traceback may be larger than all that may wait."""
    tally = Tally()
    with delivering(full_disk, tally) as target:
        target.put(b"x" * (courier.MAX_WAITING_BYTES + 1))
        assert tally.lost == 0


@pytest.mark.usefixtures("quick")
def test_without_a_thread_an_event_waits_a_moment_and_no_longer(full_disk: Path) -> None:
    """The parent may have no thread, as it forks; nor may a full disk keep it from its workers."""
    tally = Tally()
    target = Courier(LogFile(full_disk))
    lost.count_by(tally)
    target.put(b"one\n", urgent=True)
    target.put(b"two\n", urgent=True)
    lost.count_by(None)

    assert tally.lost == 2


def test_a_file_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """At the start somebody is there to read it."""
    with pytest.raises(LogUnusable, match="cannot be written: no such file or directory") as refusal:
        logs.make_file(tmp_path / "missing" / "lading.log")

    assert "make its directory" in refusal.value.hint
