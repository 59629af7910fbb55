"""The file of users: `name:hash` on each line, as `htpasswd -B` writes it, and read again when it changes."""

import asyncio
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from lading.auth.identity import ANONYMOUS
from lading.oci.errors import UsersUnusable

log = structlog.get_logger(__name__)

MAX_FILE_BYTES = 1024 * 1024
MAX_NAME_BYTES = 255
# 2**15 rounds take about 1.6 s of one core; 2**31 would take days.
MIN_COST, MAX_COST = 4, 15
LOOK_SECONDS = 1.0
# File systems count time in steps: two writes within one look like one. So a file this young is read once more.
SETTLED_SECONDS = 2.0
# 22 digits of salt, the last of which has four spare bits, and 31 of the hash.
BCRYPT = re.compile(rb"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
NAME_RULE = f"1 to {MAX_NAME_BYTES} bytes of UTF-8 without colons and control characters, not `{ANONYMOUS.name}`"
_HINT = "`htpasswd -B FILE NAME` writes such a line, and so does `lading htpasswd FILE NAME`"
_OTHERS = ((b"$apr1$", "an MD5"), (b"{SHA}", "an SHA-1"), (b"$2", "a damaged bcrypt"), (b"$", "a crypt"))
_Signature = tuple[int, int, int, int, int]


class Users:
    """The users of one reading of the file: names, and the bcrypt hashes of their passwords."""

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self.hashes = hashes
        self._names = sorted(hashes)
        self._key = hashlib.sha256(b"\n".join(hashes[name] for name in self._names)).digest()

    def hash_of(self, name: str) -> tuple[bytes, bool]:
        """Return the hash to compare a password with, and whether it is that of `name`.

        For a name that nobody has it is another user's, always the same one: so the time that a comparison takes tells
        nobody who is a user, also where hashes differ in cost.

        Raises:
            KeyError: there are no users.

        """
        found = self.hashes.get(name)
        if found is not None:
            return found, True
        if not self._names:
            raise KeyError(name)
        number = int.from_bytes(hashlib.blake2b(name.encode(), key=self._key, digest_size=8).digest())
        return self.hashes[self._names[number % len(self._names)]], False


class Htpasswd:
    """The users of a file as it was at the last look; each process looks for itself, once a second, also when idle.

    While the file is gone or cannot be used, those of its last good state stay: a slip in an editor locks nobody out in
    the middle of a push, and what is not there says of nobody that they were removed. A process that never saw a good
    state has no users: it cannot know who was removed since the others read it.
    """

    def __init__(self, path: Path) -> None:
        self.users: Users | None = None
        self._path = path
        self._seen: _Signature | None = None
        self._settled = False
        self._complaint = ""
        self.look()

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Read the file, if it is another than at the last look."""
        try:
            if self._settled and self._is_as_seen():
                return
            content, self._seen, self._settled = _read(self._path)
            users = Users(parse(content, self._path))
        except UsersUnusable as error:
            self._settled = False
            self._complain(str(error))
            return
        if self._complaint:
            log.info("the file of users is in order again", file=str(self._path), users=len(users.hashes))
            self._complaint = ""
        if self.users is None or users.hashes != self.users.hashes:
            self.users = users

    def _is_as_seen(self) -> bool:
        try:
            return _signature(self._path.stat()) == self._seen
        except OSError:  # reading it says why, in the same words each time
            return False

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.error("the file of users cannot be used; its last good state stays in force", reason=reason)
            self._complaint = reason


def load(path: Path) -> Users:
    """Return the users of the file.

    Raises:
        UsersUnusable: it cannot be read, or a line of it is no user with a bcrypt hash.

    """
    content, _, _ = _read(path)
    return Users(parse(content, path))


def parse(content: bytes, path: Path) -> dict[str, bytes]:
    """Return name and hash of each user; empty lines and those that begin with `#` are nobody.

    Raises:
        UsersUnusable: the sentence names the line and never what stands behind the name.

    """
    hashes: dict[str, bytes] = {}
    lines: dict[str, int] = {}
    for number, name, hashed in _entries(content, path):
        if name in lines:
            raise _refusal(path, number, f"names {name} again, after line {lines[name]}")
        lines[name] = number
        hashes[name] = hashed
    return hashes


def with_user(content: bytes, path: Path, name: str, hashed: bytes) -> bytes:
    """Return the file's content with one user added or changed; every other line stays as it is.

    Raises:
        UsersUnusable: as `parse`, or `name` is none that a user can have.

    """
    if _name(name.encode("utf-8", "surrogatepass")) is None:
        raise UsersUnusable(f"{name} is no name that a user can have", NAME_RULE)
    line = name.encode() + b":" + hashed
    numbers = {number for number, other, _ in _entries(content, path) if other == name}
    lines = content.splitlines()
    if not numbers:
        return b"".join(each + b"\n" for each in (*lines, line))
    return b"".join((line if number in numbers else each) + b"\n" for number, each in enumerate(lines, 1))


def _entries(content: bytes, path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, name and hash of each line that is a user."""
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        raw, colon, hashed = line.rstrip().partition(b":")
        if not colon:
            raise _refusal(path, number, "is not `name:hash`")
        name = _name(raw)
        if name is None:
            raise _refusal(path, number, f"has no name that a user can have: {NAME_RULE}")
        match = BCRYPT.fullmatch(hashed)
        if match is None:
            raise _refusal(path, number, f"has {_kind(hashed)} for {name}; only bcrypt is accepted")
        if not MIN_COST <= int(match["cost"]) <= MAX_COST:
            raise _refusal(path, number, f"has a hash for {name} whose cost is not {MIN_COST} to {MAX_COST}")
        yield number, name, hashed


def _name(raw: bytes) -> str | None:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    if not 0 < len(raw) <= MAX_NAME_BYTES or not name.isprintable() or name != name.strip():
        return None
    return None if name == ANONYMOUS.name or ":" in name or name.startswith("#") else name


def _kind(hashed: bytes) -> str:
    return next((f"{words} hash" for begin, words in _OTHERS if hashed.startswith(begin)), "something else than a hash")


def _refusal(path: Path, number: int, problem: str) -> UsersUnusable:
    return UsersUnusable(f"{path}: line {number} {problem}", _HINT)


def _read(path: Path) -> tuple[bytes, _Signature, bool]:
    """Return the content, what the file is recognized by, and whether it is too old to change without a trace."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123 - a flag that a Path cannot give
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsersUnusable(f"{path}: is not a file", _HINT)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsersUnusable(f"{path}: cannot be read: {(error.strerror or 'unknown error').lower()}", _HINT) from error
    if len(content) > MAX_FILE_BYTES:
        raise UsersUnusable(f"{path}: is larger than {MAX_FILE_BYTES // 1024} KiB", _HINT)
    return content, _signature(status), abs(time.time() - status.st_mtime) > SETTLED_SECONDS


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
