"""`lading restore-snapshot`: go back to an earlier state of the database."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lading.cli.offline import DataOption, JsonOption, YesOption, claimed, confirm, data_directory
from lading.cli.serve import ConfigOption
from lading.oci.errors import CommandRefused, LadingError

if TYPE_CHECKING:
    from lading.metadata.snapshots import Snapshot
    from lading.upkeep.restoration import Restoration


def restore_snapshot(
    name: Annotated[str | None, typer.Argument(help="The snapshot's file name; without it, the newest.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the snapshots, change nothing.")] = False,  # noqa: FBT002 - a flag
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Go back to a copy of the database, taken daily and before each upgrade. The present one is kept aside."""
    from lading.metadata import snapshots  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.upkeep import restoration  # noqa: PLC0415

    place = data_directory(config, data)
    found = snapshots.find(place / snapshots.FOLDER)
    if list_them:
        typer.echo(_document(found) if as_json else _table(found))
        return
    chosen = _choose(found, name, place / snapshots.FOLDER)
    with claimed(place):
        planned = restoration.plan(place, chosen)
        confirm(f"{_promise(planned)}\nGo back to it?", yes=yes)
        kept = restoration.restore(place, planned)
    typer.echo(_outcome_document(planned, kept) if as_json else _outcome(planned, kept))


def _choose(found: "list[Snapshot]", name: str | None, folder: Path) -> "Snapshot":
    if not found:
        raise CommandRefused(f"there is no snapshot in {folder}", "they are taken daily, and before each upgrade")
    if name is None:
        return found[0]
    for snapshot in found:
        if snapshot.path.name in {name, f"{name}.db"}:
            return snapshot
    raise CommandRefused(f"there is no snapshot {name} in {folder}", "lading restore-snapshot --list")


def _row(snapshot: "Snapshot") -> dict[str, Any]:
    from lading.metadata.snapshots import contents  # noqa: PLC0415 - see `restore_snapshot`

    row = {
        "name": snapshot.path.name,
        "at": snapshot.at.isoformat(),
        "kind": snapshot.kind.value,
        "revision": snapshot.revision,
        "bytes": snapshot.content_bytes,
    }
    try:
        return {**row, "seq": contents(snapshot.path).seq}
    except LadingError as error:
        return {**row, "seq": None, "problem": str(error)}


def _document(found: "list[Snapshot]") -> str:
    return json.dumps({"snapshots": [_row(snapshot) for snapshot in found]}, indent=2)


def _table(found: "list[Snapshot]") -> str:
    if not found:
        return "no snapshots"
    rows = [("NAME", "TAKEN (UTC)", "SIZE", "CHANGES")]
    for snapshot in found:
        row = _row(snapshot)
        changes = "damaged" if row["seq"] is None else str(row["seq"])
        rows.append((row["name"], f"{snapshot.at:%Y-%m-%d %H:%M:%S}", _size(snapshot.content_bytes), changes))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _size(content_bytes: int) -> str:
    return f"{content_bytes / 2**20:.1f} MiB"


def _promise(planned: "Restoration") -> str:
    snapshot = planned.snapshot
    hours = (datetime.now(UTC) - snapshot.at).total_seconds() / 3600
    return (
        f"{snapshot.path.name} was taken {hours:.1f} hours ago, after change {planned.contents.seq}.\n{_loss(planned)}"
    )


def _loss(planned: "Restoration") -> str:
    if planned.lost is None:
        return "Every change after that is lost; how many is not known, for the present database cannot be read."
    if planned.current is None:
        return f"At least {planned.lost} later changes are lost; the present database cannot be read."
    return f"{planned.lost} later changes are lost." if planned.lost else "No later change is lost."


def _outcome(planned: "Restoration", kept: Path | None) -> str:
    lines = [f"The database is now that of {planned.snapshot.path.name}. {_loss(planned)}"]
    if kept is not None:
        lines.append(f"The one before is kept as {kept}.")
    lines += (
        "",
        "Start the server: it serves pulls and pushes. What was pushed after the snapshot is unknown to it; pushing it",
        "again brings it back. Its files are still there: nothing is removed from the store until you give, with the",
        "server stopped,",
        "",
        "    lading store acknowledge",
    )
    return "\n".join(lines)


def _outcome_document(planned: "Restoration", kept: Path | None) -> str:
    return json.dumps(
        {
            "restored": planned.snapshot.path.name,
            "seq": planned.contents.seq,
            "lost": planned.lost,
            "replaced": None if kept is None else str(kept),
        },
        indent=2,
    )
