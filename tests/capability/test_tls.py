"""TLS: what is spoken, what is refused at the start, and a certificate that is renewed while clients stay."""

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.capability.certificates import Authority, presented, replace
from tests.capability.content import digest_of
from tests.capability.crowd import Crowd
from tests.capability.program import HOST, Serve, Server
from tests.capability.server import LADING, until
from tests.wire import Wire

IN_USE = "the TLS certificate is in use"
KEPT = "the new TLS certificate cannot be used; the old one stays"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority of the test's own."""
    return Authority(tmp_path / "pki")


class Secure:
    """A server that speaks TLS with `files`, and how its clients reach it."""

    def __init__(self, serve: Serve, authority: Authority, *arguments: str) -> None:
        self.authority = authority
        self.files = authority.issue()
        self.server: Server = serve(
            "--tls-certificate", str(self.files[0]), "--tls-key", str(self.files[1]), *(arguments or ("--workers", "1"))
        )
        self.wire = Wire(HOST, self.server.port, tls=authority.client())

    def is_presenting(self, certificate: Path) -> bool:
        """Tell whether a new connection is shown this certificate."""
        with self.wire.connect() as connection:
            return connection.certificate == presented(certificate)


@pytest.fixture
def secure(serve: Serve, authority: Authority) -> Secure:
    """Return a server with one worker that speaks TLS."""
    return Secure(serve, authority)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """Return a server that speaks TLS, for tests that do nothing to its files."""
    folder = tmp_path_factory.mktemp("shared")

    def start(*arguments: str) -> Server:
        started.append(Server(folder, [*LADING, "serve", "--port", "0", *arguments]))
        return started[0]

    started: list[Server] = []
    try:
        yield Secure(start, Authority(folder / "pki"))
        assert started[0].errors() == ""
        assert [line for line in started[0].lines() if line.get("level") in {"warning", "error"}] == []
    finally:
        for server in started:
            server.kill_all()


def test_everything_works_over_tls(shared: Secure) -> None:
    """Push and pull, and the pages know by which scheme they were asked."""
    content = os.urandom(3_000_000)
    digest = digest_of(content)
    assert shared.server.wait_until_ready()["url"] == f"https://{HOST}:{shared.server.port}"

    with shared.wire.connect() as connection:
        location = connection.request("POST", "/v2/tls/blobs/uploads/", body=b"").expect(202)["Location"]
        location = connection.request("PATCH", location, body=content[:1_000_000], chunked=True).expect(202)["Location"]
        connection.request("PUT", f"{location}?digest={digest}", body=content[1_000_000:]).expect(201)
        assert connection.request("GET", f"/v2/tls/blobs/{digest}").expect(200).body == content
        part = connection.request("GET", f"/v2/tls/blobs/{digest}", headers={"Range": "bytes=5-2000004"}).expect(206)
        assert part.body == content[5:2_000_005]
        assert b"--plain-http" not in connection.request("GET", "/").body


def test_the_settings_file_names_the_certificate_too(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """And the log says until when it is valid."""
    certificate, key = authority.issue()
    (tmp_path / "lading.yaml").write_text(f"http: {{tls_certificate: {certificate}, tls_key: {key}}}")

    server = serve("--workers", "1")

    Wire(HOST, server.port, tls=authority.client()).request("GET", "/readyz").expect(200)
    (event,) = server.events(IN_USE)
    assert event["certificate"] == str(certificate)
    left = time.mktime(time.strptime(event["valid_until"], "%Y-%m-%dT%H:%M:%SZ")) - time.time()
    assert 7 * 86400 < left < 10 * 86400


@pytest.mark.parametrize(
    ("weaken", "accepted"),
    [
        (lambda client: setattr(client, "maximum_version", ssl.TLSVersion.TLSv1_3), True),
        (lambda client: setattr(client, "maximum_version", ssl.TLSVersion.TLSv1_2), True),
        (lambda client: set_version_1_1(client), False),  # noqa: PLW0108 - it is defined below
        (lambda client: set_ciphers_of_1_2(client, "ECDHE-ECDSA-AES128-GCM-SHA256"), True),
        (lambda client: set_ciphers_of_1_2(client, "ECDHE-ECDSA-CHACHA20-POLY1305"), True),
        (lambda client: set_ciphers_of_1_2(client, "ECDHE-ECDSA-AES128-SHA256"), False),
        (lambda client: set_ciphers_of_1_2(client, "ECDHE-ECDSA-AES256-SHA"), False),
    ],
    ids=["1.3", "1.2", "1.1", "gcm", "chacha", "cbc-sha256", "cbc-sha"],
)
def test_only_authenticated_encryption_of_today_is_spoken(
    shared: Secure, weaken: Callable[[ssl.SSLContext], None], *, accepted: bool
) -> None:
    """TLS 1.2 with AEAD and forward secrecy, or TLS 1.3 (trust: E4)."""
    client = shared.authority.client()
    weaken(client)
    wire = Wire(HOST, shared.server.port, tls=client)

    if accepted:
        wire.request("GET", "/livez").expect(200)
    else:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            wire.request("GET", "/livez")


def set_version_1_1(client: ssl.SSLContext) -> None:
    """Speak TLS 1.1, which OpenSSL 3 does only at security level 0."""
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.maximum_version = ssl.TLSVersion.TLSv1_1


def set_ciphers_of_1_2(client: ssl.SSLContext, ciphers: str) -> None:
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)


