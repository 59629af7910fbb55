"""What it takes to be reached from elsewhere: users, or the word of the operator that everybody may."""

import os
import pty
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from tests.capability.certificates import Authority
from tests.capability.program import Serve, Server
from tests.capability.server import LADING, until
from tests.capability.test_serve import lading

TOP = Path(__file__).parents[2]
OPEN = "everybody who can reach this address may pull, push and delete: there is no authentication"
CLEAR = "passwords and content cross the network in clear text unless a proxy in front adds TLS"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.htpasswd"
    file.write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    return file


def own_address() -> Iterator[str]:
    """Yield a name of this machine that is not loopback, where it has one."""
    name = socket.gethostname()
    addresses = {str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    if not any(address.startswith("127.") or address == "::1" for address in addresses):
        yield name


def events(server: Server, *names: str) -> list[dict[str, Any]]:
    return [event for name in names for event in server.events(name)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", *own_address()])
def test_without_users_nothing_beyond_this_machine_is_listened_on(tmp_path: Path, host: str) -> None:
    """An open registry is found within hours, and then it keeps what strangers put into it."""
    result = lading("serve", "--host", host, "--port", "0", cwd=tmp_path)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: without authentication everybody who reaches ")
    assert "    lading htpasswd users.htpasswd NAME\n" in result.stderr
    assert "    lading serve --htpasswd users.htpasswd ...\n" in result.stderr
    assert "lading serve --open" in result.stderr
    assert not (tmp_path / "data" / "lading.db").exists()


def test_the_way_that_the_refusal_names_is_one(tmp_path: Path, serve: Serve) -> None:
    """Two lines from the refusal to a registry with a lock."""
    made = subprocess.run(
        [*LADING, "htpasswd", "users.htpasswd", "alice", "--stdin"],
        cwd=tmp_path,
        input=b"secret\n",
        capture_output=True,
        check=True,
    )
    server = serve("--host", "0.0.0.0", "--htpasswd", "users.htpasswd")

    server.wire.request("GET", "/v2/").expect(401)
    server.wire.request("GET", "/v2/", headers={"Authorization": "Basic YWxpY2U6c2VjcmV0"}).expect(200)
    assert made.stdout == b"alice can log in with this password, where users.htpasswd is auth.htpasswd\n"
    assert until(lambda: server.events(CLEAR) != [])
    assert server.events(CLEAR)[0]["addresses"] == [f"0.0.0.0:{server.port}"]
    assert server.events(OPEN) == []


def test_users_behind_tls_are_nothing_to_warn_of(serve: Serve, users: Path, tmp_path: Path) -> None:
    """A warning at each start of a server that is locked and sealed is one that nobody reads."""
    certificate, key = Authority(tmp_path / "authority").issue()
    server = serve(
        *("--host", "0.0.0.0", "--htpasswd", str(users)),
        *("--tls-certificate", str(certificate), "--tls-key", str(key)),
    )

    server.wait_until_ready()
    assert events(server, OPEN, CLEAR) == []


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_open_is_said_on_purpose_and_warned_about(serve: Serve, way: str) -> None:
    """Behind a firewall it is fine, and must be seen to be so."""
    asked = {"flag": (("--open",), {}), "variable": ((), {"LADING_AUTH__OPEN": "true"})}
    arguments, environ = asked[way]
    server = serve("--host", "0.0.0.0", *arguments, environ=environ)

    server.wire.request("GET", "/v2/").expect(200)
    assert until(lambda: server.events(OPEN) != [])
    assert server.events(OPEN)[0]["level"] == "warning"
    assert server.events(OPEN)[0]["addresses"] == [f"0.0.0.0:{server.port}"]


def test_on_loopback_nothing_is_asked_and_nothing_warned(serve: Serve) -> None:
    """The first minute with Lading is one command."""
    server = serve("--host", "127.0.0.1")

    server.wire.request("GET", "/v2/").expect(200)
    assert events(server, OPEN, CLEAR) == []


def test_open_beside_users_opens_nothing(serve: Serve, users: Path) -> None:
    """A flag that was forgotten in a unit file must not undo the lock."""
    server = serve("--host", "0.0.0.0", "--open", "--htpasswd", str(users))

    server.wire.request("GET", "/v2/").expect(401)


def test_make_serve_shows_the_refusal(tmp_path: Path) -> None:
    """The README's first command with HOST= is what people try next."""
    result = subprocess.run(
        ["make", "serve", "HOST=0.0.0.0", "PORT=0", f"DATA={tmp_path / 'data'}", f"VENV={TOP / '.venv'}"],
        cwd=TOP,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "error: without authentication everybody who reaches 0.0.0.0:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, users: Path) -> None:
    """A server that starts without its users is either shut or open, and both are wrong."""
    users.write_text("alice:$apr1$abcdefgh$0123456789012345678901\n")

    broken = lading("serve", "--htpasswd", str(users), "--port", "0", cwd=tmp_path)
    missing = lading("serve", "--htpasswd", "nowhere", "--port", "0", cwd=tmp_path)

    assert (broken.returncode, missing.returncode) == (1, 1)
    assert broken.stderr == (
        f"error: {users}: line 1 has an MD5 hash for alice; only bcrypt is accepted\n"
        " hint: `htpasswd -B FILE NAME` writes such a line, and so does `lading htpasswd FILE NAME`\n"
    )
    assert missing.stderr.startswith("error: nowhere: cannot be read: no such file or directory\n")


def test_reading_for_all_without_users_is_a_mistake(tmp_path: Path) -> None:
    """It sounds as if strangers could not write."""
    result = lading("config", "check", cwd=tmp_path, environ={"LADING_AUTH__ANONYMOUS_PULL": "true"})

    assert result.returncode == 2
    assert "auth.anonymous_pull (LADING_AUTH__ANONYMOUS_PULL): found true, wanted auth.htpasswd" in result.stderr


# At a reload


def test_a_reload_that_would_open_the_door_is_refused(serve: Serve, tmp_path: Path, users: Path) -> None:
    """Taking the users out of the file must not let everybody in; nor may users that cannot be read shut it."""
    (tmp_path / "lading.yaml").write_text(f"auth: {{htpasswd: {users}}}\n")
    server = serve("--host", "0.0.0.0")
    server.wire.request("GET", "/v2/").expect(401)

    (tmp_path / "lading.yaml").write_text("auth: {}\n")
    server.signal(signal.SIGHUP)
    assert until(lambda: len(failed(server)) == 1)
    (tmp_path / "lading.yaml").write_text("auth: {htpasswd: nowhere}\n")
    server.signal(signal.SIGHUP)
    assert until(lambda: len(failed(server)) == 2)

    assert failed(server)[0].startswith("without authentication everybody who reaches 0.0.0.0:")
    assert failed(server)[1] == "nowhere: cannot be read: no such file or directory"
    server.wire.request("GET", "/v2/").expect(401)
    (tmp_path / "lading.yaml").write_text(f"auth: {{htpasswd: {users}, anonymous_pull: true}}\n")
    server.signal(signal.SIGHUP)
    assert until(lambda: server.wire.request("GET", "/v2/_catalog").status == 200)


def failed(server: Server) -> list[str]:
    return [event["reason"] for event in server.events("reload failed: the workers with the old settings go on")]


# lading htpasswd


def test_a_password_is_asked_for_twice_and_never_shown(tmp_path: Path) -> None:
    """A terminal keeps what it shows."""
    shown = _typed(
        tmp_path, [*LADING, "htpasswd", "users", "alice"], [(b"of alice: ", b"secret\n"), (b"again: ", b"secret\n")]
    )
    differing = _typed(
        tmp_path,
        [*LADING, "htpasswd", "users", "bob"],
        [(b"of bob: ", b"sesame\n"), (b"again: ", b"simsim\n"), (b"of bob: ", b"\x03")],
    )

    (line,) = (tmp_path / "users").read_bytes().splitlines()
    assert line.startswith(b"alice:$2y$10$")
    assert bcrypt.checkpw(b"secret", line.partition(b":")[2])
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o640
    assert b"alice can log in" in shown
    assert b"secret" not in shown
    assert b"simsim" not in differing


def test_changing_a_user_keeps_the_rest_the_mode_and_the_owner(tmp_path: Path, users: Path) -> None:
    """The server reads it as another user, by its group; a link stays a link, and no reader sees half a file."""
    users.write_text(f"# team\n{users.read_text()}")
    users.chmod(0o604)
    before, whole = users.stat(), users.read_bytes()
    (tmp_path / "link").symlink_to(users)

    with users.open("rb") as reader:
        for name in ("bob", "alice"):
            subprocess.run([*LADING, "htpasswd", "link", name, "--stdin"], cwd=tmp_path, input=b"new\n", check=True)
        assert reader.read() == whole

    lines = users.read_bytes().splitlines()
    assert [line.partition(b":")[0] for line in lines] == [b"# team", b"alice", b"bob"]
    assert all(bcrypt.checkpw(b"new", line.partition(b":")[2]) for line in lines[1:])
    after = users.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "users.htpasswd"]


@pytest.mark.parametrize(
    ("name", "password", "sentence"),
    [
        ("a:b", b"secret\n", "a:b is no name that a user can have"),
        ("anonymous", b"secret\n", "anonymous is no name that a user can have"),
        ("bob", b"\n", "a password has 1 to 72 bytes"),
        ("bob", b"", "a password has 1 to 72 bytes"),
        ("bob", b"x" * 73 + b"\n", "a password has 1 to 72 bytes"),
        ("bob", b"a\tb\n", "a password has no control characters"),
    ],
)
def test_what_could_not_log_in_is_not_written(users: Path, name: str, password: bytes, sentence: str) -> None:
    """A password that is cut off silently is one that somebody else can guess the end of."""
    before = users.read_bytes()

    result = subprocess.run(
        [*LADING, "htpasswd", str(users), name, "--stdin"], input=password, capture_output=True, check=False
    )

    assert result.returncode == 1
    assert result.stderr.decode().startswith(f"error: {sentence}")
    assert users.read_bytes() == before


def _typed(folder: Path, command: list[str], answers: list[tuple[bytes, bytes]]) -> bytes:
    """Run a command on a terminal, type each answer after its prompt, and return what the terminal showed.

    It is typed when the command waits for it: Python sees a Ctrl-C that comes between its last look for signals and its
    read only when something else is typed.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a shell does; what runs in the background ignores it
        os.execv(command[0], command)
    shown = b""
    for prompt, answer in answers:
        before = len(shown)
        while not shown[before:].endswith(prompt):
            shown += _read(terminal, shown)
        assert until(lambda: _sleeps(child)), f"it does not read after {shown!r}"
        os.write(terminal, answer)
    while more := _read(terminal, shown):
        shown += more
    os.waitpid(child, 0)
    os.close(terminal)
    return shown


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _read(terminal: int, shown: bytes) -> bytes:
    assert select.select([terminal], [], [], 30)[0], f"nothing came after {shown!r}"
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""
