"""Four processes append to one log file, while the real logrotate rotates it in every way that it knows.

A line counts when it is found whole in one of the files, packed or not.
"""

import contextlib
import getpass
import grp
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROCESSES = 4
LINES = 12_000
LEAST_ROTATIONS = 4
WRITER = Path(__file__).with_name("writer.py")
SHIPPED = Path(__file__).parents[2] / "packaging" / "logrotate" / "lading"
ROTATING = """
{pattern} {{
    rotate 1000
    missingok
    {ways}
}}
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for the logs, as logrotate wants it: nobody else may write there."""
    place = tmp_path / "log"
    place.mkdir(mode=0o755)
    return place


@contextlib.contextmanager
def writing(file: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the writers."""
    writers = [
        subprocess.Popen([sys.executable, WRITER, file, f"w{number}", str(LINES)], stdin=subprocess.DEVNULL)
        for number in range(PROCESSES)
    ]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


def rotate_while_written(folder: Path, configuration: str) -> int:
    """Rotate `lading.log` again and again until all its lines are written; return how often that was."""
    configured = folder.parent / "logrotate.conf"
    configured.write_text(configuration)
    configured.chmod(0o644)
    file = folder / "lading.log"
    rotations = 0
    with writing(file) as writers:
        while any(writer.poll() is None for writer in writers):
            time.sleep(0.15)
            if file.exists() and file.stat().st_size:
                done = logrotate(configured)
                assert done.returncode == 0 or "renaming to" in done.stderr, done.stderr
                rotations += 1
        assert [writer.returncode for writer in writers] == [0] * PROCESSES
    return rotations


def logrotate(configured: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run the real one; where it is missing, tests/clients/install has it."""
    program = next(place for place in ("/usr/sbin/logrotate", "/usr/bin/logrotate") if Path(place).exists())
    state = configured.with_suffix(".state")
    return subprocess.run(
        [program, "-f", "-s", str(state), *options, str(configured)], capture_output=True, text=True, check=False
    )


def lines_in(folder: Path) -> list[str]:
    """Return the lines of all files, packed or not."""
    found = []
    for file in folder.glob("lading.log*"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert b"\0" not in content
        found += content.decode().splitlines()
    return found


def expected() -> list[str]:
    """Return the ids of all lines that were written."""
    return sorted(f"w{process}-{number}" for process in range(PROCESSES) for number in range(LINES))


def ids(folder: Path) -> list[str]:
    """Return the id of each line; a torn one is no JSON."""
    return sorted(json.loads(line)["request_id"] for line in lines_in(folder))


WAYS = {
    "renamed and made anew": "create 0640",
    "renamed and left to us": "nocreate",
    "renamed, made anew and packed at the next rotation": "create 0640\n    compress\n    delaycompress",
    "renamed and packed, left to us": "nocreate\n    compress\n    delaycompress",
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_no_line_is_lost_or_torn_in_a_rotation_that_renames(folder: Path, ways: str) -> None:
    """Nobody sends us a signal."""
    rotations = rotate_while_written(folder, ROTATING.format(pattern=folder / "*.log", ways=ways))

    assert rotations >= LEAST_ROTATIONS
    assert ids(folder) == expected()


def test_the_file_that_two_patterns_name_loses_nothing(folder: Path) -> None:
    """A site's own pattern and another's overlap: logrotate takes the first block, and says nothing of the other."""
    special = ROTATING.format(pattern=folder / "lading.log", ways="create 0640\n    ignoreduplicates")
    general = ROTATING.format(pattern=folder / "*.log", ways="copytruncate")

    rotations = rotate_while_written(folder, special + general)

    assert rotations >= LEAST_ROTATIONS
    assert ids(folder) == expected()


def test_copytruncate_makes_no_holes_and_tears_no_lines(folder: Path) -> None:
    """It loses what comes between its last look and its cut, which no program can help."""
    rotations = rotate_while_written(folder, ROTATING.format(pattern=folder / "*.log", ways="copytruncate"))

    assert rotations >= LEAST_ROTATIONS
    found = [line for line in lines_in(folder) if line.startswith('{"event"') and line.endswith("}")]
    assert len(found) > 0
    assert {json.loads(line)["request_id"] for line in found} <= set(expected())


def test_the_shipped_file_rotates_the_logs(folder: Path) -> None:
    """It is tried with the folder and the user of this test in place of those of a package."""
    mine = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    shipped = SHIPPED.read_text().replace("/var/log/lading", str(folder)).replace("lading lading", mine)
    (folder / "lading.log").write_text("line\n")
    configured = folder.parent / "lading"
    configured.write_text(shipped)
    configured.chmod(0o644)

    done = logrotate(configured)

    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "lading.log.1").read_text() == "line\n"
    assert (folder / "lading.log").stat().st_mode & 0o777 == 0o640
