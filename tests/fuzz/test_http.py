"""Bytes that are nearly HTTP, at the protocol class: no fault, no second answer, the same however they are cut."""

import asyncio
import os
import random
import secrets
import time

import pytest

from tests.fuzz.connection import Outcome, Server
from tests.fuzz.mutation import cut, request

FULL = bool(os.environ.get("LADING_FULL"))
CASES = 1_000_000 if FULL else 1_000_000_000
SECONDS = 7200.0 if FULL else 10.0
REFUSALS = {400, 414, 431}


def _check(data: bytes, outcome: Outcome) -> None:
    answers = outcome.answers
    faults = [status for status in answers if status not in {200, *REFUSALS}]
    assert not faults, f"{faults} for {data!r}"
    refused = [at for at, status in enumerate(answers) if status in REFUSALS]
    assert refused in ([], [len(answers) - 1]), f"{answers}: something after a refusal, for {data!r}"
    assert answers.count(200) == len(outcome.requests), f"{answers} to {outcome.requests}, for {data!r}"


async def _fuzz(seed: str) -> int:
    rng = random.Random(seed)
    server = Server()
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    end = time.monotonic() + SECONDS
    done = 0
    while done < CASES and time.monotonic() < end:
        data = request(rng)
        whole = await server.outcome([data])
        _check(data, whole)
        pieces = await server.outcome(cut(data, rng))
        _check(data, pieces)
        assert (whole.answers, whole.requests) == (pieces.answers, pieces.requests), f"cut otherwise: {data!r}"
        assert not troubles, f"{troubles} for {data!r}"
        done += 1
    return done


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_what_is_nearly_http_gets_one_answer_or_none() -> None:
    """Whoever can reach the port can send anything: it is never a fault of ours, nor a request nobody made."""
    seed = os.environ.get("LADING_SEED", secrets.token_hex(4))
    print(f"LADING_SEED={seed}")

    done = asyncio.run(_fuzz(seed))

    print(f"{done} cases, each whole and in pieces")
    assert done > 100
