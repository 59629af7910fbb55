"""The collector at work among clients that take up what it is about to take away: nothing accepted is lost, ever.

With leases, undo windows and delays of milliseconds it looks at everything all the time. In the end all is deleted, and
there is not one row and not one byte left.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.capability.preloaded import Preloaded
from tests.capability.server import until
from tests.faults.checker import Checker, expire_leases, expire_sessions
from tests.faults.conftest import FULL
from tests.faults.controls import DIGEST_NAMED_KEYS, NO_LEASES
from tests.faults.operating import Operator
from tests.faults.preloaded import PreloadedRegistry
from tests.faults.torture import INLINE_BYTES, Client, Load, new_clients

MUTATIONS = int(os.environ.get("LADING_MUTATIONS", "100000"))
"""Of the torture itself; LADING_MUTATIONS=1000000 is the run by hand of docs/trust.md."""
MOST_SECONDS = float("inf") if FULL or "LADING_MUTATIONS" in os.environ else 300.0
KILLED_MUTATIONS = 50_000 if FULL else 4_000
COMPARED_MUTATIONS = 20_000 if FULL else 3_000
CONTROL_SECONDS = 60.0
LEAN_SECONDS = 0.5
"""Between layers and a manifest that is to come too late: the collector lags behind so many clients."""
MOST_ROUNDS = 10
CLIENTS = 8
QUIET_SECONDS = 60.0
WATCH_SECONDS = 0.2
SHORT_LEASE, LONG_LEASE = 0.02, 60.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(24 * 3600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory: a kill leaves what the kernel was given, wherever that is kept."""
    path = Path(tempfile.mkdtemp(prefix="lading-torture-", dir="/dev/shm")).resolve()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[PreloadedRegistry]:
    """Return a running server of two workers whose leases, windows and delays are milliseconds."""
    with Preloaded() as parent:
        yield from running(folder, parent, SHORT_LEASE)


def eager(lease_seconds: float) -> Mapping[str, str]:
    """Return the settings of a registry that collects all the time."""
    return {
        "LADING_COLLECTION__LEASE_SECONDS": str(lease_seconds),
        "LADING_COLLECTION__UNDO_SECONDS": "0.02",
        "LADING_COLLECTION__DELAY_SECONDS": "0.02",
        "LADING_COLLECTION__EVERY_SECONDS": "0.01",
        "LADING_BLOBS__INLINE_MAX_BYTES": str(INLINE_BYTES),
    }


def running(folder: Path, parent: Preloaded, lease_seconds: float) -> Iterator[PreloadedRegistry]:
    """Run a server that collects all the time."""
    folder.mkdir(exist_ok=True)
    server = PreloadedRegistry(folder, parent, settings=eager(lease_seconds))
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_what_is_accepted_stays_and_what_is_deleted_goes_to_the_last_byte(server: PreloadedRegistry, seed: str) -> None:
    """Every 201 can be pulled until it is deleted, while what it shared with others is collected (I1 to I3)."""
    clients = new_clients(server.wire, CLIENTS, seed=seed)

    began = time.monotonic()
    with operated(server, clients):
        load = torture(server, clients, MUTATIONS, MOST_SECONDS)
    took = time.monotonic() - began

    tell(load, server.data, took)
    collected = Checker(server.data).kinds()
    assert collected["manifest.collected"], collected
    assert collected["blob.collected"], collected
    assert_all_pullable_and_then_nothing_left(server, clients)


@pytest.mark.parametrize("whole_tree", [False, True], ids=["worker", "tree"])
def test_kills_in_the_middle_of_collections_lose_nothing_and_leave_nothing(
    server: PreloadedRegistry, seed: str, *, whole_tree: bool
) -> None:
    """A collector that dies leaves rows, files and queues at every stage: the next one goes on from there (I1, I2)."""
    source = random.Random(seed)
    clients = new_clients(server.wire, CLIENTS, seed=f"{seed} kills")
    kills = 0

    began = time.monotonic()
    with operated(server, clients), Load(clients, KILLED_MUTATIONS) as load:
        while load.running:
            time.sleep(source.uniform(0.05, 1.0))
            if whole_tree:
                server.kill()
                server.start()
            elif len(tree := server.tree()) == 3:
                os.kill(source.choice(tree[1:]), signal.SIGKILL)
            kills += 1
    took = time.monotonic() - began
    load.assert_faultless()

    tell(load, server.data, took)
    cut = sum(client.cuts for client in clients)
    print(f"{kills} kills, {cut} requests cut off")
    assert cut, "no kill met a request"
    server.kill()
    expire_sessions(server.data)
    server.start()
    assert_all_pullable_and_then_nothing_left(server, clients)


