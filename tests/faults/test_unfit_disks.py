"""File systems that do not do what they say: refused at the start with a sentence, before anything is written there.

The answers that such a file system would give are strace's; those that are accepted are the kernel's own.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.capability.server import LADING, RegistryProcess
from tests.faults.disks import ext4, overlay, tmpfs, xfs

pytestmark = pytest.mark.slow
START_SECONDS = 60


def start(data: Path, *strace: str) -> str:
    """Start a server that must refuse to; return what it said."""
    command = [*strace, *LADING, "serve", "--data", str(data), "--port", "0", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("fsync:error=EIO:when=3", "cannot sync files and folders: input/output error"),
        ("link,linkat:error=EPERM", "cannot make hard links: operation not permitted"),
        ("link,linkat:retval=0", "cannot make hard links: the link is another file"),
        ("rename,renameat,renameat2:error=EPERM", "cannot replace a file by another at once: operation not permitted"),
        ("flock:error=ENOLCK", "cannot lock and share files between processes: no locks available"),
        ("flock:retval=0", "cannot lock and share files between processes: two processes got the same lock of a file"),
        ("fcntl:error=ENOLCK", "cannot lock and share files between processes: no locks available"),
        ("fcntl:retval=0", "cannot lock and share files between processes: two processes got the same lock of a range"),
        ("mmap:error=ENODEV", "cannot lock and share files between processes: no such device"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, fault: str, reason: str) -> None:
    """Found at the first push it would be a 500 that nobody understands; found after a power cut, a loss."""
    data = tmp_path / "data"
    data.mkdir()

    calls = fault.partition(":")[0]
    probe = data / ".probe"
    probe.touch()  # strace knows a file by its path only where it exists
    said = start(
        data, "strace", "-f", "-o", "/dev/null", "-P", str(probe), "-P", str(data), "-e", f"trace={calls}", "-e",
        f"inject={fault}",
    )  # fmt: skip

    assert f"error: the file system of {data} (ext4) {reason}" in said
    assert "hint: keep the data directory on a local disk" in said
    assert not list(data.glob("lading.db*"))
    assert not list(data.glob(".probe*"))


KINDS: dict[str, Callable[[Path], AbstractContextManager[object]]] = {
    "ext4": ext4,
    "overlay": overlay,
    "tmpfs": tmpfs,
    "xfs": xfs,
}


@pytest.fixture(params=KINDS)
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RegistryProcess]:
    """Return a server whose data is on a file system that we vouch for."""
    with KINDS[request.param](tmp_path / "data"):
        process = RegistryProcess(tmp_path, workers=1)
        try:
            yield process
        finally:
            process.kill()


def test_what_people_use_is_accepted(server: RegistryProcess) -> None:
    """A container's own layer, a memory disk and the two that most machines have."""
    server.start()

    server.stop()
    assert not list(server.data.glob(".probe*"))
