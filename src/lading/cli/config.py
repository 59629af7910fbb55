"""`lading config`: look at the settings without starting anything."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.serve import ConfigOption
from lading.oci.errors import SettingsInvalid

if TYPE_CHECKING:
    from lading.settings import Trace

app = typer.Typer(help="Look at the settings.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at the settings."""


@app.command()
def check(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Print the settings in force and where each was read, or what is wrong with them (exit code 2)."""
    from lading import settings  # noqa: PLC0415 - heavy: `lading --version` is quick without

    try:
        trace = settings.trace(config, {})
    except SettingsInvalid as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"valid": False, "problems": error.message.splitlines()}, indent=2))
        raise typer.Exit(error.exit_code) from error
    typer.echo(_document(trace) if as_json else _table(trace))


def _document(trace: "Trace") -> str:
    values = {path: {"value": trace.value(path), "source": source} for path, source in trace.sources.items()}
    return json.dumps({"valid": True, "settings": values}, indent=2, default=str)


def _table(trace: "Trace") -> str:
    rows = [(path, json.dumps(trace.value(path), default=str), source) for path, source in trace.sources.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{path:<{widths[0]}}  {value:<{widths[1]}}  {source}" for path, value, source in rows)
