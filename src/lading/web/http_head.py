"""The head of a request: httptools splits it, and what a registry must not guess about is refused here."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

import httptools

from lading.oci.errors import HeadersTooLarge, RegistryError, RequestInvalid, TargetTooLong

MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS_BYTES = 32 * 1024
MAX_HEAD_BYTES = MAX_TARGET_BYTES + 2 * MAX_HEADERS_BYTES

_MAX_METHOD_BYTES = 32
_MAX_LENGTH_DIGITS = 18
_METHOD = re.compile(rb"[A-Z-]{1,32}(?: |$)")
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")
_ALLOWED_BYTES = bytes({*range(0x20, 0x100), *b"\t\r\n"} - {0x7F})
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::[0-9]{0,5})?")
_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_UNCERTAIN = "the request does not say in one certain way how long its body is"


@dataclass(slots=True)
class Head:
    """A request's head. `body_bytes` is None when the body comes in chunks."""

    method: str
    raw_path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    body_bytes: int | None
    keep_alive: bool
    expects_continue: bool

    @property
    def path(self) -> str:
        """The path, percent-decoded: for pages and logs; routes are matched on the raw one."""
        path = self.raw_path.decode("ascii")
        return unquote(path) if "%" in path else path


class _Fields:
    """Collects what httptools finds."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse(head: bytes) -> Head:
    """Return the head of a request, given with the empty line that ends it (RFC 9112, 2 to 6).

    Raises:
        RequestInvalid: it is not HTTP/1.1, or it leaves open where the request ends or for whom it is.
        TargetTooLong: its target is.

    """
    _refuse_odd_bytes(head)
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # a client may ask for another protocol, and gets HTTP/1.1
    except httptools.HttpParserError as error:
        raise RequestInvalid("the request is not valid HTTP/1.1") from error
    version = parser.get_http_version()
    if version not in {"1.1", "1.0"}:
        raise RequestInvalid("only HTTP/1.1 and HTTP/1.0 are spoken here")
    single = _single(fields.headers)
    body_bytes = _framing(single, version)
    raw_path, query = _target(fields.target, single.get(b"host"))
    return Head(
        parser.get_method().decode("ascii"),
        raw_path,
        query,
        version,
        fields.headers,
        body_bytes,
        _keeps_alive(fields.headers, version),
        body_bytes != 0 and version != "1.0" and single.get(b"expect", b"").lower() == b"100-continue",
    )


def problem(begun: bytes | bytearray, looked_at: int) -> RegistryError | None:
    """Return what is wrong with the beginning of a head whose end has not come, if anything is already.

    `looked_at` is how many of its bytes an earlier call has seen.
    """
    if looked_at < _MAX_METHOD_BYTES and not _METHOD.match(begun[: _MAX_METHOD_BYTES + 1]):
        return RequestInvalid("the request is not valid HTTP/1.1")  # TLS on a plain port, above all
    at = begun.find(b"\n", looked_at)
    if at >= 0 and begun[at - 1 : at] != b"\r":
        return RequestInvalid("a line of the request's head does not end in CR LF")
    if len(begun) > MAX_TARGET_BYTES + 64 and b"\r\n" not in begun[: MAX_TARGET_BYTES + 64]:
        return TargetTooLong()
    return HeadersTooLarge() if len(begun) > MAX_HEAD_BYTES else None


def _refuse_odd_bytes(head: bytes) -> None:
    """Refuse what parsers read in different ways: bare CR or LF, folded lines, control bytes (RFC 9112, 2.2 and 5)."""
    lines = head.count(b"\r\n")
    if lines != head.count(b"\n") or lines != head.count(b"\r"):
        raise RequestInvalid("a line of the request's head does not end in CR LF")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise RequestInvalid("a header field goes on in the next line, which HTTP/1.1 no longer has")
    if head.count(b" ", 0, head.find(b"\r")) != 2:
        raise RequestInvalid("the request line is not a method, a target and a version")
    if head.translate(None, _ALLOWED_BYTES):
        raise RequestInvalid("the request's head has control bytes in it")


def _framing(fields: dict[bytes, bytes], version: str) -> int | None:
    """Return the body's length, None for chunks (RFC 9112, 6)."""
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or version == "1.0" or coding.lower() != b"chunked":
            raise RequestInvalid(_UNCERTAIN)
        return None
    if length is None:
        return 0
    if not (length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS):
        raise RequestInvalid(_UNCERTAIN)
    return int(length)


def _keeps_alive(headers: list[tuple[bytes, bytes]], version: str) -> bool:
    """Tell whether the client goes on with this connection (RFC 9112, 9.3)."""
    options = {
        option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")
    }
    return b"close" not in options and (version == "1.1" or b"keep-alive" in options)


def _single(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return those of the fields that may come only once, and that decide what the request is."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _SINGLE:
            if name in fields:
                raise RequestInvalid(f"a request has at most one {name.decode().title()}")
            fields[name] = value
    if not _HOST.fullmatch(fields.get(b"host", b"")):
        raise RequestInvalid("the Host is not one")
    return fields


def _target(target: bytes, host: bytes | None) -> tuple[bytes, bytes]:
    """Return path and query, still encoded, of a target in origin-form, or in absolute-form with our own host."""
    if len(target) > MAX_TARGET_BYTES:
        raise TargetTooLong(f"the request target is limited to {MAX_TARGET_BYTES} bytes")
    if not _TARGET.fullmatch(target):
        raise RequestInvalid("the request target has bytes that must be percent-encoded")
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        if not mark or scheme.lower() not in {b"http", b"https"} or authority != host:
            raise RequestInvalid("the request target is neither a path nor an address of this registry")
        target = slash + path or b"/"
    path, _, query = target.partition(b"?")
    return path, query
