"""Which file system a data directory is on, and what is said of it."""

from pathlib import Path

import pytest

from lading.storage.probe import file_system, is_network, refuse_unfit

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /srv rw - tmpfs tmpfs rw
31 30 0:31 / /srv/with\\040space rw shared:2 master:1 - nfs4 host:/export rw,vers=4.2
32 30 0:32 / /srv/over rw - xfs /dev/vdb rw
33 32 0:33 / /srv/over rw - fuse.sshfs host:/ rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/var/lib/lading", "ext4"),
        ("/srv/data", "tmpfs"),
        ("/srv/with space/data", "nfs4"),
        ("/srv/without", "tmpfs"),
        ("/srv/over/data", "fuse.sshfs"),
    ],
)
def test_the_nearest_mount_point_counts_and_of_two_the_later(place: str, kind: str) -> None:
    """Mount points may hold spaces, begin alike, and cover each other."""
    assert file_system(Path(place), MOUNTS) == kind


def test_the_kernel_is_asked(tmp_path: Path) -> None:
    """Every machine has a memory disk."""
    assert file_system(Path("/dev/shm")) == "tmpfs"
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(tmp_path) not in {"unknown", "proc"}


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs4", True), ("cifs", True), ("9p", True), ("fuse.sshfs", True), ("fuse.mergerfs", False), ("ext4", False)],
)
def test_those_of_other_machines_are_known(kind: str, *, network: bool) -> None:
    """They are warned of, as their locks and syncs are only as good as the network."""
    assert is_network(kind) == network


def test_a_sound_one_keeps_nothing_of_the_trial(tmp_path: Path) -> None:
    """What a start that was killed had left goes as well."""
    (tmp_path / ".probe").write_bytes(b"left")
    (tmp_path / ".probe.other").write_bytes(b"left")

    refuse_unfit(tmp_path)

    assert list(tmp_path.iterdir()) == []
