"""The file of users: what its lines may be, and what happens to it while the server runs."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lading.auth.htpasswd import MAX_FILE_BYTES, Htpasswd, Users, load, parse, with_user
from lading.oci.errors import UsersUnusable

PLACE = Path("users.htpasswd")
HASH = "$2y$05$" + "a" * 21 + "e" + "b" * 31
OTHER_HASH = HASH.replace("b", "c")
SECRET = "hunter2-do-not-show"


def test_the_three_names_of_bcrypt_are_one_algorithm() -> None:
    """Apache writes $2y$, Go $2a$, Python $2b$."""
    lines = "\n".join(f"user{kind}:{HASH.replace('$2y$', f'$2{kind}$')}" for kind in "aby")

    assert list(parse(lines.encode(), PLACE)) == ["usera", "userb", "usery"]


def test_comments_blank_lines_and_line_ends_are_nobody() -> None:
    """Files are edited by hand, on every system."""
    text = f"# team\r\n\r\n  \nalice:{HASH}  \r\n#bob:{HASH}\nJörg Müller:{HASH}"

    assert parse(text.encode(), PLACE) == {"alice": HASH.encode(), "Jörg Müller": HASH.encode()}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bob:$apr1$abcdefgh$0123456789012345678901", "has an MD5 hash"),
        ("bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "has an SHA-1 hash"),
        ("bob:$6$salt$0123456789", "has a crypt hash"),
        ("bob:$2x$05$" + "a" * 21 + "e" + "b" * 31, "has a damaged bcrypt hash"),
        (f"bob:{HASH[:-1]}", "has a damaged bcrypt hash"),
        (f"bob:{HASH}:x", "has a damaged bcrypt hash"),
        ("bob:$2y$05$" + "a" * 22 + "b" * 31, "has a damaged bcrypt hash"),
        (f"bob:{SECRET}", "has something else than a hash"),
        ("bob:", "has something else than a hash"),
        (SECRET, "is not `name:hash`"),
        (f":{HASH}", "has no name that a user can have"),
        (f" bob:{HASH}", "has no name that a user can have"),
        (f"bo\tb:{HASH}", "has no name that a user can have"),
        (f"bo\0b:{HASH}", "has no name that a user can have"),
        (f"\ufeffbob:{HASH}", "has no name that a user can have"),
        (f"anonymous:{HASH}", "has no name that a user can have"),
        (f"{'b' * 256}:{HASH}", "has no name that a user can have"),
        (f"bob:{HASH.replace('$05$', '$16$')}", "has a hash for bob whose cost is not 4 to 15"),
        (f"bob:{HASH.replace('$05$', '$03$')}", "has a hash for bob whose cost is not 4 to 15"),
        (f"alice:{OTHER_HASH}", "names alice again, after line 2"),
    ],
)
def test_a_line_that_is_no_user_is_named_and_its_secret_is_not(line: str, problem: str) -> None:
    """A line that is skipped is a user that the operator believes in; a hash in the log is a gift."""
    with pytest.raises(UsersUnusable) as raised:
        parse(f"# team\nalice:{HASH}\n{line}\n".encode(), PLACE)

    assert raised.value.message.startswith(f"users.htpasswd: line 3 {problem}")
    assert "htpasswd -B" in raised.value.hint
    assert SECRET not in raised.value.message
    assert "$" not in raised.value.message


@given(st.binary(max_size=200) | st.text(alphabet="ab:#$2y\n\r0. ", max_size=200).map(str.encode))
def test_any_bytes_are_users_or_one_error(content: bytes) -> None:
    """The file is the operator's, and what they pasted into it may be anything."""
    try:
        users = parse(content, PLACE)
    except UsersUnusable:
        return

    assert all(name and ":" not in name for name in users)


def test_a_name_that_is_unknown_has_the_hash_of_somebody_always_the_same() -> None:
    """Equal cost for all: hashes of two costs would tell by time which names exist."""
    hashes = {f"user{number}": f"$2y${number:02}$".encode() for number in range(4, 12)}
    users, again = Users(hashes), Users(dict(reversed(hashes.items())))

    found = [users.hash_of(f"nobody{number}") for number in range(200)]

    assert {hashed for hashed, _ in found} == set(hashes.values())
    assert not any(is_theirs for _, is_theirs in found)
    assert found == [again.hash_of(f"nobody{number}") for number in range(200)]
    assert users.hash_of("user4") == (b"$2y$04$", True)
    with pytest.raises(KeyError):
        Users({}).hash_of("anybody")


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "too large", "not ours to read"])
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, kind: str) -> None:
    """A named pipe would otherwise hold the start for ever."""
    path = tmp_path / "users"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "too large":
        path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    elif kind == "not ours to read":
        path.symlink_to(path)

    with pytest.raises(UsersUnusable, match=r"users: (cannot be read: [a-z]|is not a file|is larger than 1024 KiB)"):
        load(path)


