"""What commands share that change the content of a registry, beside a running server or without one."""

import asyncio
import os
import pwd
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lading.cli.offline import settings_of_registry
from lading.oci.errors import CommandRefused

if TYPE_CHECKING:
    from lading.app import OpenRegistry
    from lading.oci.names import Tag

T = TypeVar("T")

PAGE_ENTRIES = 1000
_MOST_ACTOR_CHARACTERS = 64
_AGO = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def with_registry(config: Path | None, data: Path | None, function: "Callable[[OpenRegistry], Awaitable[T]]") -> T:
    """Open the registry in force, run `function` with it, and close it.

    Raises:
        CommandRefused: there is none, or it cannot be opened.

    """
    from lading import app  # noqa: PLC0415 - heavy: `lading --version` is quick without

    settings = settings_of_registry(config, data)

    async def run() -> T:
        async with app.open_registry(settings) as opened:
            return await function(opened)

    return asyncio.run(run())


def actor() -> str:
    """Return who gives the command, as the history keeps it: the system's name for this process's user."""
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    kept = "".join(char if char.isprintable() and not char.isspace() else "?" for char in name)
    return f"cli:{kept[:_MOST_ACTOR_CHARACTERS]}"


def parse_tag(text: str) -> "tuple[str, Tag]":
    """Return the repository and the tag of REPO:TAG.

    Raises:
        CommandRefused: it has no tag.
        NameInvalid, TagInvalid: either breaks the grammar.

    """
    from lading.oci.names import Tag, parse_repository_name  # noqa: PLC0415 - see `with_registry`

    repository, colon, tag = text.rpartition(":")
    if not colon:
        raise CommandRefused(f"{text!r} names no tag", "write it as REPO:TAG, as in team/app:v1")
    return parse_repository_name(repository), Tag.parse(tag)


def parse_moment(text: str | None) -> int | None:
    """Return the moment that `--at` names, in microseconds.

    Raises:
        CommandRefused: it is none, or has not been yet.

    """
    from lading.metadata import times  # noqa: PLC0415 - see `with_registry`

    if text is None:
        return None
    now = times.now_us()
    if ago := _AGO.fullmatch(text):
        at_us = now - int(ago[1]) * _SECONDS[ago[2]] * times.SECOND_US
    else:
        try:
            at_us = times.parse(text)
        except ValueError as error:
            raise CommandRefused(
                f"{text!r} is no time", "write it as 2026-11-01T10:00:00Z, or as how long ago it was: 30m, 2h, 3d"
            ) from error
    if at_us < 0:
        raise CommandRefused(f"{text!r} is before there were registries", "name a later time")
    if at_us > now:
        raise CommandRefused(f"{times.to_second(at_us)} has not been yet", "name a time that has passed")
    return at_us
