"""Passwords held against bcrypt hashes: never on the event loop, a bounded number at a time, and once for many who ask.

One check costs 50 to 200 ms of a core, by design; a client sends its password with every request.
"""

import asyncio
import binascii
import hmac
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import bcrypt

from lading.auth.htpasswd import Htpasswd, Users
from lading.auth.identity import Identity
from lading.oci.errors import Busy, TooManyLogins, Unauthorized

# bcrypt looks at no more; what others cut off silently, two different passwords may differ in.
MAX_PASSWORD_BYTES = 72
HASH_COST = 10
KNOWN_SECONDS = 60.0
MAX_KNOWN = 1024
MAX_WAITING_PER_THREAD = 32
LOGIN_SECONDS = 10.0
CHALLENGE = 'Basic realm="Lading"'


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password as a client sent them (RFC 7617)."""

    name: str
    password: bytes

    @classmethod
    def parse(cls, authorization: str) -> Self | None:
        """Read the header's value; None for an empty name with an empty password.

        Those are what podman and skopeo send for "I have none" to a registry that asks for Basic.

        Raises:
            Unauthorized: it is anything else than a name and a password that could be right.

        """
        scheme, _, token = authorization.strip(" \t").partition(" ")
        if scheme.lower() != "basic":
            raise Unauthorized(CHALLENGE, "this registry takes a name and a password (Basic)")
        try:
            name, colon, password = binascii.a2b_base64(token.strip(" "), strict_mode=True).partition(b":")
            credentials = cls(name.decode(), password)
        except (binascii.Error, ValueError) as error:
            raise Unauthorized(CHALLENGE, "the Authorization header is not valid") from error
        if colon and not name and not password:
            return None
        if not (colon and name and password) or b"\0" in name + password:
            raise Unauthorized(CHALLENGE, "the Authorization header has no name and password")
        if len(password) > MAX_PASSWORD_BYTES:
            raise Unauthorized(CHALLENGE, f"a password here has at most {MAX_PASSWORD_BYTES} bytes")
        return credentials


def hash_password(password: bytes) -> bytes:
    """Return the bcrypt hash, as `htpasswd -B` writes it.

    Raises:
        ValueError: the password is empty, too long, or has a byte that no client can send.

    """
    if not 0 < len(password) <= MAX_PASSWORD_BYTES:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes")
    if any(byte < ord(" ") or byte == 0x7F for byte in password):
        raise ValueError("a password has no control characters")
    return bcrypt.hashpw(password, bcrypt.gensalt(HASH_COST)).replace(b"$2b$", b"$2y$", 1)


class Logins:
    """Tells who sent credentials. A success is remembered for a minute, and forgotten when the users change."""

    def __init__(self, file: Htpasswd, *, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._most_waiting = threads * MAX_WAITING_PER_THREAD
        self._waiting = 0
        # What is kept of a password in memory says nothing about it without this key.
        self._key = secrets.token_bytes(32)
        self._users: Users | None = None
        self._known: dict[bytes, tuple[float, Identity]] = {}
        self._running: dict[bytes, asyncio.Task[bool]] = {}

    async def identify(self, credentials: Credentials) -> Identity:
        """Return who it is.

        Raises:
            Unauthorized: nobody has this name and this password.
            TooManyLogins: others wait already, more than can be checked in time.
            Busy: the file of users cannot be read, so nobody can tell.

        """
        users = self._current_users()
        key = hmac.digest(self._key, credentials.name.encode() + b"\0" + credentials.password, "sha256")
        until, identity = self._known.get(key, (0.0, None))
        if identity is not None and self._clock() < until:
            return identity
        if not users.hashes or not await self._matches(users, key, credentials):
            raise Unauthorized(CHALLENGE, "no such name and password")
        identity = Identity(credentials.name)
        if users is self._users:
            self._remember(key, identity)
        return identity

    def close(self) -> None:
        """Let checks that run come to their end; those that wait do not begin."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _current_users(self) -> Users:
        users = self._file.users
        if users is None:
            raise Busy("the file of users cannot be read; the server's log says why")
        if users is not self._users:
            self._users = users
            self._known.clear()
            self._running = {}
        return users

    async def _matches(self, users: Users, key: bytes, credentials: Credentials) -> bool:
        """Wait for the check of these credentials, which all that send them at the same time share."""
        task = self._running.get(key)
        if task is None:
            if self._waiting >= self._most_waiting:
                raise TooManyLogins
            task = self._start(users, key, credentials)
        try:
            async with asyncio.timeout(LOGIN_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise TooManyLogins from error

    def _start(self, users: Users, key: bytes, credentials: Credentials) -> asyncio.Task[bool]:
        running = self._running
        self._waiting += 1
        task = running[key] = asyncio.create_task(self._check(users, credentials))

        def end(_: object) -> None:
            self._waiting -= 1
            del running[key]

        task.add_done_callback(end)
        return task

    async def _check(self, users: Users, credentials: Credentials) -> bool:
        hashed, is_theirs = users.hash_of(credentials.name)
        loop = asyncio.get_running_loop()
        same = await loop.run_in_executor(self._threads, bcrypt.checkpw, credentials.password, hashed)
        return same and is_theirs

    def _remember(self, key: bytes, identity: Identity) -> None:
        self._known.pop(key, None)
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key] = (self._clock() + KNOWN_SECONDS, identity)