def test_http_1_1_is_chosen(shared: Secure) -> None:
    """A client that would rather speak HTTP/2 is told so in the handshake."""
    client = shared.authority.client()
    client.set_alpn_protocols(["h2", "http/1.1"])

    with (
        socket.create_connection((HOST, shared.server.port)) as plain,
        client.wrap_socket(plain, server_hostname=HOST) as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "http/1.1"


def test_a_session_is_resumed_by_any_worker(serve: Serve, authority: Authority) -> None:
    """Workers share the keys of tickets: docker opens many connections, and a full handshake costs each a signature."""
    secure = Secure(serve, authority, "--workers", "3")
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # whose tickets are part of the handshake
    session = None
    resumed = []
    for _ in range(20):
        with (
            socket.create_connection((HOST, secure.server.port)) as plain,
            client.wrap_socket(plain, server_hostname=HOST, session=session) as wrapped,
        ):
            session = session or wrapped.session
            resumed.append(wrapped.session_reused)

    assert resumed == [False, *[True] * 19]


def test_what_cannot_be_used_is_a_sentence(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """Before anything is made or claimed."""
    certificate, _ = authority.issue()
    _, other = authority.issue("other")

    server = serve("--tls-certificate", str(certificate), "--tls-key", str(other))

    assert server.wait() == 1
    sentence, hint = server.errors().splitlines()
    assert sentence == f"error: the TLS key {other} is not that of the certificate {certificate}"
    assert hint.startswith(" hint: http.tls_certificate is a PEM file")
    assert not (tmp_path / "data").exists()


def test_a_certificate_without_a_key_is_a_sentence(serve: Serve, authority: Authority) -> None:
    """Half of TLS must not start as no TLS."""
    certificate, _ = authority.issue()

    server = serve("--tls-certificate", str(certificate))

    assert server.wait() == 2
    assert "http.tls_key (default): found null, wanted both" in server.errors()


@pytest.mark.parametrize(
    ("days", "extensions", "warning"),
    [
        (-1, "", "the TLS certificate is not valid today"),
        (9, "extendedKeyUsage=clientAuth\n", "clients will refuse the TLS certificate"),
    ],
)
def test_a_certificate_that_clients_will_refuse_is_warned_about(
    serve: Serve, authority: Authority, days: int, extensions: str, warning: str
) -> None:
    """It is started all the same: a registry with an old certificate is better than none, for those who look away."""
    certificate, key = authority.issue(days=days, extensions=extensions)

    server = serve("--tls-certificate", str(certificate), "--tls-key", str(key), "--workers", "1")

    server.wait_until_ready()
    (event,) = server.events(warning)
    assert (event["level"], event["certificate"]) == ("warning", str(certificate))
    assert server.events(IN_USE) == []


def test_a_renewed_certificate_is_presented_without_a_restart(secure: Secure, authority: Authority) -> None:
    """An ACME client renames two files; who is connected stays, who comes is shown the new one."""
    workers = secure.server.workers()
    with secure.wire.connect() as connection:
        connection.request("GET", "/livez").expect(200)

        new = authority.issue("renewed")
        replace(secure.files, new)

        assert until(lambda: secure.is_presenting(new[0]))
        connection.request("GET", "/livez").expect(200, {"Connection": None})
    assert secure.server.workers() == workers
    assert until(lambda: len(secure.server.events(IN_USE)) == 2)
    assert secure.server.events(KEPT) == []


def test_a_worker_that_comes_later_presents_the_renewed_certificate(secure: Secure, authority: Authority) -> None:
    """What was learnt must not be forgotten when a worker is replaced, even if the files are broken by then."""
    new = authority.issue("renewed")
    replace(secure.files, new)
    assert until(lambda: secure.is_presenting(new[0]))
    (old,) = secure.server.workers()
    secure.files[1].unlink()

    os.kill(old, signal.SIGKILL)

    assert until(lambda: len(secure.server.workers()) == 1 and secure.server.workers() != [old])
    assert until(lambda: answers(secure.wire))
    assert secure.is_presenting(new[0])


def answers(wire: Wire) -> bool:
    try:
        return wire.request("GET", "/readyz").status == 200
    except OSError:
        return False


def test_a_bad_certificate_leaves_the_old_one(secure: Secure, authority: Authority) -> None:
    """A disk that was full when it was renewed is an error in the log, once, and no outage."""
    old = presented(secure.files[0])
    secure.files[0].write_text(secure.files[0].read_text()[:200])

    assert until(lambda: len(secure.server.events(KEPT)) == 1)
    time.sleep(1.5)
    with secure.wire.connect() as connection:
        assert connection.certificate == old
    (event,) = secure.server.events(KEPT)
    assert event["level"] == "error"
    assert str(secure.files[0]) in event["reason"]

    new = authority.issue("renewed")
    replace(secure.files, new)
    assert until(lambda: secure.is_presenting(new[0]))


def test_a_reload_with_a_bad_certificate_changes_nothing(secure: Secure) -> None:
    """As with any wrong setting."""
    secure.files[1].unlink()

    secure.server.signal(signal.SIGHUP)

    assert until(lambda: secure.server.events("reload failed: the workers with the old settings go on") != [])
    secure.wire.request("GET", "/readyz").expect(200)


@pytest.mark.slow
def test_no_request_is_lost_while_certificates_are_renewed(serve: Serve, authority: Authority) -> None:
    """Three new certificates and a reload under fresh and kept TLS connections."""
    secure = Secure(serve, authority, "--workers", "2")
    content = os.urandom(2000)
    digest = digest_of(content)
    location = secure.wire.request("POST", "/v2/tls/blobs/uploads/", body=b"").expect(202)["Location"]
    secure.wire.request("PUT", f"{location}?digest={digest}", body=content).expect(201)

    with Crowd([secure.wire], f"/v2/tls/blobs/{digest}", content, fresh=8, kept=8) as crowd:
        for number in range(3):
            new = authority.issue(f"renewed{number}")
            replace(secure.files, new)
            assert until(lambda: secure.is_presenting(new[0]))  # noqa: B023 - called here only
            if number % 2:
                secure.server.signal(signal.SIGHUP)
                time.sleep(2.5)
        time.sleep(1.0)

    crowd.assert_untroubled()
    assert len(secure.server.events("reloaded: new workers serve, the old ones finish")) == 1
    secure.server.signal(signal.SIGTERM)
    assert secure.server.wait() == 0
    assert [line for line in secure.server.lines() if line.get("level") in {"warning", "error"}] == []


def test_a_plain_request_to_the_tls_port_is_told_so(shared: Secure) -> None:
    """The likeliest mistake, and a closed connection would tell nothing."""
    plain = Wire(HOST, shared.server.port)

    reply = plain.request("GET", "/v2/").expect(400, {"Connection": "close"})

    assert reply.body == b"this port speaks TLS: use https://\n"
    with plain.connect() as connection:
        connection.request("GET", "/v2/").expect(400)
        connection.send(b"GET /v2/ HTTP/1.1\r\n\r\n")
        assert connection.read_to_end() == b""
    shared.wire.request("GET", "/livez").expect(200)


def test_a_tls_hello_to_a_plain_port_is_told_so(serve: Serve, authority: Authority) -> None:
    """Docker and containerd try TLS first, at every pull: that is no event for the log."""
    server = serve("--workers", "1")
    for _ in range(3):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            Wire(HOST, server.port, tls=authority.client()).request("GET", "/v2/")

    server.wire.request("GET", "/livez").expect(200)
    assert server.errors() == ""
    assert [line for line in server.lines() if line.get("level") in {"warning", "error"}] == []


def test_a_handshake_that_was_begun_is_served_when_it_stops(secure: Secure) -> None:
    """It was accepted, so it is answered; a connection that says nothing holds nobody up."""
    with (
        socket.create_connection((HOST, secure.server.port)) as plain,
        socket.create_connection((HOST, secure.server.port)),
    ):
        time.sleep(0.2)
        began = time.monotonic()
        secure.server.signal(signal.SIGTERM)
        time.sleep(0.4)
        assert secure.wire.tls is not None
        with secure.wire.tls.wrap_socket(plain, server_hostname=HOST) as wrapped:
            wrapped.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wrapped.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert secure.server.wait() == 0
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_oras_pushes_and_pulls_with_the_authority(secure: Secure, authority: Authority, tmp_path: Path) -> None:
    """A real client, written in Go, with nothing but the CA file."""
    oras = Path(os.environ.get("LADING_TOOLS", Path(__file__).parents[2] / ".tools")) / "bin" / "oras"
    assert oras.exists(), "tests/clients/install faults"
    (tmp_path / "pulled").mkdir()
    content = os.urandom(1_000_000)
    (tmp_path / "notes").write_bytes(content)
    reference = f"{HOST}:{secure.server.port}/notes:v1"
    options = ["--no-tty", "--ca-file", str(authority.ca), reference]

    for command in (["push", *options, "notes"], ["pull", "-o", "pulled", *options]):
        done = subprocess.run([oras, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    assert (tmp_path / "pulled" / "notes").read_bytes() == content
