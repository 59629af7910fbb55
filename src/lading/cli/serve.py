"""`lading serve`: run the registry."""

import importlib.metadata
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lading.settings import Settings
    from lading.web.server import Listening
    from lading.web.sockets import Address

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognized, to show a name that can be called instead

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; without it ./lading.yaml, if there.")
]


def serve(
    config: ConfigOption = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where everything is kept (default ./data).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 5000); 0 picks a free one.")] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Worker processes (default one per core, at most 4).")
    ] = None,
) -> None:
    """Run the registry until Ctrl-C or SIGTERM."""
    from lading import app, logs, settings  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.web import server  # noqa: PLC0415

    in_force = settings.load(config, {"data": data, "http.host": host, "http.port": port, "http.workers": workers})
    logs.configure(in_force.log.format)
    code = server.run(
        settings=in_force,
        prepare=lambda: app.prepare(in_force),
        application=lambda: app.open_application(in_force),
        announce=lambda listening: _announce(in_force, listening),
    )
    raise typer.Exit(code)


def _announce(settings: "Settings", listening: "Listening") -> None:
    from lading.logs import STDOUT, event_logger  # noqa: PLC0415 - see `serve`

    first = listening.addresses[0]
    data = settings.data.absolute()
    if os.isatty(STDOUT) and settings.log.format != "json":
        typer.echo(_welcome(settings, listening))
    else:
        event_logger().info(
            "ready",
            host=first.host,
            port=first.port,
            data=str(data),
            workers=listening.workers,
            push=f"docker push {_authority(first)}/NAME",
            stop="SIGTERM",
        )
    exposed = [str(address) for address in listening.addresses if not ipaddress.ip_address(address.host).is_loopback]
    if exposed:
        event_logger().warning(
            "everybody who can reach this address may pull, push and delete: there is no authentication",
            addresses=exposed,
        )


def _authority(address: "Address") -> str:
    """Return the address as a client on this machine calls it."""
    return f"localhost:{address.port}" if address.host in _WILDCARDS else str(address)


def _welcome(settings: "Settings", listening: "Listening") -> str:
    first = listening.addresses[0]
    authority = _authority(first)
    places = ", ".join(f"http://{address}" for address in listening.addresses)
    return "\n".join(
        (
            "",
            f"Lading {importlib.metadata.version('lading')} is ready.",
            "",
            f"  listens on  {places}",
            f"  data in     {settings.data.absolute()}",
            f"  push        docker tag alpine {authority}/alpine",
            f"              docker push {authority}/alpine",
            "  stop        Ctrl-C",
            "",
        )
    )
