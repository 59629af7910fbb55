"""Jobs that come round: each named callable at its interval, in every process or in the one that holds the lock."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from lading.oci.errors import RegistryError

log = structlog.get_logger(__name__)
_LOCK_SECONDS = 1.0
_LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Job:
    """A callable, and the seconds between the end of one run and the next; with `at_stop`, once more at the end."""

    name: str
    every_seconds: float
    run: Callable[[], Awaitable[None]]
    at_stop: bool = False


@contextlib.asynccontextmanager
async def running(jobs: Sequence[Job], lock: Path | None = None) -> AsyncIterator[None]:
    """Run the jobs while the block lasts: in every process, or with `lock` whenever no other process does.

    The kernel frees the lock at a crash.
    """
    task = asyncio.create_task(_run_all(jobs) if lock is None else _run_in_turn(jobs, lock))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await task


async def _run_in_turn(jobs: Sequence[Job], lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS)
        await _run_all(jobs)
    finally:
        os.close(descriptor)


async def _run_all(jobs: Sequence[Job]) -> None:
    try:
        await asyncio.gather(*(_repeat(job) for job in jobs))
    finally:
        async with asyncio.timeout(_LAST_SECONDS):
            for job in jobs:
                if job.at_stop:
                    await _run(job)


async def _repeat(job: Job) -> None:
    while True:
        await _run(job)
        await asyncio.sleep(job.every_seconds)


async def _run(job: Job) -> None:
    try:
        await job.run()
    except RegistryError as error:
        log.warning("job not done; it will be tried again", job=job.name, reason=str(error))
    except Exception:
        log.exception("job failed; it will be tried again", job=job.name)
