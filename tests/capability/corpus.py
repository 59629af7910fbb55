"""Requests that no client should send, and some that look odd and are right: bytes, and the statuses they get.

Each is followed on its connection by one good request. Where the list of statuses ends in `THEN_OK`, that one is
answered; where it does not, it must not be: what follows bytes that two parsers read in two ways may be anybody's.
"""

from dataclasses import dataclass

THEN_OK = 200
FOLLOWING = b"GET /v2/ HTTP/1.1\r\nHost: registry.example\r\nConnection: close\r\n\r\n"
HOST = b"Host: registry.example\r\n"
SESSION = b"5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11"
UPLOAD = b"/v2/corpus/blobs/uploads/" + SESSION


@dataclass(frozen=True, slots=True)
class Case:
    """`sent` gets replies with these `statuses`, and no other. `own_wire`: stock uvicorn takes it otherwise."""

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    own_wire: bool = False


def _get(target: bytes = b"/v2/", fields: bytes = HOST, version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + fields + b"\r\n"


def _patch(fields: bytes, body: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"PATCH " + UPLOAD + b" " + version + b"\r\n" + HOST + fields + b"\r\n" + body


def _chunked(body: bytes) -> bytes:
    return _patch(b"Transfer-Encoding: chunked\r\n", body)


_CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
_CL = b"Content-Length: 5\r\n"
_TE = b"Transfer-Encoding: chunked\r\n"

FRAMING = (
    Case("length and chunked", _patch(_CL + _TE, b"0\r\n\r\n"), (400,)),
    Case("chunked and length", _patch(_TE + _CL, b"0\r\n\r\n"), (400,)),
    Case("two lengths", _patch(_CL + b"Content-Length: 6\r\n", b"hello"), (400,)),
    Case("the same length twice", _patch(_CL + _CL, b"hello"), (400,)),
    Case("a list of lengths", _patch(b"Content-Length: 5, 5\r\n", b"hello"), (400,)),
    Case("a signed length", _patch(b"Content-Length: +5\r\n", b"hello"), (400,)),
    Case("a negative length", _patch(b"Content-Length: -5\r\n", b"hello"), (400,)),
    Case("a hexadecimal length", _patch(b"Content-Length: 0x5\r\n", b"hello"), (400,)),
    Case("a length with an underscore", _patch(b"Content-Length: 1_0\r\n", b"hellohello"), (400,)),
    Case("an empty length", _patch(b"Content-Length:\r\n", b""), (400,)),
    Case("a length of 2**64", _patch(b"Content-Length: 18446744073709551616\r\n", b"hello"), (400,)),
    Case("a length in other digits", _patch("Content-Length: \u0665\r\n".encode(), b"hello"), (400,)),
    Case("chunked twice", _patch(_TE + _TE, _CHUNKS), (400,), own_wire=True),
    Case("gzip, chunked", _patch(b"Transfer-Encoding: gzip, chunked\r\n", _CHUNKS), (400,), own_wire=True),
    Case("chunked, gzip", _patch(b"Transfer-Encoding: chunked, gzip\r\n", _CHUNKS), (400,)),
    Case("identity", _patch(b"Transfer-Encoding: identity\r\n", b""), (400,)),
    Case("xchunked", _patch(b"Transfer-Encoding: xchunked\r\n", _CHUNKS), (400,)),
    Case("chunked behind a vertical tab", _patch(b"Transfer-Encoding: \x0bchunked\r\n", _CHUNKS), (400,)),
    Case("chunked in HTTP/1.0", _patch(_TE, _CHUNKS, b"HTTP/1.0"), (400,), own_wire=True),
    Case("a space before the colon", _patch(b"Transfer-Encoding : chunked\r\n", _CHUNKS), (400,)),
    Case("a good body", _patch(_CL, b"hello"), (404,)),
    Case("good chunks", _chunked(_CHUNKS), (404,)),
)

CHUNKS = (
    Case("no chunk size", _chunked(b"\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a chunk size that is no number", _chunked(b"zz\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a chunk size of 0x5", _chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a signed chunk size", _chunked(b"+5\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a negative chunk size", _chunked(b"-5\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a chunk size with an underscore", _chunked(b"1_0\r\nhellohellohello!\r\n0\r\n\r\n"), (400,)),
    Case("a chunk size past 2**64", _chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a space before a chunk size", _chunked(b" 5\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a chunk longer than it says", _chunked(b"5\r\nhello!\r\n0\r\n\r\n"), (400,)),
    Case("a chunk that ends in LF", _chunked(b"5\r\nhello\n0\r\n\r\n"), (400,)),
    Case("a chunk size that ends in LF", _chunked(b"5\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a chunk size that ends in CR", _chunked(b"5\rXhello\r\n0\r\n\r\n"), (400,)),
    Case("a NUL in an extension", _chunked(b"5;a=\x00\r\nhello\r\n0\r\n\r\n"), (400,)),
    Case("a LF in an extension", _chunked(b"5;a=\nhello\r\n0\r\n\r\n"), (400,)),
    Case("an endless extension", _chunked(b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n"), (400,), own_wire=True),
    Case(
        "more extensions than content",
        _chunked(b"".join(b"1;%s\r\nx\r\n" % (b"a" * 200) for _ in range(200)) + b"0\r\n\r\n"),
        (400,),
        own_wire=True,
    ),
    Case("a trailer that is no field", _chunked(b"0\r\nno colon here\r\n\r\n"), (400,)),
    Case("a trailer with a NUL", _chunked(b"0\r\nX: \x00\r\n\r\n"), (400,)),
    Case(
        "trailers without end",
        _chunked(b"0\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(100)) + b"\r\n"),
        (400,),
        own_wire=True,
    ),
    Case("an extension and a trailer", _chunked(b"5;a=b;c\r\nhello\r\n0;d\r\nX-Sum: 1\r\n\r\n"), (404,)),
    Case("a chunk size with zeros", _chunked(b"00005\r\nhello\r\n000\r\n\r\n"), (404,)),
)

LINES = (
    Case("lines that end in LF", _get().replace(b"\r\n", b"\n"), (400,)),
    Case("one line that ends in LF", _get(fields=HOST + b"X: a\nY: b\r\n"), (400,)),
    Case("a CR in a field", _get(fields=HOST + b"X: a\rb\r\n"), (400,)),
    Case("a field that is folded", _get(fields=HOST + b"X: a\r\n b\r\n"), (400,)),
    Case("a field that is folded by a tab", _get(fields=HOST + b"X: a\r\n\tb\r\n"), (400,)),
    Case("a length that is folded", _patch(b"Content-Length:\r\n 5\r\n", b"hello"), (400,)),
    Case("a NUL in a field", _get(fields=HOST + b"X: a\x00b\r\n"), (400,)),
    Case("a control byte in a field", _get(fields=HOST + b"X: a\x01b\r\n"), (400,)),
    Case("a DEL in a field", _get(fields=HOST + b"X: a\x7fb\r\n"), (400,)),
    Case("a NUL in a name", _get(fields=HOST + b"X\x00Y: a\r\n"), (400,)),
    Case("a space in a name", _get(fields=HOST + b"X Y: a\r\n"), (400,)),
    Case("a field without a name", _get(fields=HOST + b": a\r\n"), (400,)),
    Case("a field without a colon", _get(fields=HOST + b"nonsense\r\n"), (400,)),
    Case("a first field that begins with a space", _get(fields=b" " + HOST), (400,)),
    Case("no version", b"GET /v2/\r\n\r\n", (400,), own_wire=True),
    Case("HTTP/0.9", _get(version=b"HTTP/0.9"), (400,), own_wire=True),
    Case("HTTP/1.2", _get(version=b"HTTP/1.2"), (400,)),
    Case("HTTP/2.0", _get(version=b"HTTP/2.0"), (400,), own_wire=True),
    Case("HTTP/11", _get(version=b"HTTP/11"), (400,)),
    Case("http/1.1", _get(version=b"http/1.1"), (400,)),
    Case("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    Case("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)), (400,)),
    Case("an SSH hello", b"SSH-2.0-OpenSSH_9.2\r\n", (400,)),
    Case("a method of nobody", b"FOO /v2/ HTTP/1.1\r\n" + HOST + b"\r\n", (400,)),
    Case("a method in small letters", b"get /v2/ HTTP/1.1\r\n" + HOST + b"\r\n", (400,)),
    Case("two spaces", b"GET  /v2/ HTTP/1.1\r\n" + HOST + b"\r\n", (400,), own_wire=True),
    Case("a tab", b"GET\t/v2/ HTTP/1.1\r\n" + HOST + b"\r\n", (400,)),
    Case("an empty line ahead", b"\r\n" + _get(), (200, THEN_OK)),
    Case("many empty lines ahead", b"\r\n" * 50 + _get(), (400,), own_wire=True),
    Case("fields in latin-1", _get(fields=HOST + b"X: caf\xe9\r\n"), (200, THEN_OK)),
)

TARGETS = (
    Case("no Host", _get(fields=b""), (400,)),
    Case("two Hosts", _get(fields=HOST + b"Host: other.example\r\n"), (400,)),
    Case("the same Host twice", _get(fields=HOST + HOST), (400,)),
    Case("a Host with a path", _get(fields=b"Host: a/b\r\n"), (400,), own_wire=True),
    Case("a Host with a user", _get(fields=b"Host: me@a\r\n"), (400,), own_wire=True),
    Case("a Host with a space", _get(fields=b"Host: a b\r\n"), (400,), own_wire=True),
    Case("a Host with a comma and another", _get(fields=b"Host: a:1:2\r\n"), (400,), own_wire=True),
    Case("a Host of IPv6", _get(fields=b"Host: [::1]:5000\r\n"), (200, THEN_OK)),
    Case(
        "HTTP/1.0 without Host",
        _get(fields=b"Connection: keep-alive\r\n", version=b"HTTP/1.0"),
        (200, THEN_OK),
        own_wire=True,
    ),
    Case("another host's address", _get(b"http://other.example/v2/"), (400,), own_wire=True),
    Case("our address", _get(b"http://registry.example/v2/"), (200, THEN_OK)),
    Case("an address with a user", _get(b"http://me@registry.example/v2/"), (400,), own_wire=True),
    Case("another scheme", _get(b"ftp://registry.example/v2/"), (400,), own_wire=True),
    Case("an asterisk", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", (400,), own_wire=True),
    Case("CONNECT", b"CONNECT registry.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", (400,), own_wire=True),
    Case("a relative path", _get(b"v2/"), (400,), own_wire=True),
    Case("a fragment", _get(b"/v2/#x"), (400,), own_wire=True),
    Case("a byte past ASCII in the target", _get(b"/v2/caf\xe9"), (400,), own_wire=True),
    Case("a NUL in the target", _get(b"/v2/\x00"), (400,)),
    Case("a control byte in the target", _get(b"/v2/\x01"), (400,)),
    Case("two slashes ahead", _get(b"//v2/"), (404, THEN_OK), own_wire=True),
)

NAMES = tuple(
    Case(f"{name} as name", _get(b"/v2/" + name.encode() + b"/tags/list"), (400, THEN_OK))
    for name in (
        "a%2Fb", "a%2fb", "%61", "a%5Cb", "a\\b", "a%2E%2E", "a/%2E%2E/b", "a/../b", "a/./b", "..", "a//b", "a%00b",
        "a%0d%0ab", "a%zz", "a%", "a%ff", "a%c0%af", "a%252Fb", "a;b", "a~b", "A", "a..b", "-a", "a-", "a" * 256,
    )
)  # fmt: skip

REFERENCES = tuple(
    Case(f"{tag} as tag", _get(b"/v2/a/manifests/" + tag.encode()), (404, THEN_OK))
    for tag in ("%2E%2E", "a%2Fb", "a%5Cb", "a%00", "%2E", "a%0a", "a%ff")
)

CASES = (*FRAMING, *CHUNKS, *LINES, *TARGETS, *NAMES, *REFERENCES)
