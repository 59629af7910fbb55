"""The whole API against a model, on two workers: no divergence, and each planted bug is found."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test

from tests.capability.server import RegistryProcess
from tests.model.machine import ApiMachine
from tests.model.plants import PLANTS, Planted
from tests.model.workers import Workers

FULL = os.environ.get("LADING_FULL", "") not in {"", "0"}
STEPS_OF_AN_EXAMPLE = 50
STEPS = 100_000 if FULL else 2_000
STEPS_TO_FIND_A_PLANT = 20_000

pytestmark = pytest.mark.slow


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """Return what all choices come from, and say how to repeat them."""
    given = os.environ.get("LADING_SEED") or f"{random.SystemRandom().getrandbits(32):08x}"
    with capsys.disabled():
        print(f"\nmodel: LADING_SEED={given}")
    return int(given, 16)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder in memory: what is said here is no matter of disks."""
    path = Path(tempfile.mkdtemp(prefix="lading-model-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@contextmanager
def workers_of(folder: Path, source: Path | None = None) -> Iterator[Workers]:
    """Run a server with two workers, of another source tree where one is given."""
    server = RegistryProcess(folder, {"PYTHONPATH": str(source)} if source else None)
    try:
        server.start()
        with closing(Workers(server)) as workers:
            yield workers
        server.stop()
    finally:
        server.kill()


def run(workers: Workers, seed: int, steps: int, *phases: Phase) -> None:
    """Let the machine make `steps` steps; what it raises carries the program that leads there."""

    @hypothesis.seed(seed)
    class Machine(ApiMachine):
        def __init__(self) -> None:
            super().__init__(workers)

    settings = hypothesis.settings(
        max_examples=steps // STEPS_OF_AN_EXAMPLE,
        stateful_step_count=STEPS_OF_AN_EXAMPLE,
        phases=phases,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=settings)


@pytest.mark.timeout(5 * 3600 if FULL else 900)  # a failure is shrunk, for up to five minutes
def test_every_reply_is_what_the_model_foretells(folder: Path, seed: int) -> None:
    """Whatever is asked in whatever order, right or wrong, each worker answers as the specification has it."""
    with workers_of(folder) as workers:
        run(workers, seed, STEPS, Phase.generate, Phase.shrink)

        assert min(workers.answered.values()) > STEPS / 4, f"not both workers were asked: {workers.answered}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_bug_is_found(plant: Planted, folder: Path, seed: int) -> None:
    """A model that agrees with everything would pass the test above as well."""
    with (
        workers_of(folder, plant.build(folder)) as workers,
        pytest.raises(AssertionError, match=r"^expected ") as found,
    ):
        run(workers, seed, STEPS_TO_FIND_A_PLANT, Phase.generate)

    print(f"{plant.name}: {str(found.value).splitlines()[0][:300]}")
