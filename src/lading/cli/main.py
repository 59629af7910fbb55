"""The program `lading`: its commands, and how an error that stops it is shown."""

# ruff: noqa: E402 - the first statement comes before what takes time to import
import signal

# Who rotates logs sends it, to a whole control group even, and its default action is to kill. We need none to reopen.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from lading.cli import (
    collection,
    config,
    events,
    htpasswd,
    repositories,
    scrub,
    serve,
    snapshots,
    store,
    tags,
    usage,
    verify,
)
from lading.oci.errors import LadingError, StartRefused

INTERRUPTED = 130

app = typer.Typer(
    name="lading",
    help="An OCI container registry an operator can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(verify.verify)
app.command()(scrub.scrub)
app.command()(events.events)
app.command()(usage.usage)
app.command()(htpasswd.htpasswd)
app.command("garbage-collect")(collection.garbage_collect)
app.command("restore-snapshot")(snapshots.restore_snapshot)
app.add_typer(repositories.app, name="repo")
app.add_typer(tags.app, name="tag")
app.add_typer(store.app, name="store")
app.add_typer(config.app, name="config")


def main() -> None:
    """Run the command line; an error that Lading raises on purpose is a sentence and an exit code, not a traceback."""
    _hold_standard_descriptors()
    try:
        app()
    except LadingError as error:
        _show(error)
        sys.exit(error.exit_code if isinstance(error, StartRefused) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _hold_standard_descriptors() -> None:
    """Point closed standard descriptors at /dev/null: else the next file opened, a database even, is our stdout."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _show(error: LadingError) -> None:
    first, *others = str(error).splitlines()
    lines = [f"error: {first}", *(f"       {line}" for line in others)]
    if isinstance(error, StartRefused) and error.hint:
        first, *others = error.hint.splitlines()
        lines += [f" hint: {first}", *(f"       {line}" for line in others)]
    typer.echo("\n".join(lines), err=True)


def _show_version(asked: bool) -> None:  # noqa: FBT001 - called so by typer
    if not asked:
        return
    from pysqlite3 import sqlite_version  # noqa: PLC0415 - only this answer needs it

    typer.echo(f"lading {importlib.metadata.version('lading')} (SQLite {sqlite_version})")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
