"""The ASGI application under /v2/: from a scope to a reply, the same way for every route."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from lading.auth.identity import Identity
from lading.auth.policy import Action, Policy
from lading.oci.errors import ClientGone, MethodNotAllowed, RegistryError
from lading.registry.registry import Registry
from lading.web import errors
from lading.web.bodies import Body
from lading.web.replies import ZERO_COPY, BlobBody, Reply, send_body
from lading.web.v2.request import Query, Request
from lading.web.v2.routes import Place, Route, locate, routes

_DRAIN_BYTES = 8 * 1024 * 1024
_DRAIN_SECONDS = 5.0
_WATCHED_BYTES = 1024 * 1024


class V2:
    """Finds the route, asks the policy, calls the handler, sends the reply."""

    def __init__(self, registry: Registry, policy: Policy, *, max_page_entries: int) -> None:
        self._registry = registry
        self._policy = policy
        self._routes = routes(max_page_entries=max_page_entries)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What went into the access log's record is in `scope["state"]`."""
        body = Body(scope, receive, _declared_bytes(scope))
        try:
            reply = await self._answer(scope, body)
        except RegistryError as error:
            reply = errors.render(error)
        try:
            await self._send(scope, body, reply, send)
        finally:
            scope["state"]["received"] = body.received
            if isinstance(reply.body, BlobBody):
                reply.body.close()

    async def _answer(self, scope: Scope, body: Body) -> Reply:
        authorization = _authorization(scope)
        try:
            route, place, repository = self._locate(scope)
            if scope["method"] == "OPTIONS":
                return _preflight(route)
            endpoint = route.methods.get(scope["method"])
            if endpoint is None:
                raise MethodNotAllowed(tuple(route.methods))
        except RegistryError:
            await self._policy.authorize(authorization, Action.PING, None)
            raise
        # Decided here, once, before the body: a long upload is never asked twice.
        identity = await self._policy.authorize(authorization, endpoint.action, repository or None)
        state = scope["state"]
        state["actor"] = identity.name
        reply = await endpoint.handler(self._request(scope, body, place, repository, identity))
        state["digest"] = reply.headers.get("Docker-Content-Digest", state["digest"])
        return reply

    def _locate(self, scope: Scope) -> tuple[Route, Place, str]:
        """Return the route, what stands in its path, and the repository; tell them to the access log."""
        state = scope["state"]
        place = locate(scope["raw_path"])
        state["route"] = place.route
        state["digest"] = place.target if ":" in place.target else ""
        state["tag"] = place.target if place.route == "manifest" and not state["digest"] else ""
        state["repository"] = repository = place.repository
        return self._routes[place.route], place, repository

    def _request(self, scope: Scope, body: Body, place: Place, repository: str, identity: Identity) -> Request:
        return Request(
            scope=scope,
            method=scope["method"],
            repository=repository,
            target=place.target,
            query=Query(scope["query_string"]),
            body=body,
            identity=identity,
            policy=self._policy,
            registry=self._registry,
        )

    async def _send(self, scope: Scope, body: Body, reply: Reply, send: Send) -> None:
        """Send the reply. A client that is still sending is heard out within bounds, so that it reads the answer."""
        unread = not body.finished
        zero_copy = ZERO_COPY in scope.get("extensions", {})
        headers = [*reply.raw_headers(), errors.API_VERSION]
        if unread:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": unread})
        elif reply.length > _WATCHED_BYTES and not unread:
            scope["state"]["bytes"] = await _send_watched(body, reply, send, zero_copy=zero_copy)
        else:
            scope["state"]["bytes"] = await send_body(send, reply, zero_copy=zero_copy, more=unread)
        if unread:
            await body.drain(_DRAIN_BYTES, _DRAIN_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_watched(body: Body, reply: Reply, send: Send, *, zero_copy: bool) -> int:
    """Send a long body, and stop when the client leaves: a server may take for sent what nobody receives."""
    gone = asyncio.create_task(body.client_gone())

    async def send_unless_gone(message: Message) -> None:
        if gone.done():
            raise ClientGone
        await send(message)

    try:
        return await send_body(send_unless_gone, reply, zero_copy=zero_copy)
    finally:
        gone.cancel()


def _authorization(scope: Scope) -> str | None:
    """Return the header's value; two of them become a list (RFC 9110, 5.3), which no scheme can read."""
    values = [value for key, value in scope["headers"] if key == b"authorization"]
    return b", ".join(values).decode("latin-1") if values else None


def _preflight(route: Route) -> Reply:
    """Answer a browser's preflight without credentials, as it can send none.

    No origin is granted: a page of some other site must not push through the browser of someone who runs a registry.
    """
    methods = ", ".join((*route.methods, "OPTIONS"))
    return Reply(204, {"Allow": methods, "Access-Control-Allow-Methods": methods, "Vary": "Origin"})


def _declared_bytes(scope: Scope) -> int | None:
    """Return the body's length; 0 where the request has no body, None where it comes in chunks."""
    declared: int | None = 0
    for key, value in scope["headers"]:
        if key == b"content-length":
            declared = int(value)
        elif key == b"transfer-encoding":
            return None
    return declared
