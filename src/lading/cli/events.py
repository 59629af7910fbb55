"""`lading events`: what has changed, in order and without a gap."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, data_directory, reading
from lading.cli.serve import ConfigOption
from lading.cli.terminal import plain, rest, until_nobody_reads

if TYPE_CHECKING:
    from lading.metadata.feed import Change

_FOLLOW_SECONDS = 0.25


def events(
    config: ConfigOption = None,
    data: DataOption = None,
    since: Annotated[int | None, typer.Option(metavar="SEQ", min=0, help="Only changes after this number.")] = None,
    follow: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--follow", "-f", help="Go on with what happens; without --since, from now on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Print every change of the registry, numbered without a gap: all that are kept, or those after a number.

    It only reads. A server may run meanwhile.
    """
    from lading.upkeep.feed import FeedReader  # noqa: PLC0415 - heavy: `lading --version` is quick without

    show = _object if as_json else _line
    with reading(data_directory(config, data)) as database, until_nobody_reads():
        reader = FeedReader(database, after=since)
        if follow and since is None:
            reader.go_to_end()
        while True:
            page = reader.next_page()
            if page:
                typer.echo("\n".join(map(show, page)))
            elif follow:
                rest(_FOLLOW_SECONDS)
            else:
                return


def _object(change: "Change") -> str:
    from lading.metadata import times  # noqa: PLC0415 - see `events`

    document = {
        "seq": change.seq,
        "at": times.text(change.at_us),
        "kind": change.kind,
        "repository": change.repository,
        "tag": change.tag,
        "digest": change.digest and str(change.digest),
        "actor": change.actor,
    }
    if change.renamed_from is not None:
        document["renamed_from"] = change.renamed_from
    return json.dumps(document)


def _line(change: "Change") -> str:
    from lading.metadata import times  # noqa: PLC0415 - see `events`

    subject = change.repository + (f":{change.tag}" if change.tag is not None else "")
    parts = [str(change.seq), times.text(change.at_us), f"{change.kind:<20}", subject or "-"]
    if change.renamed_from is not None:
        parts.append(f"from {change.renamed_from}")
    if change.digest is not None:
        parts.append(str(change.digest))
    return plain("  ".join([*parts, f"by {change.actor}"]))
