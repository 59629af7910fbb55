"""A key of the store is never used twice: what one push or repair throws away is never what another has kept (I2)."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.capability.content import digest_of, random_content
from tests.capability.repository import Repository, new_name, with_digest
from tests.capability.server import RegistryProcess
from tests.faults.checker import Checker
from tests.faults.conftest import FULL

PUSHERS = 6
ROUNDS = 200 if FULL else 15
CONTENT_BYTES = 50_000

pytestmark = pytest.mark.slow


def test_pushes_of_the_same_blob_at_once_take_nothing_from_each_other(server: RegistryProcess) -> None:
    """Only one of their objects is kept, and the others throw away their own: each 201 can be pulled (I1, I2)."""
    server.start()

    assert_all_pullable(server, ROUNDS)

    server.stop()


def test_a_blob_that_was_healed_is_not_the_object_that_was_given_up(server: RegistryProcess) -> None:
    """The collector removes doomed objects by their keys, long after the blob came again (I2, E4)."""
    server.start()

    heal(server)

    assert not Checker(server.data).problems()
    server.stop()


def assert_all_pullable(server: RegistryProcess, rounds: int) -> None:
    """Commit the same content from many sessions at the same moment, again and again; each repository has it then."""
    with ThreadPoolExecutor(PUSHERS) as threads:
        for _ in range(rounds):
            content = random_content(CONTENT_BYTES)
            barrier = threading.Barrier(PUSHERS)

            def push(content: bytes = content, barrier: threading.Barrier = barrier) -> Repository:
                repository = Repository(server.wire, new_name())
                location = repository.start_upload()
                repository.send("PATCH", location, body=content).expect(202)
                barrier.wait()
                repository.send("PUT", with_digest(location, digest_of(content)), body=b"").expect(201)
                return repository

            for repository in [future.result() for future in [threads.submit(push) for _ in range(PUSHERS)]]:
                reply = repository.request("GET", f"blobs/{digest_of(content)}").expect(200)
                assert reply.body == content, "other bytes"


def heal(server: RegistryProcess) -> None:
    """Lose a blob's object behind the registry's back, and push it again."""
    repository = Repository(server.wire, new_name())
    content = random_content(CONTENT_BYTES)
    repository.push_blob(content)
    (lost,) = (server.data / "objects").glob(f"*/{digest_of(content).partition(':')[2]}*")
    lost.unlink()
    repository.push_blob(content)
    assert repository.request("GET", f"blobs/{digest_of(content)}").expect(200).body == content
