"""`lading repo`: list, delete, restore and rename repositories."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, JsonOption, YesOption, confirm
from lading.cli.registry import PAGE_ENTRIES, actor, parse_moment, with_registry
from lading.cli.serve import ConfigOption
from lading.cli.terminal import Bar, columns
from lading.oci.names import parse_repository_name

if TYPE_CHECKING:
    from lading.app import OpenRegistry
    from lading.metadata.repositories import Contents
    from lading.registry.history import Plan, Restored

INCOMPLETE = 1

app = typer.Typer(help="List, delete, restore and rename repositories.", no_args_is_help=True)

RepositoryArgument = Annotated[str, typer.Argument(metavar="REPO", help="The repository.")]


@app.callback()
def _group() -> None:
    """List, delete, restore and rename repositories."""


@app.command("ls")
def list_repositories(
    config: ConfigOption = None,
    data: DataOption = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those that are deleted and can be restored.")] = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """List the repositories, empty ones too, with how many tags and manifests each has."""
    from lading.metadata import times  # noqa: PLC0415 - heavy: `lading --version` is quick without

    async def work(opened: "OpenRegistry") -> "list[Contents]":
        found: list[Contents] = []
        while page := await opened.registry.repositories.page(
            after=found[-1].name if found else "", entries=PAGE_ENTRIES, deleted=deleted
        ):
            found += page
        return found

    rows = [
        {
            "name": one.name,
            "tags": one.tags,
            "manifests": one.manifests,
            "deleted": None if one.deleted_us is None else times.to_second(one.deleted_us),
        }
        for one in with_registry(config, data, work)
    ]
    shown = ("name", "deleted") if deleted else ("name", "tags", "manifests")
    if as_json:
        typer.echo(json.dumps({"repositories": rows}, indent=2))
    else:
        typer.echo(columns([[name.upper() for name in shown], *([str(row[name]) for name in shown] for row in rows)]))


@app.command()
def delete(
    repository: RepositoryArgument,
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Delete a repository with all it has. It can be restored as long as setting collection.undo_seconds says."""
    name = parse_repository_name(repository)

    async def work(opened: "OpenRegistry") -> "Contents":
        found = await opened.registry.repositories.contents(name)
        confirm(f"Delete {name} with its {found.tags} tags and {found.manifests} manifests?", yes=yes)
        opened.confirm_writable()
        await opened.registry.repositories.delete(name, actor=actor())
        return found

    gone = with_registry(config, data, work)
    if as_json:
        typer.echo(json.dumps({"deleted": name, "tags": gone.tags, "manifests": gone.manifests}, indent=2))
    else:
        typer.echo(f"deleted {name}; to bring it back: lading repo restore {name}")


@app.command()
def rename(
    repository: RepositoryArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name, which no other may have.")],
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Give a repository another name, with all it has, its history and its unfinished uploads."""
    old, new = parse_repository_name(repository), parse_repository_name(new_name)

    async def work(opened: "OpenRegistry") -> None:
        confirm(f"Rename {old} to {new}? Clients that ask for {old} will find nothing.", yes=yes)
        opened.confirm_writable()
        await opened.registry.repositories.rename(old, new, actor=actor())

    with_registry(config, data, work)
    if as_json:
        typer.echo(json.dumps({"renamed": old, "to": new}, indent=2))
    else:
        typer.echo(f"{old} is {new} now")


@app.command()
def restore(
    repository: RepositoryArgument,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="As it was then: 2026-11-01T10:00:00Z, or 2h or 3d ago.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Bring a repository back as it was when it was deleted, or its tags and manifests as they were at --at.

    Nothing is taken away: a tag that came later stays. If it is cut short, give it again.
    """
    name, at_us = parse_repository_name(repository), parse_moment(at)

    async def work(opened: "OpenRegistry") -> "Restored":
        plan = await opened.registry.history.plan(name, at_us=at_us)
        confirm(_question(plan), yes=yes)
        with Bar() as bar:
            bar.begin("restoring", len(plan.tags) + len(plan.manifests))

            def step(amount: int) -> None:
                opened.confirm_writable()
                bar.advance(amount)

            return await opened.registry.history.restore_repository(plan, actor=actor(), step=step)

    done = with_registry(config, data, work)
    if as_json:
        document = {"restored": name, "tags": done.tags, "manifests": done.manifests, "failed": done.failed}
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(f"restored {name}: {done.tags} tags set, {done.manifests} manifests brought back")
        for sentence in done.failed:
            typer.echo(f"not restored: {sentence}", err=True)
    if done.failed:
        raise typer.Exit(INCOMPLETE)


def _question(plan: "Plan") -> str:
    return (
        f"Restore {plan.repository}: set {len(plan.tags)} tags as they were, "
        f"and bring back {len(plan.manifests)} deleted manifests?"
    )
