"""Who may do what beside whom: one process at a time does a work, and nobody's database is replaced under it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lading.oci.errors import CommandRefused

_OPENED = "commands.lock"


@contextlib.contextmanager
def turn(lock: Path) -> Iterator[bool]:
    """Tell whether it is this process's turn, which lasts for the block; the kernel ends it at a crash."""
    with _locked(lock, fcntl.LOCK_EX) as ours:
        yield ours


@contextlib.contextmanager
def opened_beside(data: Path) -> Iterator[None]:
    """Have the database open beside a server, or without one, while the block lasts: nothing replaces it meanwhile.

    Raises:
        CommandRefused: it is being replaced.

    """
    with _locked(data / _OPENED, fcntl.LOCK_SH) as ours:
        if not ours:
            raise CommandRefused(f"another command is changing {data.absolute()}", "try again when it has ended")
        yield


@contextlib.contextmanager
def nobody_beside(data: Path) -> Iterator[None]:
    """Replace the database, or what it is held against, while the block lasts; the directory is claimed already.

    Who has a database open takes the log of the one that comes in its place for its own, and deletes it.

    Raises:
        CommandRefused: a command has it open.

    """
    with _locked(data / _OPENED, fcntl.LOCK_EX) as ours:
        if not ours:
            raise CommandRefused(f"another command is at work in {data.absolute()}", "let it end, or stop it")
        yield


@contextlib.contextmanager
def _locked(lock: Path, kind: int) -> Iterator[bool]:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise CommandRefused(
            f"{lock.absolute()} cannot be opened: {error.strerror}", "run it as the user whom the server runs as"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
