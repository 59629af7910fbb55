"""What commands share that work on a data directory: their options, its claim or a look into it, and the question."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lading.oci.errors import CommandRefused, VerifyRefused

if TYPE_CHECKING:
    from lading.metadata.verify import ReadOnlyDatabase
    from lading.settings import Settings

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The registry's data directory (default ./data).")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
STDERR = 2


def data_directory(config: Path | None, data: Path | None) -> Path:
    """Return the data directory in force; events of this process go to standard error.

    Raises:
        CommandRefused: there is no registry in it.

    """
    return settings_of_registry(config, data).data


def settings_of_registry(config: Path | None, data: Path | None) -> "Settings":
    """Return the settings in force; events of this process go to standard error.

    Raises:
        CommandRefused: there is no registry in the data directory.

    """
    from lading import logs, settings  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.metadata.database import FILE  # noqa: PLC0415
    from lading.storage.identity import marker_path  # noqa: PLC0415

    in_force = settings.load(config, {"data": data})
    # What is said to a person does not go to the journal because the server's does.
    logs.configure("auto" if in_force.log.format == "journal" else in_force.log.format, fd=STDERR)
    place = in_force.data
    if not (place / FILE).exists() and not marker_path(place).exists() and not any(place.glob(f"{FILE}*")):
        raise CommandRefused(f"there is no registry in {place.absolute()}", "name its data directory with --data")
    return in_force


@contextlib.contextmanager
def reading(place: Path) -> Iterator["ReadOnlyDatabase"]:
    """Open the directory's database to read it, beside a server or without one.

    Raises:
        CommandRefused: it cannot be read, or has another schema.

    """
    from lading.metadata.database import FILE  # noqa: PLC0415 - see `data_directory`
    from lading.metadata.verify import DatabaseDamaged, ReadOnlyDatabase, refuse_other_schema, revision  # noqa: PLC0415

    try:
        database = ReadOnlyDatabase(place / FILE)
        refuse_other_schema(database.read(revision), place / FILE)
        yield database
    except VerifyRefused as refusal:
        raise CommandRefused(refusal.message, refusal.hint) from refusal
    except DatabaseDamaged as damage:
        raise CommandRefused(f"the database {place / FILE} is damaged: {damage}", "lading verify") from damage


@contextlib.contextmanager
def claimed(place: Path) -> Iterator[None]:
    """Hold the directory, as a server does, while no other command has its database open.

    Raises:
        DataDirectoryInUse: a server runs on it.
        CommandRefused: another command does.

    """
    from lading.upkeep.turns import nobody_beside  # noqa: PLC0415 - see `data_directory`
    from lading.web import directory  # noqa: PLC0415

    with directory.claimed(place), nobody_beside(place):
        yield


def confirm(question: str, *, yes: bool) -> None:
    """Return when the operator agrees.

    Raises:
        CommandRefused: they do not, or nobody can be asked.

    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandRefused(f"nobody is here to ask: {question}", "add --yes to do it")
    if not typer.confirm(question, err=True):
        raise CommandRefused("nothing was changed")
