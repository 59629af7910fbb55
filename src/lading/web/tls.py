"""TLS on the listening sockets: one context for all connections, and a certificate that is exchanged under them."""

import datetime as dt
import ssl
import time
from pathlib import Path
from typing import Any

from lading.logs import event_logger
from lading.oci.errors import CertificateUnusable

# What TLS 1.2 may use: forward secrecy and authenticated encryption. TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
LOOK_SECONDS = 0.9  # less than the parent's longest pause, so that it looks after each
PLAIN_REQUEST = b"this port speaks TLS: use https://\n"
_PLAIN_REPLY = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(PLAIN_REQUEST), PLAIN_REQUEST)
)
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which Python does not name
_HINT = "http.tls_certificate is a PEM file, the certificate before its chain; http.tls_key has its private key"
_MAX_FLIGHTS = 8

_FileId = tuple[int, int, int]


class Certificate:
    """A certificate with its key, and the context that presents it; made before the fork, so workers share tickets.

    Each process has its own copy: `renew` changes what this one presents on new connections.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._loaded = self._settling = self._signature()
        self._next_look = 0.0
        self.context = self._current = load(certificate, key)
        self.context.sni_callback = self._present  # called in each handshake, with and without a server's name

    def has_changed(self) -> bool:
        """Tell whether the files are others than those last loaded, and the same as a second ago.

        Certificate and key are replaced one after the other: between the two they do not belong together.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        before, self._settling = self._settling, self._signature()
        return self._settling == before != self._loaded

    def renew(self) -> None:
        """Present what the files hold now; after an error, what was before.

        Raises:
            CertificateUnusable: as `load`.

        """
        self._loaded = self._settling = self._signature()
        self._current = load(*self._files)

    def check(self) -> None:
        """Log until when the certificate is valid, and a warning where clients will refuse it."""
        place = str(self._files[0])
        try:
            begins, ends = _validity(self._current, self._files[0])
        except ssl.SSLError as error:
            event_logger().warning("clients will refuse the TLS certificate", certificate=place, reason=_reason(error))
            return
        dates = {"valid_from": _date(begins), "valid_until": _date(ends)}
        if not begins <= time.time() < ends:
            event_logger().warning("the TLS certificate is not valid today", certificate=place, **dates)
        else:
            event_logger().info("the TLS certificate is in use", certificate=place, **dates)

    def _present(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _signature(self) -> tuple[_FileId | None, ...]:
        return tuple(map(_file_id, self._files))


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context: TLS 1.2 or 1.3, encryption that authenticates, HTTP/1.1.

    Raises:
        CertificateUnusable: a file cannot be read or is not what it should be, or the two do not belong together.

    """
    _expect(certificate, b"CERTIFICATE-----", "certificate")
    _expect(key, b"PRIVATE KEY-----", "key")
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])

    def refuse_to_guess() -> str:
        raise CertificateUnusable(
            f"the TLS key {key} is encrypted", f"write it without a passphrase: openssl pkey -in {key}"
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_to_guess)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateUnusable(
                f"the TLS key {key} is not that of the certificate {certificate}", _HINT
            ) from error
        raise CertificateUnusable(
            f"the TLS certificate {certificate} with the key {key} cannot be used: {_reason(error)}", _HINT
        ) from error
    except OSError as error:
        raise _unreadable(certificate, "certificate", error) from error
    return context


class _Connection(ssl.SSLObject):
    """The server's side of one connection; a client that speaks plain HTTP is told so in plain HTTP."""

    outgoing: ssl.MemoryBIO
    _was_told = False

    def do_handshake(self) -> None:
        if self._was_told:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the client speaks plain HTTP")
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            if error.reason != "HTTP_REQUEST":
                raise
            self.outgoing.write(_PLAIN_REPLY)
            self._was_told = True
            raise ssl.SSLWantReadError from error  # so that it is sent; what the client says next ends the connection


class _Context(ssl.SSLContext):
    """A context whose connections know where their bytes leave."""

    sslobject_class = _Connection

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        connection = super().wrap_bio(incoming, outgoing, *args, **kwargs)
        assert isinstance(connection, _Connection)
        connection.outgoing = outgoing
        return connection


def _expect(path: Path, mark: bytes, what: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, what, error) from error
    if mark not in content:
        raise CertificateUnusable(f"the TLS {what} {path} is not a PEM file with a {what}", _HINT)


def _unreadable(path: Path, what: str, error: OSError) -> CertificateUnusable:
    reason = (error.strerror or "unknown error").lower()
    return CertificateUnusable(f"the TLS {what} {path} cannot be read: {reason}", _HINT)


def _file_id(path: Path) -> _FileId | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _validity(context: ssl.SSLContext, certificate: Path) -> tuple[float, float]:
    """Return from when until when a certificate is valid, as a client sees it that trusts this one certificate.

    The handshake runs in memory.

    Raises:
        ssl.SSLError: such a client refuses it, for another reason than its dates.

    """
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client_context.load_verify_locations(certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = client_context.wrap_bio(down, up), context.wrap_bio(up, down, server_side=True)
    for side in (client, server) * _MAX_FLIGHTS:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    seen = client.getpeercert() or {}
    return ssl.cert_time_to_seconds(str(seen["notBefore"])), ssl.cert_time_to_seconds(str(seen["notAfter"]))


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _reason(error: ssl.SSLError) -> str:
    verification = getattr(error, "verify_message", None)
    return str(verification or error.reason or "it is damaged").replace("_", " ").lower()
