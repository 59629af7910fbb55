"""`lading tag`: list and delete tags, see what one was, and bring that back."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, JsonOption, YesOption, confirm
from lading.cli.registry import PAGE_ENTRIES, actor, parse_moment, parse_tag, with_registry
from lading.cli.serve import ConfigOption
from lading.cli.terminal import columns
from lading.oci.errors import CommandRefused

if TYPE_CHECKING:
    from lading.app import OpenRegistry
    from lading.metadata.history import Event
    from lading.metadata.tags import Described

app = typer.Typer(help="List and delete tags, see what one was, and bring that back.", no_args_is_help=True)

TagArgument = Annotated[str, typer.Argument(metavar="REPO:TAG", help="The repository and the tag.")]


@app.callback()
def _group() -> None:
    """List and delete tags, see what one was, and bring that back."""


@app.command("ls")
def list_tags(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="The repository.")],
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """List the tags of a repository: what each names, since when, and what that is."""
    from lading.metadata import times  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.oci.names import parse_repository_name  # noqa: PLC0415

    name = parse_repository_name(repository)

    async def work(opened: "OpenRegistry") -> "list[Described]":
        found: list[Described] = []
        while page := await opened.registry.tags.described(
            name, last=found[-1].name if found else "", entries=PAGE_ENTRIES
        ):
            found += page
        return found

    rows = [
        {
            "tag": tag.name,
            "digest": str(tag.digest),
            "since": times.to_second(tag.since_us),
            "type": tag.artifact_type or tag.media_type,
        }
        for tag in with_registry(config, data, work)
    ]
    if as_json:
        typer.echo(json.dumps({"repository": name, "tags": rows}, indent=2))
    else:
        typer.echo(columns([("TAG", "DIGEST", "SINCE", "TYPE"), *(tuple(row.values()) for row in rows)]))


@app.command()
def delete(
    tag: TagArgument,
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Delete a tag, and nothing else. It can be restored as long as setting collection.undo_seconds says."""
    repository, name = parse_tag(tag)

    async def work(opened: "OpenRegistry") -> None:
        confirm(f"Delete the tag {name} of {repository}?", yes=yes)
        opened.confirm_writable()
        await opened.registry.tags.delete(repository, name, actor=actor())

    with_registry(config, data, work)
    if as_json:
        typer.echo(json.dumps({"deleted": tag}, indent=2))
    else:
        typer.echo(f"deleted {tag}; to bring it back: lading tag restore {tag}")


@app.command()
def history(
    tag: TagArgument,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what a tag named, since when, and who changed it; the newest first, as far as it can be restored."""
    from lading.metadata import times  # noqa: PLC0415 - see `list_tags`

    repository, name = parse_tag(tag)

    async def work(opened: "OpenRegistry") -> "list[tuple[Event, str | None]]":
        events: list[Event] = []
        before_us: int | None = None
        while True:
            page = await opened.registry.history.events(
                repository, name.name, before_us=before_us, entries=PAGE_ENTRIES
            )
            events += page.events
            before_us = page.following_us
            if before_us is None:
                break
        if not events:
            await opened.registry.history.find(repository, name, at_us=None, digest=None)  # raises: says why
        deleters = await opened.registry.history.deleters(repository, name.name)
        return [(event, deleters.get(event.at_us) if event.deleted else event.actor) for event in events]

    rows = [
        {
            "at": times.text(event.at_us),
            "event": "deleted" if event.deleted else "created",
            "digest": str(event.digest),
            "by": by or "",
        }
        for event, by in with_registry(config, data, work)
    ]
    if as_json:
        typer.echo(json.dumps({"repository": repository, "tag": name.name, "events": rows}, indent=2))
    else:
        typer.echo(columns([("AT", "EVENT", "DIGEST", "BY"), *(tuple(row.values()) for row in rows)]))


@app.command()
def restore(  # noqa: PLR0913, PLR0917 - each is a flag
    tag: TagArgument,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="As it was then: 2026-11-01T10:00:00Z, or 2h or 3d ago.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIGEST", help="To this manifest, which it has named before.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Have a tag name what it named before its last change, or what --at or --to says, and bring that back.

    This is a change like any other: it is in the history, and can be undone.
    """
    from lading.oci.digest import Digest  # noqa: PLC0415 - see `list_tags`

    repository, name = parse_tag(tag)
    if at is not None and to is not None:
        raise CommandRefused("--at and --to both say what to restore", "give one of them")
    at_us, wanted = parse_moment(at), None if to is None else Digest.parse(to)

    async def work(opened: "OpenRegistry") -> "tuple[Digest, bool]":
        digest = await opened.registry.history.find(repository, name, at_us=at_us, digest=wanted)
        confirm(f"Have {tag} name {digest}?", yes=yes)
        opened.confirm_writable()
        return digest, await opened.registry.history.restore_tag(repository, name, digest, actor=actor())

    digest, changed = with_registry(config, data, work)
    if as_json:
        typer.echo(json.dumps({"restored": tag, "digest": str(digest), "changed": changed}, indent=2))
    else:
        typer.echo(f"{tag} names {digest}" + ("" if changed else ", as it did before"))
