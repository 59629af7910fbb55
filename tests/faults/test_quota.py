"""A quota that runs out: to `statvfs` there is room, to SQLite it is an I/O error, and to clients it is a full disk."""

from pathlib import Path

import pytest

from tests.capability.content import digest_of
from tests.capability.server import RegistryProcess, until
from tests.faults.disks import Disk, btrfs
from tests.faults.test_full_disk import (
    Content,
    assert_clean,
    assert_deletes,
    assert_nothing_new,
    assert_pushes,
    assert_stops,
    ballast_files,
    fill_repository,
    push_until_full,
)

pytestmark = pytest.mark.slow
MIB = 1 << 20


def use_up(disk: Disk) -> None:
    """Take what the quota has left."""
    disk.fill()
    with pytest.raises(OSError, match="quota"):
        (disk.place / "more").mkdir()
    assert disk.free_bytes > 100 * MIB


def assert_full(server: RegistryProcess, content: Content, digest: str) -> None:
    """Pull and delete, and try to push before and after: what the deletes get is not for pushes."""
    repository = content.repository
    assert_nothing_new(server, content, digest)
    assert repository.request("GET", "manifests/kept").expect(200).body == content.image.manifest
    repository.request("GET", f"blobs/{digest}").expect(200)
    assert_deletes(content)
    assert_nothing_new(server, content, digest)


def assert_recovered(server: RegistryProcess) -> None:
    """Wait for the ballast: without it each worker asks the kernel, and two that ask at once may meet."""

    def whole() -> bool:
        files = ballast_files(server)
        return len(files) == 8 and all(file.stat().st_size for file in files)

    assert until(whole, seconds=60)


def test_a_quota_that_runs_out_is_a_full_disk(tmp_path: Path) -> None:
    """Pushes are 507, pulls and deletes go on, and nothing has to be restarted when there is room again."""
    with btrfs(tmp_path / "data") as disk:
        server = RegistryProcess(tmp_path)
        try:
            server.start()
            content = fill_repository(server)
            disk.fill(24 * MIB)
            pushed, refused = push_until_full(content.repository)
            refused.expect_error(507, "UNAVAILABLE")
            assert len(pushed) > 10, len(pushed)
            use_up(disk)

            assert_full(server, content, next(iter(pushed)))
            assert_clean(server)
            disk.free()

            # The kernel is asked once a second.
            assert until(lambda: content.repository.request("POST", "blobs/uploads/", body=b"").status == 202)
            assert_recovered(server)
            assert_pushes(content)
            assert_clean(server)
            assert_stops(server)
        finally:
            server.kill()


def test_a_registry_whose_quota_has_run_out_can_start(tmp_path: Path) -> None:
    """Its images are pulled all the same, and deleting some is a way out."""
    with btrfs(tmp_path / "data") as disk:
        server = RegistryProcess(tmp_path)
        try:
            server.start()
            content = fill_repository(server)
            disk.fill(24 * MIB)
            server.stop()
            use_up(disk)

            server.start()

            assert_full(server, content, digest_of(content.image.config))
            server.kill()
            server.start()
            assert content.repository.tags() == ["kept"]
            disk.free()
            assert_recovered(server)
            assert_pushes(content)
            assert_clean(server)
            assert_stops(server)
        finally:
            server.kill()
