"""`lading htpasswd`: make users, also where Apache's program of that name is not installed."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lading.oci.errors import UsersUnusable

_NEW_MODE = 0o640


def htpasswd(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of users; made if it is missing.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The user to add, or to give another password.")],
    stdin: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--stdin", help="Read the password from standard input, its first line.")
    ] = False,
) -> None:
    """Add a user to a file for `auth.htpasswd`, or change a password. A running server takes it within a second."""
    from lading.auth import htpasswd, passwords  # noqa: PLC0415 - heavy: `lading --version` is quick without

    content = file.read_bytes() if file.exists() else b""
    htpasswd.with_user(content, file, name, b"")  # a name that cannot be is told before the password is asked for
    try:
        hashed = passwords.hash_password(_password(name, stdin=stdin))
    except ValueError as error:
        raise UsersUnusable(str(error)) from error
    try:
        _replace(file, htpasswd.with_user(content, file, name, hashed))
    except OSError as error:
        raise UsersUnusable(f"{file}: cannot be written: {(error.strerror or 'unknown error').lower()}") from error
    typer.echo(f"{name} can log in with this password, where {file} is auth.htpasswd")


def _password(name: str, *, stdin: bool) -> bytes:
    if stdin:
        return sys.stdin.buffer.readline().rstrip(b"\r\n")
    text: str = typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt="The same again", err=True)
    return text.encode("utf-8", "surrogateescape")


def _replace(file: Path, content: bytes) -> None:
    """Put a new file in place of the old one at once, with its mode and owner: a server never reads half of it."""
    place = file.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with open(descriptor, "wb") as new:  # noqa: PTH123 - a descriptor
            new.write(content)
            new.flush()
            if place.exists():
                status = place.stat()
                os.fchmod(descriptor, status.st_mode & 0o7777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
            else:
                os.fchmod(descriptor, _NEW_MODE)
            os.fsync(descriptor)
        Path(temporary).replace(place)
    except BaseException:
        Path(temporary).unlink()
        raise
