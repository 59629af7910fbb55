"""The check of passwords: what a header may say, and what a crowd of logins costs."""

import asyncio
import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import bcrypt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lading.auth import passwords
from lading.auth.htpasswd import Htpasswd
from lading.auth.identity import Identity
from lading.auth.passwords import (
    KNOWN_SECONDS,
    MAX_KNOWN,
    MAX_WAITING_PER_THREAD,
    Credentials,
    Logins,
    hash_password,
)
from lading.oci.errors import Busy, TooManyLogins, Unauthorized

RIGHT, WRONG = b"right", b"wrong"


def basic(name: str, password: bytes | str) -> str:
    raw = password.encode() if isinstance(password, str) else password
    return "Basic " + base64.b64encode(name.encode() + b":" + raw).decode()


# The header


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic  ", " Basic"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    """RFC 9110 says so, and clients do."""
    assert Credentials.parse(f"{scheme} YTpi") == Credentials("a", b"b")


def test_a_password_may_have_colons_and_any_text() -> None:
    """Only the first colon divides."""
    assert Credentials.parse(basic("Jörg", "a:ü:")) == Credentials("Jörg", "a:ü:".encode())
    assert Credentials.parse(basic("a", b"\xff\xfe")) == Credentials("a", b"\xff\xfe")


def test_an_empty_name_and_password_are_none() -> None:
    """Podman and skopeo send them to a registry that asks for Basic, when they have no login; so pulls would fail."""
    assert Credentials.parse("Basic Og==") is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic YTpi YTpi",
        "Basic YTpi, Basic YTpi",
        "Basic YTp",
        "Basic YTpi\n",
        "Basic Y T p i",
        "Basic *****",
        "Basic YTpi\u00e9",
        "Basic YWI=",  # no colon
        "Bearer YTpi",
        "YTpi",
        "Basi YTpi",
        "Digest username=a",
        basic("", "b"),
        basic("a", ""),
        basic("a\0", "b"),
        basic("a", "b\0"),
        "Basic " + base64.b64encode(b"\xff:b").decode(),
        basic("a", "b" * 73),
        basic("a", "\u00e4" * 37),
    ],
)
def test_a_header_that_holds_no_name_and_password_is_a_challenge(header: str) -> None:
    """A client asks its user again at 401; at 400 it gives up with nothing to say."""
    with pytest.raises(Unauthorized) as raised:
        Credentials.parse(header)

    assert raised.value.headers == {"WWW-Authenticate": 'Basic realm="Lading"'}


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda raw: "Basic " + base64.b64encode(raw).decode()))
@example("Basic " + "A" * 30000)
def test_any_header_is_credentials_or_a_challenge(header: str) -> None:
    """It is the second thing that a stranger chooses."""
    try:
        credentials = Credentials.parse(header)
    except Unauthorized:
        return

    assert credentials is None or (credentials.name and 0 < len(credentials.password) <= 72)


@pytest.mark.parametrize("password", [b"", b"x" * 73, b"a\nb", b"a\0b"])
def test_no_hash_is_made_of_what_no_client_can_send(password: bytes) -> None:
    """A password that was cut off would be two passwords."""
    with pytest.raises(ValueError, match="a password has"):
        hash_password(password)


def test_a_hash_is_as_htpasswd_writes_it() -> None:
    """The file is also for other servers."""
    hashed = hash_password(b"x" * 72)

    assert hashed.startswith(b"$2y$10$")
    assert bcrypt.checkpw(b"x" * 72, hashed)


# The check


class Clock:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """Logins over a file with one user, `alice`, whose hash costs what the test wants."""

    def __init__(self, path: Path, cost: int, threads: int) -> None:
        self._path = path
        self._cost = cost
        self.clock = Clock()
        self.checks = 0
        self.write("alice")
        self.file = Htpasswd(path)
        self.logins = Logins(self.file, threads=threads, clock=self.clock)

    def write(self, *names: str, password: bytes = RIGHT) -> None:
        hashed = bcrypt.hashpw(password, bcrypt.gensalt(self._cost)).decode()
        self._path.write_text("".join(f"{name}:{hashed}\n" for name in names))

    async def ask(self, name: str, password: bytes) -> str:
        """Return the identity's name, or the name of the error."""
        try:
            return (await self.logins.identify(Credentials(name, password))).name
        except (Unauthorized, TooManyLogins, Busy) as error:
            return type(error).__name__

    async def cost_checks(self, name: str, password: bytes, times: int = 1) -> int:
        """Return how many checks, each a tenth of a second, as many simultaneous requests take."""
        before = self.checks
        await asyncio.gather(*(self.ask(name, password) for _ in range(times)))
        return self.checks - before

    async def cost_seconds(self, name: str, password: bytes, times: int = 1) -> float:
        """Return the CPU time that as many simultaneous requests take."""
        began = time.process_time()
        await asyncio.gather(*(self.ask(name, password) for _ in range(times)))
        return time.process_time() - began


class MakeDoor(Protocol):
    """The fixture `door`."""

    def __call__(self, *, cost: int = 4, threads: int = 1) -> Door:
        """Make one."""
        ...


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDoor]:
    made: list[Door] = []
    check = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        made[-1].checks += 1
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)

    def make(*, cost: int = 4, threads: int = 1) -> Door:
        made.append(Door(tmp_path / f"users{len(made)}", cost, threads))
        return made[-1]

    yield make
    for each in made:
        each.logins.close()