class Watched:
    """A file of users that a test writes, and its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = Htpasswd(path)

    def write(self, *names: str, hashed: str = HASH) -> None:
        self.path.write_text("".join(f"{name}:{hashed}\n" for name in names))

    def look(self) -> Mapping[str, bytes] | None:
        self.reader.look()
        return None if self.reader.users is None else self.reader.users.hashes

    def names(self) -> list[str] | None:
        users = self.look()
        return None if users is None else list(users)


@pytest.fixture
def file(tmp_path: Path) -> Watched:
    path = tmp_path / "users"
    path.write_text(f"alice:{HASH}\nbob:{HASH}\n")
    return Watched(path)


def test_the_file_is_read_before_the_first_login(file: Watched) -> None:
    """A worker that reads at its first request may find a file that is broken by then."""
    assert file.reader.users is not None
    assert list(file.reader.users.hashes) == ["alice", "bob"]


def test_a_watcher_sees_a_change_by_itself(file: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that nobody asks: its last good state must not be older than the others'."""
    monkeypatch.setattr("lading.auth.htpasswd.LOOK_SECONDS", 0.01)

    async def scene() -> None:
        watching = asyncio.create_task(file.reader.watch())
        file.write("carol")
        await asyncio.sleep(0.3)
        watching.cancel()

    asyncio.run(scene())

    assert file.reader.users is not None
    assert list(file.reader.users.hashes) == ["carol"]


def test_a_change_that_leaves_no_trace_counts_while_the_file_is_new(
    file: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the file system's clock leave the same dates and length."""
    monkeypatch.setattr("lading.auth.htpasswd._signature", lambda _: (0, 0, 0, 0, 0))
    file.look()
    file.write("alice", "bob", hashed=OTHER_HASH)

    assert file.look() == {"alice": OTHER_HASH.encode(), "bob": OTHER_HASH.encode()}


def test_an_old_file_is_read_once(file: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is one stat; a file of a thousand users is not parsed each second."""
    os.utime(file.path, (1, 1))
    users = file.look()
    monkeypatch.setattr("lading.auth.htpasswd.parse", lambda *_: pytest.fail("it was read again"))

    assert file.look() is users


@pytest.mark.parametrize("damage", ["broken line", "vanished", "folder"])
def test_a_file_that_cannot_be_used_leaves_its_last_users_in_force(file: Watched, damage: str) -> None:
    """A slip in an editor locks nobody out in the middle of a push; and it is over as soon as it is mended."""
    if damage == "broken line":
        file.path.write_text("alice:plain\n")
    else:
        file.path.unlink()
    if damage == "folder":
        file.path.mkdir()

    assert file.names() == ["alice", "bob"]
    assert file.names() == ["alice", "bob"]
    if damage == "folder":
        file.path.rmdir()
    file.write("carol")
    assert file.names() == ["carol"]


@pytest.mark.parametrize("is_old", [True, False])
def test_a_complaint_is_made_once(file: Watched, is_old: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - of a pair
    """A line per second would bury what else the log has to say."""
    said: list[str] = []
    monkeypatch.setattr("lading.auth.htpasswd.log.error", lambda _, reason: said.append(reason), raising=False)
    if is_old:
        os.utime(file.path, (1, 1))
        file.look()
    file.path.unlink()

    for _ in range(3):
        file.look()

    assert said == [f"{file.path}: cannot be read: no such file or directory"]


def test_one_that_never_saw_a_good_file_has_no_users(tmp_path: Path) -> None:
    """A worker that begins while the file is broken cannot know who was removed since the others read it."""
    watched = Watched(tmp_path / "users")

    assert watched.names() is None
    watched.write("alice")
    assert watched.names() == ["alice"]


def test_a_user_is_added_or_changed_and_all_other_lines_stay() -> None:
    """Comments are somebody's work."""
    before = f"# team\n\nalice:{HASH}\nbob:{HASH}".encode()

    changed = with_user(before, PLACE, "alice", OTHER_HASH.encode())
    added = with_user(before, PLACE, "carol", OTHER_HASH.encode())

    assert changed == f"# team\n\nalice:{OTHER_HASH}\nbob:{HASH}\n".encode()
    assert added == f"# team\n\nalice:{HASH}\nbob:{HASH}\ncarol:{OTHER_HASH}\n".encode()


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\n", "anonymous", "x" * 256, "\ud800"])
def test_a_user_with_a_name_that_cannot_be_is_not_written(name: str) -> None:
    """A line that the server refuses keeps it from starting."""
    with pytest.raises(UsersUnusable):
        with_user(b"", PLACE, name, HASH.encode())


def test_the_hash_in_these_tests_is_one_that_bcrypt_takes() -> None:
    """A pattern that is stricter than the library would refuse good files; a laxer one fails at the first login."""
    assert bcrypt.checkpw(b"", HASH.encode()) is False
    with pytest.raises(ValueError, match="salt"):
        bcrypt.checkpw(b"", b"$2y$05$" + b"a" * 22 + b"b" * 31)
