"""What wraps every request: limits of its head, the way to /v2/ or the pages, one line of log, no escape for faults."""

import asyncio
import os
import time
from collections.abc import Sequence

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lading.logs import AccessLog
from lading.metrics import here
from lading.oci.errors import (
    ClientGone,
    Denied,
    HeadersTooLarge,
    Internal,
    RegistryError,
    RequestInvalid,
    TargetTooLong,
)
from lading.web import errors
from lading.web.http_head import MAX_HEADERS_BYTES, MAX_TARGET_BYTES
from lading.web.replies import ZERO_COPY

log = structlog.get_logger(__name__)

MAX_HEADER_FIELDS = 100
SEND_SECONDS = 60.0
CLIENT_GONE_STATUS = 499
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Front:
    """The outermost application: `/v2/` goes to the registry API, everything else to the pages."""

    def __init__(self, v2: ASGIApp, pages: ASGIApp, access_log: AccessLog) -> None:
        self._v2 = v2
        self._pages = pages
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log it."""
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, send)
        try:
            _refuse_excess(scope)
            app = self._v2 if _is_registry_path(scope["raw_path"]) else self._pages
            await app(scope, receive, exchange.send)
        except ClientGone:
            exchange.status = exchange.status or CLIENT_GONE_STATUS
        except RegistryError as error:
            await exchange.fail(error)
        except (OSError, TimeoutError) as error:
            log.warning("reply cut off", request_id=exchange.request_id, error=repr(error))
            raise
        except Exception:
            log.exception("fault", request_id=exchange.request_id, path=scope["path"])
            await exchange.fail(Internal())
        finally:
            exchange.write_to(self._access_log)


class _Exchange:
    """One request and what became of it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began_ns = time.perf_counter_ns()
        self.request_id = os.urandom(8).hex()
        self.status = 0
        self._id_header = (b"x-request-id", self.request_id.encode())
        scope["state"] = {}

    async def send(self, message: Message) -> None:
        """Pass a message on, within a deadline; a reply gets the request's id.

        Raises:
            TimeoutError: the client took nothing for 60 seconds.

        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append(self._id_header)
        if message["type"] == ZERO_COPY:  # a large piece, for which the server minds that it moves
            await self._send(message)
            return
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)

    async def fail(self, error: RegistryError) -> None:
        """Answer with an error, if nothing has been answered; cut the connection otherwise."""
        if self.status:
            raise ConnectionError("the reply had begun") from error
        reply = errors.render(error)
        headers = [*reply.raw_headers(), errors.API_VERSION, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = reply.body if isinstance(reply.body, bytes) and self._scope["method"] != "HEAD" else b""
        await self.send({"type": "http.response.body", "body": body})

    def write_to(self, access_log: AccessLog) -> None:
        """Write the access log's line."""
        state = self._scope["state"]
        client = self._scope.get("client")
        received, sent = state.get("received", 0), state.get("bytes", 0)
        duration_ns = time.perf_counter_ns() - self._began_ns
        here.request(state.get("route"), self._scope["method"], self.status, received, sent, duration_ns)
        access_log.write(
            request_id=self.request_id,
            method=self._scope["method"],
            route=state.get("route") or self._scope["path"],
            repository=state.get("repository") or None,
            tag=state.get("tag") or None,
            digest=state.get("digest") or None,
            actor=state.get("actor"),
            status=self.status,
            sent_bytes=sent,
            received_bytes=received,
            duration_us=duration_ns // 1000,
            client=client[0] if client else _nearby(self._scope),
        )


def _nearby(scope: Scope) -> str | None:
    """Return what stands in the log for a client without an address: all of a Unix socket, whose server has no port."""
    server = scope.get("server")
    return "unix" if server is None or server[1] is None else None


def _refuse_foreign(origin: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse what a page of another site sends through somebody's browser. No client of the registry sends Origin."""
    host = next((value for name, value in headers if name == b"host"), b"")
    if origin.partition(b"://")[2] != host:
        raise Denied("a page of another site may not write to this registry")


def _is_registry_path(raw_path: bytes) -> bool:
    return raw_path[:4] == b"/v2/" or raw_path == b"/v2"


def _refuse_excess(scope: Scope) -> None:
    """Hold the request's head to its limits (trust: a name, a token and a page of tags fit many times)."""
    query_bytes = len(scope["query_string"])
    if len(scope["raw_path"]) + query_bytes + bool(query_bytes) > MAX_TARGET_BYTES:
        raise TargetTooLong(f"the request target is limited to {MAX_TARGET_BYTES} bytes")
    headers = scope["headers"]
    if len(headers) > MAX_HEADER_FIELDS:
        raise HeadersTooLarge(f"at most {MAX_HEADER_FIELDS} header fields are accepted")
    size = hosts = 0
    for name, value in headers:
        size += len(name) + len(value)
        hosts += name == b"host"
        if name == b"origin" and scope["method"] not in _READING:
            _refuse_foreign(value, headers)
    if size > MAX_HEADERS_BYTES:
        raise HeadersTooLarge(f"the header fields are limited to {MAX_HEADERS_BYTES} bytes")
    if hosts != 1 and not (hosts == 0 and scope["http_version"] == "1.0"):
        raise RequestInvalid("a request has exactly one Host")
