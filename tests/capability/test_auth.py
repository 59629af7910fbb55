"""The lock on the door: every route, for every kind of caller, with users in a file and with reading for everybody."""

import base64
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import bcrypt
import pytest
from pysqlite3 import dbapi2

from lading.auth.policy import READING
from lading.web.v2.routes import Route, routes
from tests.capability.content import digest_of
from tests.capability.repository import Repository
from tests.capability.server import RegistryProcess, until
from tests.wire import Reply, Wire

TABLE = routes(max_page_entries=100)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS")
CHALLENGE = 'Basic realm="Lading"'
PASSWORD = "correct horse: battery"
CANARY = "canary-7f3a91c2"
PRESENT, ABSENT = "team/app", "team/nothing"
NOWHERE = ("/v2//", "/v2/x", "/v2/team/app/tags", "/v2/_oci/ext/discover", "/v2/Team/tags/list", "/v2/a%2Fb/tags/list")

Headers = Sequence[tuple[str, str]]


def basic(name: str | bytes, password: str | bytes) -> str:
    raw = b":".join(part.encode() if isinstance(part, str) else part for part in (name, password))
    return f"Basic {base64.b64encode(raw).decode()}"


def header(*values: str) -> Headers:
    return tuple(("Authorization", value) for value in values)


USER = header(basic("alice", PASSWORD))
STRANGERS: Mapping[str, Headers] = {
    "nothing": (),
    "an empty name and password": header(basic("", "")),
}
REFUSED: Mapping[str, Headers] = {
    "a wrong password": header(basic("alice", CANARY)),
    "another user's password": header(basic("bob", PASSWORD)),
    "an unknown user": header(basic("mallory", PASSWORD)),
    "another case": header(basic("Alice", PASSWORD)),
    "an empty password": header(basic("alice", "")),
    "an empty name": header(basic("", PASSWORD)),
    "no colon": header("Basic " + base64.b64encode(b"alice").decode()),
    "a password cut at its colon": header(basic("alice", PASSWORD.partition(":")[0])),
    "a colon in front": header(basic(":alice", PASSWORD)),
    "a NUL behind": header(basic("alice", PASSWORD + "\0")),
    "a NUL in the name": header(basic("alice\0", PASSWORD)),
    "a name that is not UTF-8": header(basic(b"alice\xff", PASSWORD)),
    "a password that is not UTF-8": header(basic("alice", b"\xff\xfe")),
    "a password of 73 bytes": header(basic("long", "x" * 72 + "y")),
    "a password of 72 bytes and another end": header(basic("long", "x" * 71 + "y")),
    "a scheme without more": header("Basic"),
    "no base64": header("Basic %%%"),
    "Bearer": header(f"Bearer {CANARY}"),
    "Digest": header('Digest username="alice"'),
    "two headers": header(basic("alice", PASSWORD), basic("mallory", PASSWORD)),
    "a stale login beside the empty one": header(basic("", ""), basic("alice", PASSWORD)),
}


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