def test_who_knows_the_password_is_let_in_and_nobody_else(door: MakeDoor) -> None:
    """Also not the stand-in's password for an unknown name, which is what it is compared with."""

    async def scene() -> list[str]:
        at = door()
        asked = [("alice", RIGHT), ("alice", WRONG), ("bob", RIGHT), ("bob", WRONG), ("Alice", RIGHT)]
        return [await at.ask(name, password) for name, password in asked * 2]

    assert asyncio.run(scene()) == ["alice", *["Unauthorized"] * 4] * 2


def test_a_login_is_remembered_for_a_minute_and_a_refusal_never(door: MakeDoor) -> None:
    """Each request of a push carries the password, and each check is a tenth of a second."""

    async def scene() -> list[int]:
        at = door()
        asked = [RIGHT, *[RIGHT] * 5, *[WRONG] * 3]
        checks = [await at.cost_checks("alice", password) for password in asked]
        at.clock.now += KNOWN_SECONDS
        return [*checks, await at.cost_checks("alice", RIGHT)]

    assert asyncio.run(scene()) == [1, *[0] * 5, *[1] * 3, 1]


def test_a_crowd_with_one_password_is_one_check(door: MakeDoor) -> None:
    """A client opens five connections at once, and a fleet of builders fifty."""
    assert asyncio.run(door().cost_checks("alice", RIGHT, 50)) == 1


def test_more_than_can_be_checked_are_told_to_come_back(door: MakeDoor) -> None:
    """A queue without end is a server that answers nobody in time."""

    async def scene() -> tuple[list[str], str]:
        at = door()
        crowd = [at.ask(f"user{number}", WRONG) for number in range(MAX_WAITING_PER_THREAD + 8)]
        return await asyncio.gather(*crowd), await at.ask("alice", RIGHT)

    answers, afterwards = asyncio.run(scene())

    assert answers == ["Unauthorized"] * MAX_WAITING_PER_THREAD + ["TooManyLogins"] * 8
    assert afterwards == "alice"


def test_nobody_waits_for_ever(door: MakeDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait has a deadline; what was begun for one who left serves the next."""
    monkeypatch.setattr(passwords, "LOGIN_SECONDS", 0.02)

    async def scene() -> list[str]:
        at = door(cost=11)
        first = await at.ask("alice", RIGHT)
        await asyncio.sleep(0.5)
        return [first, await at.ask("alice", RIGHT)]

    answers = asyncio.run(scene())

    assert answers[0] == "TooManyLogins"


def test_the_event_loop_goes_on_meanwhile(door: MakeDoor) -> None:
    """A check on the loop would hold every push and pull of the worker."""

    async def scene() -> int:
        login = asyncio.create_task(door(cost=11).ask("alice", RIGHT))
        turns = 0
        while not login.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    assert asyncio.run(scene()) > 10


def test_an_unknown_name_takes_as_long_as_a_known_one(door: MakeDoor) -> None:
    """Else a stranger learns who works here."""

    async def scene() -> tuple[float, float]:
        at = door(cost=8)
        known, unknown = [], []
        for number in range(15):
            known.append(await at.cost_seconds("alice", WRONG))
            unknown.append(await at.cost_seconds(f"bob{number}", WRONG))
        return min(known), min(unknown)

    known, unknown = asyncio.run(scene())

    assert 0.7 < known / unknown < 1.4


def test_a_change_of_the_file_forgets_every_login(door: MakeDoor) -> None:
    """Who was removed is out within a second, whatever they did before."""

    async def scene() -> list[str]:
        at = door()
        answers = [await at.ask("alice", RIGHT)]
        at.write("alice", password=b"another")
        answers.append(await at.ask("alice", RIGHT))
        at.file.look()
        answers += [await at.ask("alice", RIGHT), await at.ask("alice", b"another")]
        at.write("bob")
        at.file.look()
        return [*answers, await at.ask("alice", b"another"), await at.ask("bob", RIGHT)]

    assert asyncio.run(scene()) == ["alice", "alice", "Unauthorized", "alice", "Unauthorized", "bob"]


def test_a_check_that_a_change_overtook_is_not_remembered(door: MakeDoor) -> None:
    """It would let somebody in for a minute after they were removed."""

    async def scene() -> list[str]:
        at = door(cost=10)
        early = asyncio.create_task(at.ask("alice", RIGHT))
        await asyncio.sleep(0.005)
        at.write("bob")
        at.file.look()
        late = await at.ask("alice", RIGHT)
        return [await early, late, await at.ask("alice", RIGHT)]

    assert asyncio.run(scene()) == ["alice", "Unauthorized", "Unauthorized"]


def test_a_file_that_was_never_good_is_no_refusal(tmp_path: Path) -> None:
    """A client that hears 401 forgets a login that is right."""

    async def scene() -> None:
        logins = Logins(Htpasswd(tmp_path / "missing"), threads=1)
        try:
            await logins.identify(Credentials("alice", RIGHT))
        finally:
            logins.close()

    with pytest.raises(Busy, match="the file of users cannot be read"):
        asyncio.run(scene())


def test_what_is_remembered_has_a_bound(door: MakeDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not given by those who log in."""
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: True)

    async def scene() -> int:
        at = door()
        at.write(*(f"user{number}" for number in range(MAX_KNOWN + 20)))
        at.file.look()
        for number in range(MAX_KNOWN + 20):
            assert await at.logins.identify(Credentials(f"user{number}", RIGHT)) == Identity(f"user{number}")
        return len(at.logins._known)  # noqa: SLF001 - what is kept shows nowhere else

    assert asyncio.run(scene()) == MAX_KNOWN
