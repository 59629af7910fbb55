"""`lading store`: which objects the database speaks of, and the ways out when the start was refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lading.cli.offline import DataOption, JsonOption, YesOption, claimed, confirm, data_directory
from lading.cli.serve import ConfigOption
from lading.oci.errors import CommandRefused

if TYPE_CHECKING:
    from lading.storage.identity import Marker
    from lading.upkeep.adoption import Standing

app = typer.Typer(help="See which objects the database speaks of, and mend what a start refuses.", no_args_is_help=True)

_MEANINGS = {
    "ok": "the database and the objects belong together",
    "new": "nothing is stored yet",
    "unmarked": "nothing is stored yet; the next start writes the marker",
    "objects-lost": "the objects were moved away or emptied: the server does not start",
    "database-lost": "the database is new, the objects are not: the server does not start",
    "strangers": "the database and the objects belong to different registries: the server does not start",
    "rolled-back": "the database is older than what its store has seen: nothing is removed until acknowledged",
    "superseded": "another state of the database has taken over the store: the server is read-only",
}


@app.callback()
def _group() -> None:
    """See which objects the database speaks of, and mend what a start refuses."""


@app.command()
def status(config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:  # noqa: FBT002 - a flag
    """Show what the database and the objects say of each other; also beside a running server."""
    from lading.upkeep import adoption  # noqa: PLC0415 - heavy: `lading --version` is quick without

    place = data_directory(config, data)
    with adoption.looked_into(place) as connection:
        standing = adoption.standing(connection, place)
    typer.echo(_document(standing) if as_json else _text(standing))


@app.command()
def adopt(
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Give the objects that are there to the database that is there, whatever they belonged to before."""
    from lading.upkeep import adoption  # noqa: PLC0415 - see `status`

    place = data_directory(config, data)
    with claimed(place), adoption.opened(place) as connection:
        standing = adoption.standing(connection, place)
        adoption.refuse_needless_adoption(standing)
        missing = _count_missing(adoption.count_missing, connection, place, standing)
        if standing.objects and missing == standing.objects:
            raise CommandRefused(
                f"none of the database's {standing.objects} objects is in {place / 'objects'}",
                "put the right objects back; if they are lost: lading store mark-missing",
            )
        found = standing.objects - missing
        confirm(f"{found} of the database's {standing.objects} objects are there. Adopt them?", yes=yes)
        marker = adoption.adopt(connection, place)
        held = adoption.standing(connection, place).store
    _done("adopted", marker, standing.objects, missing, as_json=as_json)
    if not as_json and held is not None and held.held_reason is not None:
        typer.echo("nothing is removed from the store until you give: lading store acknowledge")


@app.command("mark-missing")
def mark_missing(
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Go on without objects that are lost: their blobs are absent until clients push them again."""
    from lading.upkeep import adoption  # noqa: PLC0415 - see `status`

    place = data_directory(config, data)
    with claimed(place), adoption.opened(place) as connection:
        standing = adoption.standing(connection, place)
        adoption.refuse_needless_marking(standing)
        missing = _count_missing(adoption.count_missing, connection, place, standing)
        if standing.objects and not missing:
            raise CommandRefused(f"all {standing.objects} objects of the database are there", "lading store adopt")
        confirm(f"{missing} of the database's {standing.objects} objects are lost. Go on without them?", yes=yes)
        marker = adoption.mark_missing(connection, place)
    _done("marked", marker, standing.objects, missing, as_json=as_json)


@app.command()
def acknowledge(
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Let the registry remove again what its database does not know: after a rollback, a restore or an adoption."""
    from lading.upkeep import adoption  # noqa: PLC0415 - see `status`

    place = data_directory(config, data)
    with claimed(place), adoption.opened(place) as connection:
        standing = adoption.standing(connection, place)
        adoption.refuse_needless_acknowledgement(standing)
        confirm("Files of what the database does not know may be removed from now on. Is that right?", yes=yes)
        marker = adoption.acknowledge(connection, place)
    _done("acknowledged", marker, standing.objects, None, as_json=as_json)


def _count_missing(count: "Callable[..., int]", connection: object, place: Path, standing: "Standing") -> int:
    if standing.store is None:
        return 0
    with _progress("looking for objects", standing.objects) as looked:
        return count(connection, place, standing.store, looked)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console  # noqa: PLC0415 - see `status`
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _done(what: str, marker: "Marker", objects: int, missing: int | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps({"done": what, "objects": objects, "missing": missing, "marker": asdict(marker)}, indent=2)
        )
        return
    typer.echo(f"{what}: store {marker.store_uid}, database {marker.database_uid}, epoch {marker.epoch}")
    if missing:
        typer.echo(f"{missing} of {objects} objects are absent; each comes back when it is pushed again")
    typer.echo("start the server")


def _document(standing: "Standing") -> str:
    return json.dumps({**asdict(standing), "may_remove": _may_remove(standing)}, indent=2)


def _may_remove(standing: "Standing") -> bool:
    return standing.verdict == "ok" and standing.store is not None and standing.store.held_reason is None


def _text(standing: "Standing") -> str:
    rows = [("standing", standing.problem or _MEANINGS[str(standing.verdict)])]
    if standing.store is not None:
        store = standing.store
        rows.append(("database", f"{store.database_uid}, epoch {store.epoch}, {standing.seq} changes"))
        rows.append(("its store", f"{store.store_uid}, {standing.objects} objects"))
        if store.held_reason is not None:
            rows.append(("held", f"nothing is removed: {store.held_reason} (lading store acknowledge)"))
    if standing.marker is not None:
        marker = standing.marker
        rows.append(("marker", f"store {marker.store_uid} of database {marker.database_uid}"))
        rows.append(("", f"epoch {marker.epoch}, seen up to change {marker.seq}"))
    return "\n".join(f"{name:<10} {text}".rstrip() for name, text in rows)
