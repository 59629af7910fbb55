"""HTTP/1.1 over a socket: sends exactly what a test says and keeps exactly what comes back.

It is no registry client and no lenient one: it follows nothing, retries nothing, decodes nothing, and a reply whose
framing is wrong is an error.
"""

import json
import re
import socket
import ssl
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
Body = bytes | Iterable[bytes]

# What Go's clients put into one frame of a chunked body.
FRAME_BYTES = 32 * 1024
SHOWN_BODY_BYTES = 2000


class WireError(Exception):
    """The peer closed too early or sent something that is not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, together with the request that it answers; as a string it shows both."""

    request: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return every value of the header `name`, in the order received."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """Return the value of the header `name`, or None; a header that comes twice is an error."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times\n{self}"
        return values[0] if values else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"no header {name}\n{self}"
        return value

    def json(self) -> Any:
        """Return the body, parsed."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise AssertionError(f"the body is not JSON: {error}\n{self}") from error

    def expect(self, status: int, headers: Mapping[str, str | None] | None = None) -> Self:
        """Assert the status and the values of `headers`, where None stands for an absent one."""
        assert self.status == status, f"expected {status}\n{self}"
        for name, value in (headers or {}).items():
            assert self.get(name) == value, f"expected {name}: {value}\n{self}"
        return self

    def expect_error(self, status: int, code: str) -> Self:
        """Assert an error in the specification's form, with `code` first; the reply to a HEAD has no body."""
        self.expect(status, {"Docker-Distribution-Api-Version": "registry/2.0"})
        if self.request.startswith("HEAD "):
            return self
        assert self["Content-Type"].partition(";")[0] == "application/json", f"expected a JSON error\n{self}"
        document = self.json()
        assert isinstance(document, dict), f"expected an object\n{self}"
        assert isinstance(document.get("errors"), list), f"expected a list of errors\n{self}"
        assert document["errors"], f"expected an error\n{self}"
        for error in document["errors"]:
            assert re.fullmatch(r"[A-Z_]+", error["code"]), f"not an error code: {error['code']!r}\n{self}"
            assert isinstance(error.get("message", ""), str), f"the message is not text\n{self}"
        assert document["errors"][0]["code"] == code, f"expected code {code}\n{self}"
        return self

    def __str__(self) -> str:
        fields = "".join(f"\n    {name}: {value}" for name, value in self.headers)
        body = repr(self.body[:SHOWN_BODY_BYTES]) + ("..." if len(self.body) > SHOWN_BODY_BYTES else "")
        reply = f"{self.status}{fields}\n    body, {len(self.body)} bytes: {body}"
        return f"request:\n    {self.request}\nreply:\n    {reply}"


class Connection:
    """One connection: whole requests by `request`, or bytes by `send` and replies by `read_reply`."""

    def __init__(self, host: str, port: int, timeout_seconds: float, tls: ssl.SSLContext | None = None) -> None:
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        plain = socket.create_connection((host, port), timeout_seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        self._incoming = self._socket.makefile("rb")

    @property
    def local_port(self) -> int:
        """The port of our end."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def certificate(self) -> bytes:
        """The certificate that the server presented, DER."""
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket.getpeercert(binary_form=True) or b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self, method: str, target: str, *, headers: Headers = (), body: Body | None = None, chunked: bool = False
    ) -> Reply:
        """Send one request and read its reply.

        Host is added unless given; so is the framing of a body: Content-Length of bytes, chunked where asked. A peer
        that answers before it has read the whole body is listened to, not failed.
        """
        head = self._head(method, target, headers, body, chunked=chunked)
        try:
            self.send(head.encode("latin-1"))
            for piece in _framed(body, chunked=chunked):
                self.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it closed
        return self.read_reply(head)

    def _head(self, method: str, target: str, headers: Headers, body: Body | None, *, chunked: bool) -> str:
        fields = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        given = {name.lower() for name, _ in fields}
        if "host" not in given:
            fields.insert(0, ("Host", self._authority))
        if chunked:
            fields.append(("Transfer-Encoding", "chunked"))
        elif isinstance(body, bytes) and "content-length" not in given:
            fields.append(("Content-Length", str(len(body))))
        return "".join((f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in fields), "\r\n"))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def read_reply(self, request: str = "GET") -> Reply:
        """Read the next reply, interim ones included.

        `request` is the head that it answers: HEAD decides the framing, and messages show it.
        """
        version, _, rest = self._line(request).partition(" ")
        if version != "HTTP/1.1" or not rest[:3].isdigit():
            raise WireError(f"not a status line: {version} {rest!r}")
        status = int(rest[:3])
        headers: list[tuple[str, str]] = []
        while line := self._line(request):
            name, colon, value = line.partition(":")
            if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise WireError(f"not a header line: {line!r}")
            headers.append((name, value.strip(" \t")))
        reply = Reply(request.strip().replace("\r\n", "\n    "), status, tuple(headers), b"")
        if request.startswith("HEAD") or status < 200 or status in {204, 304}:
            return reply
        return Reply(reply.request, status, reply.headers, self._body(reply))

    def _body(self, reply: Reply) -> bytes:
        length, coding = reply.get("Content-Length"), reply.get("Transfer-Encoding")
        if (length is None) == (coding is None):
            raise WireError(f"a body needs exactly one framing\n{reply}")
        if length is not None:
            return self.read(int(length))
        pieces = []
        while frame_bytes := int(self._line(str(reply)).partition(";")[0], 16):
            pieces.append(self.read(frame_bytes))
            self.read(2)
        while self._line(str(reply)):
            pass
        return b"".join(pieces)

    def read(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        data = self._incoming.read(count)
        if len(data) != count:
            raise WireError(f"the connection closed after {len(data)} of {count} bytes")
        return data

    def read_to_end(self) -> bytes:
        """Read until the peer closes."""
        return self._incoming.read()

    def _line(self, request: str) -> str:
        line = self._incoming.readline(65536)
        if not line.endswith(b"\r\n"):
            raise WireError(f"the connection closed at {line!r}, in answer to\n    {request.strip()}")
        return line[:-2].decode("latin-1")

    def abort(self) -> None:
        """Close with a reset, as a killed client's machine would."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._incoming.close()
        self._socket.close()


def _framed(body: Body | None, *, chunked: bool) -> Iterable[bytes]:
    if body is None:
        return
    if not chunked:
        yield from [body] if isinstance(body, bytes) else body
        return
    if isinstance(body, bytes):
        body = [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)]
    for piece in filter(None, body):
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Wire:
    """The address of a server. Every request takes a connection of its own, so it may reach any worker."""

    host: str
    port: int
    timeout_seconds: float = 30.0
    tls: ssl.SSLContext | None = None

    def connect(self) -> Connection:
        """Open a connection that the caller closes."""
        return Connection(self.host, self.port, self.timeout_seconds, self.tls)

    def request(
        self, method: str, target: str, *, headers: Headers = (), body: Body | None = None, chunked: bool = False
    ) -> Reply:
        """Send one request on a fresh connection and read its reply, as `Connection.request` does."""
        with self.connect() as connection:
            return connection.request(method, target, headers=headers, body=body, chunked=chunked)
