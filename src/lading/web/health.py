"""What is answered outside the registry's API: a page for people, and the probes of orchestrators."""

import asyncio
import base64
import hashlib
import html
import importlib.metadata
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lading.logs import event_logger
from lading.oci.errors import LadingError, RegistryError

READY_SECONDS = 2.0
DEFAULT_AUTHORITY = "localhost:5000"
# What docker takes for a registry's address; anything else in a Host header is not repeated.
AUTHORITY = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 4rem auto; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.5rem } small, p.quiet { color: #5a6675 } a { color: #0b5cad }
pre { background: #f2f5f8; padding: 1rem; border-radius: 6px; overflow-x: auto; font: 14px/1.6 ui-monospace, monospace }
@media (prefers-color-scheme: dark) {
  body { background: #12171e; color: #dde4ec } small, p.quiet { color: #94a1b0 } a { color: #7db8f2 }
  pre { background: #1c242e }
}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


Page = Callable[[Request], Awaitable[Response]]


def create(*, ready: Callable[[], Awaitable[None]], metrics: Page) -> ASGIApp:
    """Return the application; `ready` raises while requests could not be served: a LadingError is shown."""

    async def readyz(_: Request) -> Response:
        return await _readiness(ready)

    return Starlette(
        routes=[
            Route("/", _front_page),
            Route("/healthz", _alive),
            Route("/livez", _alive),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _error, RegistryError: _refusal},
    )


async def _front_page(request: Request) -> Response:
    version = importlib.metadata.version("lading")
    commands = _commands(_authority(request.headers.get("host", "")), is_plain=request.url.scheme == "http")
    if "text/html" in request.headers.get("accept", ""):
        reply = _reply(_page(version, commands), kind="text/html")
    else:
        reply = _reply(_text(version, commands))
    reply.headers["Vary"] = "Accept"
    return reply


async def _alive(_: Request) -> Response:
    return _reply("ok\n")


async def _readiness(ready: Callable[[], Awaitable[None]]) -> Response:
    try:
        async with asyncio.timeout(READY_SECONDS):
            await ready()
    except TimeoutError:
        return _not_ready(f"the registry did not answer itself within {READY_SECONDS:g} s")
    except LadingError as error:
        return _not_ready(str(error))
    except Exception:  # noqa: BLE001 - whatever it is, the answer is that we are not ready
        event_logger().exception("the readiness check failed")
        return _not_ready("an internal error; the server's log tells more")
    return _reply("ok\n")


def _not_ready(sentence: str) -> Response:
    return _reply(f"not ready: {sentence}\n", status=503, headers={"Retry-After": "1"})


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _reply(f"{error.detail}\n", status=error.status_code, headers=error.headers)


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, RegistryError)
    return _reply(f"{error}\n", status=error.status, headers=error.headers)


def _reply(
    text: str, *, status: int = 200, kind: str = "text/plain", headers: Mapping[str, str] | None = None
) -> Response:
    return Response(text, status, {**_HEADERS, **(headers or {})}, f"{kind}; charset=utf-8")


def _authority(host: str) -> str:
    """Return how this client names us to docker, which sends names without a dot or colon in front to Docker Hub."""
    if not AUTHORITY.fullmatch(host):
        return DEFAULT_AUTHORITY
    return host if host == "localhost" or "." in host or ":" in host else f"{host}:80"


def _commands(authority: str, *, is_plain: bool) -> str:
    """Return the lines that push an image; without TLS, podman and oras want to be told."""
    podman, oras = (" --tls-verify=false", " --plain-http") if is_plain else ("", "")
    return (
        f"docker tag alpine {authority}/alpine\n"
        f"docker push {authority}/alpine\n\n"
        f"podman push{podman} alpine {authority}/alpine\n\n"
        f"oras push{oras} {authority}/notes:v1 notes.txt\n"
    )


def _text(version: str, commands: str) -> str:
    return f"Lading {version}, an OCI registry, is running here.\n\nPush to it:\n\n{commands}\nThe API is at /v2/\n"


def _page(version: str, commands: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Lading</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Lading is running <small>{html.escape(version)}</small></h1>
<p>This is an OCI registry: it keeps container images, charts, signatures and any other artifact. Push to it:</p>
<pre>{html.escape(commands)}</pre>
<p class="quiet">Clients speak to it at <a href="/v2/">/v2/</a>.</p>
</body>
</html>
"""
