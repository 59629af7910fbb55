"""The server is killed in the middle of its work, again and again: what it acknowledged is there, whole."""

import os
import random
import signal
import time
from collections.abc import Sequence

import pytest

from tests.capability.server import RegistryProcess, until
from tests.faults.checker import Checker, expire_sessions
from tests.faults.conftest import FULL
from tests.faults.load import Client, Load, new_clients
from tests.faults.restarting import READY_SECONDS, assert_swept, start_in_time
from tests.faults.verifying import assert_verified

CLIENTS = 8
LONGEST_LOAD_SECONDS = 1.5
LIVES = range(10 if FULL else 1)
"""Data directories that are begun anew: looking through one that only grows would take longer than the kills."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("life", LIVES)
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(server: RegistryProcess, seed: str, life: int) -> None:
    """A 201 that a kill can take back is what people leave a registry for (I1, V1 to V5, V9, V10)."""
    seed = f"{seed}/{life}"
    source = random.Random(seed)
    checker = Checker(server.data)
    clients: list[Client] = []
    server.start()

    for cycle in range(50 if FULL else 8):
        newcomers = new_clients(server.wire, CLIENTS, prefix=f"cycle{cycle}", seed=f"{seed} {cycle}")
        clients += newcomers
        with Load(newcomers) as load:
            time.sleep(source.uniform(0.05, LONGEST_LOAD_SECONDS))
            server.kill()
        assert not load.faults(), f"cycle {cycle}, seed {seed}: {load.faults()}"
        start_in_time(server)
        assert_all_there(server, checker, newcomers)
        assert_swept(checker)

    assert_all_there(server, checker, clients)
    assert_clean_at_last(server, checker, clients)
    assert_told_something(clients)


@pytest.mark.parametrize("life", LIVES)
def test_nothing_acknowledged_is_lost_when_workers_are_killed(server: RegistryProcess, seed: str, life: int) -> None:
    """The others go on with what a dead worker has left: its half-written commits, its locks, its sessions (I9).

    A file without a row may wait for the next sweep: it comes at a start, or when the worker that sweeps is replaced.
    """
    seed = f"{seed}/{life}"
    source = random.Random(seed)
    checker = Checker(server.data)
    clients = new_clients(server.wire, CLIENTS, prefix="workers", seed=seed)
    server.start()

    with Load(clients) as load:
        for _ in range(50 if FULL else 15):
            time.sleep(source.uniform(0.05, 0.6))
            kill_one_worker(server, source)
    assert until(lambda: len(server.tree()) == 3, seconds=READY_SECONDS), "a killed worker was not replaced"

    assert not load.faults(), f"seed {seed}: {load.faults()}"
    assert_all_there(server, checker, clients)
    assert_clean_at_last(server, checker, clients)
    assert_told_something(clients)


def kill_one_worker(server: RegistryProcess, source: random.Random) -> None:
    """Kill one of the two workers; there are two again soon, since the parent replaces the dead."""
    assert until(lambda: len(server.tree()) == 3, seconds=READY_SECONDS), "a killed worker was not replaced"
    os.kill(source.choice(server.tree()[1:]), signal.SIGKILL)


def assert_all_there(server: RegistryProcess, checker: Checker, clients: Sequence[Client]) -> None:
    """Assert that clients find what they were promised, and that tables and files agree with them and each other."""
    for client in clients:
        client.verify()
    states = checker.states()
    for client in clients:
        assert states.get(client.repository, type(client.state)()) == client.state, client.repository
    assert not checker.problems()
    assert_verified(server.data)
    for client in clients:
        client.disconnect()
    assert server.running


def assert_clean_at_last(server: RegistryProcess, checker: Checker, clients: Sequence[Client]) -> None:
    """Go on with what was cut short, push again, end all sessions: then files and rows account for each other."""
    for client in clients[-CLIENTS:]:
        client.resume()
        client.push_again()
        client.verify()
        client.disconnect()
    server.stop()
    expire_sessions(server.data)
    server.start()

    assert_swept(checker, of_open_sessions=True)
    assert not checker.problems(rehash=True)
    server.stop()


def assert_told_something(clients: Sequence[Client]) -> None:
    """Assert that the kills met requests on their way: a run without any proves nothing."""
    acknowledged, cut = sum(client.acknowledged for client in clients), sum(client.cut_changes for client in clients)
    print(f"{acknowledged} requests acknowledged, {cut} changes cut off")
    assert cut, f"{acknowledged} requests, and none was cut off"