class LockedRegistry(RegistryProcess):
    """A server with the users alice, bob and long in a file, and one image in `team/app`."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.users = folder / "users.htpasswd"
        self.write_users(alice=PASSWORD, bob="another", long="x" * 72)
        super().__init__(folder, {"LADING_AUTH__HTPASSWD": str(self.users), **(settings or {})})

    def write_users(self, **passwords: str) -> None:
        """Put a new file in place of the old one."""
        new = self.users.with_suffix(".new")
        new.write_text("".join(f"{name}:{hashed(password)}\n" for name, password in passwords.items()))
        new.replace(self.users)

    def all_output(self) -> str:
        """Return everything it has said."""
        return self._log.read_text() + self._errors.read_text()


def running(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[LockedRegistry]:
    server = LockedRegistry(folder, settings)
    server.start_whole()
    try:
        Repository(server.wire, PRESENT, tuple(USER)).push_image("latest")
        yield server
        if server.running:
            server.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockedRegistry]:
    """Run a server that wants a login for everything."""
    yield from running(tmp_path_factory.mktemp("locked"))


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockedRegistry]:
    """Run a server that lets everybody read."""
    yield from running(tmp_path_factory.mktemp("readable"), {"LADING_AUTH__ANONYMOUS_PULL": "true"})


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LockedRegistry]:
    """Run a server whose users a test changes."""
    yield from running(tmp_path)


def path_of(route: Route, repository: str) -> str:
    digest = digest_of(b"nobody has this")
    filled = route.path.replace("<name>", repository).replace("<digest>", digest)
    return filled.replace("<tag-or-digest>", "latest").replace("<id>", "5f0c6d4e-7d0b-4c0e-9a53-3f7f5f6f2a11")


def ask(wire: Wire, method: str, path: str, headers: Headers) -> Reply:
    return wire.request(method, path, headers=headers)


def assert_challenged(reply: Reply) -> None:
    reply.expect_error(401, "UNAUTHORIZED")
    assert reply.all("WWW-Authenticate") == [CHALLENGE], f"one challenge, and this one\n{reply}"


def looks(reply: Reply) -> tuple[object, ...]:
    """Return what a caller sees of a reply, but for what differs each time."""
    fields = [(name, value) for name, value in reply.headers if name.lower() not in {"x-request-id", "date"}]
    return reply.status, fields, reply.body


# The matrix: routes x methods x callers


@pytest.mark.parametrize("caller", [*STRANGERS, *REFUSED])
def test_without_a_login_every_route_is_the_same_challenge(locked: LockedRegistry, caller: str) -> None:
    """Whatever differs for a name that exists, or a path that leads somewhere, tells a stranger what is there."""
    headers = STRANGERS.get(caller) or REFUSED.get(caller, ())

    for method in METHODS:
        seen = set()
        paths = [path_of(route, name) for route in TABLE.values() for name in (PRESENT, ABSENT)]
        for path in (*paths, *NOWHERE):
            reply = ask(locked.wire, method, path, headers)
            if method == "OPTIONS" and path in paths:
                reply.expect(204, {"WWW-Authenticate": None})
                continue
            assert_challenged(reply)
            seen.add(repr(looks(reply)))
        assert len(seen) == 1, f"{method}: {seen}"


def test_a_user_gets_through_on_every_route(locked: LockedRegistry) -> None:
    """One route that forgets the policy refuses its users, or lets in everybody: the test above is the other half."""
    for route in TABLE.values():
        for method in METHODS:
            reply = ask(locked.wire, method, path_of(route, PRESENT), USER)
            assert reply.status not in {401, 403}, str(reply)
            assert (reply.status == 405) == (method not in route.methods and method != "OPTIONS"), str(reply)
    for path in NOWHERE:
        assert ask(locked.wire, "GET", path, USER).status in {400, 404}


@pytest.mark.parametrize("caller", STRANGERS)
def test_where_everybody_may_read_a_stranger_may_do_just_that(readable: LockedRegistry, caller: str) -> None:
    """The actions of the table decide, and the base is a challenge all the same: docker learns it nowhere else."""
    for route in TABLE.values():
        for method in METHODS:
            reply = ask(readable.wire, method, path_of(route, PRESENT), STRANGERS[caller])
            endpoint = route.methods.get(method)
            if method == "OPTIONS":
                reply.expect(204)
            elif endpoint is not None and endpoint.action in READING:
                assert reply.status in {200, 404}, str(reply)
            else:
                assert_challenged(reply)
    assert_challenged(ask(readable.wire, "GET", "/v2/", STRANGERS[caller]))


@pytest.mark.parametrize("caller", REFUSED)
def test_wrong_credentials_are_never_taken_for_none(readable: LockedRegistry, caller: str) -> None:
    """Somebody who thinks they are logged in learns that they are not, before they wonder why a push fails."""
    for route in TABLE.values():
        for method in ("GET", "HEAD", "POST"):
            assert_challenged(ask(readable.wire, method, path_of(route, PRESENT), REFUSED[caller]))


def test_a_stranger_reads_bytes_and_takes_no_lease(readable: LockedRegistry) -> None:
    """Reading leaves no trace in the database: a crowd of strangers could otherwise keep it writing."""
    content = os.urandom(100)
    digest = Repository(readable.wire, PRESENT, tuple(USER)).push_blob(content)
    stranger, user = Repository(readable.wire, PRESENT), Repository(readable.wire, PRESENT, tuple(USER))

    assert stranger.request("GET", f"blobs/{digest}").expect(200).body == content
    assert stranger.request("GET", "tags/list").expect(200).json()["tags"] == ["latest"]
    assert PRESENT in stranger.send("GET", "/v2/_catalog").expect(200).json()["repositories"]
    with dbapi2.connect(readable.data / "lading.db") as database:
        database.execute("UPDATE repo_blobs SET keep_until_us = 0")
    stranger.request("HEAD", f"blobs/{digest}").expect(200)
    assert longest_lease(readable) == 0
    user.request("HEAD", f"blobs/{digest}").expect(200)
    assert longest_lease(readable) > 0


def longest_lease(server: RegistryProcess) -> int:
    with dbapi2.connect(f"file:{server.data}/lading.db?mode=ro", uri=True) as database:
        until_us: int = database.execute("SELECT max(keep_until_us) FROM repo_blobs").fetchone()[0]
    return until_us


# What a login is worth


def test_a_whole_push_is_recorded_under_the_user(locked: LockedRegistry) -> None:
    """History that says anonymous says nothing."""
    with dbapi2.connect(f"file:{locked.data}/lading.db?mode=ro", uri=True) as database:
        actors = database.execute("SELECT DISTINCT actor FROM feed").fetchall()

    assert actors == [("alice",)]


def test_a_mount_is_between_repositories_that_a_user_may_read(locked: LockedRegistry) -> None:
    """All may, today: the question is asked and answered, and costs no second password."""
    source = Repository(locked.wire, PRESENT, tuple(USER))
    digest = source.push_blob(os.urandom(100))
    target = Repository(locked.wire, "team/copy", tuple(USER))

    target.request("POST", f"blobs/uploads/?mount={digest}&from={PRESENT}", body=b"").expect(201)


def test_a_large_body_is_not_asked_for_before_the_login(locked: LockedRegistry) -> None:
    """`Expect: 100-continue` is how a client keeps a gigabyte to itself until it is welcome."""
    with locked.wire.connect() as connection:
        connection.send(
            b"POST /v2/team/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 1000000\r\n\r\n"
        )
        reply = connection.read_reply("POST /v2/team/app/blobs/uploads/")

    assert_challenged(reply)


# The file, while the server runs


def status(server: RegistryProcess, headers: Headers) -> set[int]:
    """Return what some connections hear, so that each worker is asked."""
    return {server.wire.request("GET", "/v2/", headers=headers).status for _ in range(8)}


def test_a_user_who_is_removed_is_out_and_a_new_one_in(own: LockedRegistry) -> None:
    """Without a restart, and although the login was remembered."""
    assert status(own, USER) == {200}

    own.write_users(bob="another", carol="third")

    assert until(lambda: status(own, USER) == {401})
    assert until(lambda: status(own, header(basic("carol", "third"))) == {200})


@pytest.mark.parametrize("damage", ["broken", "gone"])
def test_a_file_that_cannot_be_used_is_an_error_in_the_log_and_no_lockout(own: LockedRegistry, damage: str) -> None:
    """The users stay those of the last good file, until the next one."""
    assert status(own, USER) == {200}

    if damage == "broken":
        own.users.write_text(f"alice:{CANARY}\n")
    else:
        own.users.unlink()

    assert until(lambda: "the file of users cannot be used" in own.all_output())
    assert status(own, USER) == {200}
    assert status(own, header(basic("alice", CANARY))) == {401}
    told = [line for line in own.all_output().splitlines() if "the file of users cannot be used" in line]
    assert 1 <= len(told) <= 2, own.output()
    assert ("line 1" if damage == "broken" else "no such file") in told[0]
    assert CANARY not in own.all_output()
    own.write_users(carol="third")
    assert until(lambda: status(own, USER) == {401})


def test_a_worker_that_begins_while_the_file_is_broken_lets_nobody_in(own: LockedRegistry) -> None:
    """It cannot know whom the others have seen removed; and a client that hears 503 keeps its login."""
    own.users.write_text("alice:plain\n")
    for pid in own.tree()[1:]:
        os.kill(pid, 9)
    assert until(lambda: len(own.tree()) == 3 and "replaced" in own.all_output())

    assert until(lambda: _answers(own) == {503})
    own.write_users(alice=PASSWORD)
    assert until(lambda: _answers(own) == {200})
    own.kill()


def _answers(server: RegistryProcess) -> set[int]:
    try:
        return status(server, USER)
    except OSError:
        return set()


# Secrets


def test_no_credential_reaches_a_log_a_reply_or_the_disk(own: LockedRegistry) -> None:
    """Each of them is read by more people than may push."""
    own.write_users(alice=CANARY)
    time.sleep(1.1)
    tokens = [basic("alice", CANARY), basic("bob", CANARY), basic(CANARY, ""), f"Bearer {CANARY}", CANARY]
    tokens += [basic("alice", CANARY + "\0"), basic(b"\xff", CANARY), basic("alice", CANARY * 10), f"Basic {CANARY}"]
    replies = [
        own.wire.request(method, path, headers=header(token))
        for token in tokens
        for method in ("GET", "POST", "PUT")
        for path in ("/v2/", "/v2/team/app/blobs/uploads/", "/v2/team/app/manifests/x", "/nowhere", "/readyz")
    ]
    own.users.write_text(f"alice:{CANARY}\n")
    time.sleep(1.1)
    own.wire.request("GET", "/v2/", headers=header(tokens[0]))
    own.stop()

    secrets = [CANARY.encode(), *(token.rpartition(" ")[2].encode() for token in tokens)]
    kept = [path.read_bytes() for path in own.data.rglob("*") if path.is_file()]
    said = [own.all_output().encode(), *(repr(reply.headers).encode() + reply.body for reply in replies)]
    assert not [secret for secret in secrets for text in (*kept, *said) if secret in text]