def test_a_lease_longer_than_the_push_keeps_its_layers(folder: Path, server: PreloadedRegistry, seed: str) -> None:
    """What nothing refers to yet is kept for its manifest; with leases of milliseconds, some come too late (S3)."""
    short = compared(server, seed, lambda load: load.refusals > 0)
    server.close()
    with Preloaded() as parent:
        for other in running(folder / "long", parent, LONG_LEASE):
            checker = Checker(other.data)
            long = compared(other, seed, lambda _, checker=checker: unneeded(checker) > 0)  # type: ignore[misc]
            kept = unneeded(checker)
            print(f"manifests that came too late: {short.refusals} with short leases, {long.refusals} with long ones")
            print(f"{kept} blobs that nothing refers to are kept by their leases alone")
            other.kill()
            expire_leases(other.data)
            other.start()
            assert_all_pullable_and_then_nothing_left(other, long.clients, leases_are_over=True)

    assert short.refusals > 0, "the collector was never between a push and its manifest: this proves nothing"
    assert long.refusals == 0
    assert kept > 0


def test_a_build_without_leases_refuses_manifests_whatever_is_set(folder: Path, seed: str) -> None:
    """The leases are what keeps layers for their manifests, not luck."""
    with Preloaded(tree=NO_LEASES.build(folder)) as parent:
        for server in running(folder, parent, LONG_LEASE):
            load = compared(server, seed, lambda load: load.refusals > 0)

    print(f"{NO_LEASES.name}: {load.refusals} manifests came too late")
    assert load.refusals > 0


def test_a_build_with_digest_named_keys_loses_what_it_accepted(folder: Path, seed: str) -> None:
    """A file that goes after its row is somebody else's by then, who was answered 201 for it (I2)."""
    with Preloaded(tree=DIGEST_NAMED_KEYS.build(folder)) as parent:
        for server in running(folder, parent, SHORT_LEASE):
            clients = new_clients(server.wire, CLIENTS, seed=seed)
            with pytest.raises(AssertionError, match=r"without its blob|a live manifest|yet a blob's") as found:
                torture(server, clients, 10**9, CONTROL_SECONDS)

    done = sum(client.mutations for client in clients)
    print(f"{DIGEST_NAMED_KEYS.name}, after {done} mutations: {' '.join(str(found.value).split())[:300]}")


@contextlib.contextmanager
def operated(server: PreloadedRegistry, clients: Sequence[Client]) -> Iterator[None]:
    """Have an operator at hand, whom the clients ask to bring things back."""
    with Operator(server.data, eager(SHORT_LEASE)) as operator:
        for client in clients:
            client.operator = operator
        yield


def torture(server: PreloadedRegistry, clients: Sequence[Client], mutations: int, seconds: float) -> Load:
    """Let the clients loose, and look again and again whether a blob's object is to be removed (I2)."""
    checker = Checker(server.data)
    with Load(clients, mutations, seconds) as load:
        while load.running:
            time.sleep(WATCH_SECONDS)
            assert not (reused := checker.reused()), reused
    load.assert_faultless()
    return load


def compared(server: PreloadedRegistry, seed: str, enough: Callable[[Load], bool]) -> Load:
    """Do the load that is the same for each build and each lease, in some rounds until it was enough; return it."""
    clients = new_clients(server.wire, CLIENTS, seed=seed)
    for client in clients:
        client.lean_seconds = LEAN_SECONDS
    for _ in range(MOST_ROUNDS):
        with Load(clients, COMPARED_MUTATIONS) as load:
            pass
        load.assert_faultless()
        if enough(load):
            break
    return load


def unneeded(checker: Checker) -> int:
    """Return how many blobs are there that nothing has referred to for ten short leases."""
    return checker.unreferenced(before_us=int((time.time() - 10 * SHORT_LEASE) * 1_000_000))


def assert_all_pullable_and_then_nothing_left(
    server: PreloadedRegistry, clients: Sequence[Client], *, leases_are_over: bool = False
) -> None:
    """Pull all that was accepted, delete it, and wait until no row and no file is left but the feed's (V1 to V8)."""
    checker = Checker(server.data)
    for client in clients:
        client.check_all()
    if not leases_are_over:
        # It looks at rows and then at files, and what nothing refers to goes in between: a loss would stay one.
        assert until(lambda: not checker.problems()), checker.problems()
    for client in clients:
        client.delete_all()
    assert until(lambda: not checker.remains(), seconds=QUIET_SECONDS), f"not collected: {checker.remains()}"
    server.stop()
    assert not (problems := checker.problems(rehash=True)), problems
    server.assert_verified()


def tell(load: Load, data: Path, seconds: float) -> None:
    """Print what was done, and what was collected meanwhile."""
    rate = f"{load.mutations} mutations in {seconds:.0f} s ({load.mutations / seconds:.0f}/s)"
    print(f"{rate}, {load.refusals} manifests came too late for a blob and then came again")
    print(f"{sum(client.restored for client in load.clients)} manifests were deleted and then restored")
    print(json.dumps({kind: count for kind, count in Checker(data).kinds().items() if "collected" in kind}))
