"""The power is cut right after a 201, or between PATCH and PUT: the log is replayed, and every promise holds."""

import random
import tempfile
from pathlib import Path

import pytest

from tests.faults.checker import Checker
from tests.faults.conftest import FULL
from tests.faults.load import Load
from tests.faults.power import FILE_SYSTEMS, CutClient, Disk, FileSystem, Outage, await_cut, mounted, new_cut_clients
from tests.faults.preloaded import PreloadedRegistry
from tests.faults.restarting import assert_swept, start_in_time

CLIENTS = 4
MOST_ACKNOWLEDGED = 40
CUT_SECONDS = 60.0
LONGEST_LINGER_SECONDS = 0.03
POINTS = 126 if FULL else 4
POINTS_PER_DISK = 21 if FULL else 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("file_system", FILE_SYSTEMS, ids=lambda file_system: file_system.name)
def test_nothing_acknowledged_is_lost_in_a_power_cut(file_system: FileSystem, seed: str) -> None:
    """A kill leaves what the kernel was given; a power cut leaves what was synced. A 201 is for the second (I1)."""
    clients: list[CutClient] = []
    for number in range(0, POINTS, POINTS_PER_DISK):
        clients += cut_again_and_again(file_system, POINTS_PER_DISK, f"{seed} {file_system.name} {number}")

    acknowledged, cut = sum(client.acknowledged for client in clients), sum(client.cut_changes for client in clients)
    taken, refused = sum(client.taken for client in clients), sum(client.refused for client in clients)
    print(
        f"{file_system.name}: {POINTS} of {POINTS} power cuts clean, {acknowledged} requests acknowledged,"
        f" {cut} changes cut off; of the sessions open {taken} went on and {refused} were refused"
    )
    assert cut, "no request was cut off, so this proves nothing"


def cut_again_and_again(
    file_system: FileSystem, points: int, seed: str, *, tree: Path | None = None
) -> list[CutClient]:
    """Cut the power of one disk so often, looking after each cut; return the clients that had it."""
    folder = Path(tempfile.mkdtemp(prefix="lading-power-", dir="/dev/shm"))  # what counts is what was sent to the image
    source = random.Random(seed)
    clients: list[CutClient] = []
    with mounted(folder, file_system) as disk, disk.preloaded(tree) as parent:
        server = PreloadedRegistry(folder, parent, data=disk.folder / "data")
        try:
            server.start()
            for point in range(points):
                methods = ("PATCH",) if point % 3 == 2 else ("PUT", "DELETE")
                outage = Outage(disk.cut, after=source.randint(1, MOST_ACKNOWLEDGED), methods=methods)
                newcomers = new_cut_clients(
                    server.wire, CLIENTS, prefix=f"point{point}", seed=f"{seed} {point}", outage=outage
                )
                clients += newcomers
                try:
                    cut_once(disk, server, outage, newcomers, linger=source.uniform(0, LONGEST_LINGER_SECONDS))
                except AssertionError as error:
                    raise AssertionError(f"{file_system.name}, cut {point}, seed {seed}: {error}") from error
            assert_promises_kept(server, clients, rehash=True)
        finally:
            for client in clients:
                client.disconnect()
            server.close()
    return clients


def cut_once(disk: Disk, server: PreloadedRegistry, outage: Outage, clients: list[CutClient], *, linger: float) -> None:
    """Have clients work until the power is cut; mount, start, and assert that they find what they were promised."""
    with Load(clients) as load:
        try:
            await_cut(outage, seconds=CUT_SECONDS, linger=linger)
        finally:
            outage.out.set()
            server.kill()
    assert not load.faults(), load.faults()
    disk.unmount()
    disk.mount()
    start_in_time(server)
    for client in clients:
        client.power_is_back()
        client.verify()
        client.finish()
        client.push_again()
    assert_promises_kept(server, clients)


def assert_promises_kept(server: PreloadedRegistry, clients: list[CutClient], *, rehash: bool = False) -> None:
    """Assert that clients find all they were promised, and V1 to V10."""
    for client in clients:
        client.verify()
        client.disconnect()
    checker = Checker(server.data)
    problems = checker.problems(rehash=rehash)
    assert not problems, problems
    assert_swept(checker)
    server.assert_verified()
