"""`lading serve`: run the registry."""

import importlib.metadata
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


def serve(  # noqa: PLR0913, PLR0917 - each is a flag
    config: ConfigOption = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where everything is kept (default ./data).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 5000); 0 picks a free one.")] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Worker processes (default one per core, at most 4).")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speak TLS with this certificate and chain, a PEM file.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key.")] = None,
    htpasswd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The users: only they may push. Made by `lading htpasswd`.")
    ] = None,
    open_: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--open", help="Listen beyond this machine although there is no authentication.")
    ] = False,
) -> None:
    """Run the registry until Ctrl-C or SIGTERM."""
    from lading import app, logs, settings  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.web import server  # noqa: PLC0415

    flags = {
        "data": data,
        "http.host": host,
        "http.port": port,
        "http.workers": workers,
        "http.tls_certificate": tls_certificate,
        "http.tls_key": tls_key,
        "auth.htpasswd": htpasswd,
        "auth.open": open_ or None,
    }
    in_force = settings.load(config, flags)
    for file in (in_force.log.file, in_force.log.access_file):
        if file is not None:
            logs.make_file(file)
    logs.configure(in_force.log.format, file=in_force.log.file)

    def reread() -> settings.Settings:
        new = settings.load(config, flags)
        app.check_users(new)
        return new

    service = server.Service(
        prepare=lambda alone: app.prepare(in_force, alone=alone),
        application=app.open_application,
        announce=lambda listening: _announce(in_force, listening),
        reread=reread,
    )
    code = server.run(in_force, service)
    raise typer.Exit(code)


def _announce(settings: "Settings", listening: "Listening") -> None:
    from lading.logs import STDOUT, event_logger  # noqa: PLC0415 - see `serve`
    from lading.web import exposure  # noqa: PLC0415

    first = listening.addresses[0]
    data = settings.data.absolute()
    is_read_by_a_person = os.isatty(STDOUT) and settings.log.format in {"auto", "console"}
    if is_read_by_a_person:
        typer.echo(_welcome(settings, listening))
    if not is_read_by_a_person or settings.log.file is not None:
        event_logger().info(
            "ready",
            host=first.host,
            port=first.port,
            url=_url(settings, first),
            data=str(data),
            workers=listening.workers,
            push=f"docker push {_authority(first)}/NAME",
            stop="SIGTERM",
        )
    exposure.warn(settings, listening.addresses)


def _authority(address: "Address") -> str:
    """Return the address as a client on this machine calls it; of a Unix socket only its proxy knows the name."""
    if address.port is None:
        return "REGISTRY"
    return f"localhost:{address.port}" if address.host in _WILDCARDS else str(address)


def _url(settings: "Settings", address: "Address") -> str:
    if address.port is None:
        return str(address)
    return f"{'http' if settings.http.tls_certificate is None else 'https'}://{address}"


def _welcome(settings: "Settings", listening: "Listening") -> str:
    first = listening.addresses[0]
    authority = _authority(first)
    places = ", ".join(_url(settings, address) for address in listening.addresses)
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
