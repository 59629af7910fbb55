"""What every client of the matrix offers, and how its commands are run."""

import json
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tests.clients import fixture
from tests.clients.fixture import Fixture
from tests.clients.registry import Held, MismatchError, Summed

ROOT = Path(__file__).resolve().parents[2]
COMMAND_WITHIN_SECONDS = 300
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class CommandFailedError(Exception):
    """A client's command did not end well."""


class NotOfferedError(Exception):
    """The client has no command for this."""


def built_tools() -> Path:
    """Return the folder into which `tests/clients/install` builds."""
    return Path(os.environ.get("LADING_TOOLS", ROOT / ".tools")) / "bin"


class Program(ABC):
    """A program with a home, and where it has one a daemon, of its own.

    One that is `dear` takes minutes to build, so it takes part only where it is built already, or all are asked for.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    dear: ClassVar[bool] = False

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._folders = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep whatever the program needs beside its command line; most need nothing."""
        yield

    @abstractmethod
    def version(self) -> str:
        """Return the version that the program names."""

    def environment(self) -> dict[str, str]:
        """Return all of the environment that the program's commands see."""
        return {"PATH": f"{built_tools()}:{SYSTEM_PATH}", "HOME": str(self.scratch), "TMPDIR": str(self.scratch)}

    def missing(self) -> list[str]:
        """Return the programs that are not installed."""
        path = self.environment()["PATH"]
        return [program for program in self.programs if shutil.which(program, path=path) is None]

    @cached_property
    def overlays(self) -> bool:
        """Whether the kernel lays one folder over another here, which spares an engine a copy of all layers below."""
        under, over, work, merged = (self.empty_folder() for _ in range(4))
        options = f"lowerdir={under},upperdir={over},workdir={work}"
        mounted = self.succeeds(lambda: self.run("mount", "-t", "overlay", "overlay", "-o", options, merged))
        if mounted:
            self.run("umount", merged)
        return mounted

    def program(self, name: str) -> str:
        """Return the path of a program, as this one's environment finds it."""
        return shutil.which(name, path=self.environment()["PATH"]) or name

    def succeeds(self, command: Callable[[], object]) -> bool:
        """Tell whether a command ends well, for one who waits until it does."""
        try:
            command()
        except CommandFailedError:
            return False
        return True

    def run(self, *command: str | Path, cwd: Path | None = None, with_errors: bool = False) -> str:
        """Run a command and return what it printed; a failure carries the command and its last lines.

        With errors: also what it printed to standard error, where some tell their progress.
        """
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                [self.program(words[0]), *words[1:]],
                cwd=cwd or self.scratch,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_WITHIN_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"`{' '.join(words)}` did not end within {error.timeout:.0f} s") from None
        printed = done.stdout.decode(errors="replace")
        everything = printed + done.stderr.decode(errors="replace")
        if done.returncode:
            last = "\n".join(everything.splitlines()[-12:])
            raise CommandFailedError(f"`{' '.join(words)}` ended with {done.returncode}:\n{last}")
        return everything if with_errors else printed

    def empty_folder(self) -> Path:
        """Return a new folder, for something pulled."""
        self._folders += 1
        folder = self.scratch / f"pulled-{self._folders}"
        folder.mkdir()
        return folder


class Client(Program):
    """A client that pushes and pulls images, or what it takes for them.

    A reference is always HOST:PORT/REPOSITORY:TAG or HOST:PORT/REPOSITORY@DIGEST. What returns a digest returns the
    one that the client itself printed; the matrix compares it with the registry's.
    """

    # Whether it reads without a login what everybody may read, at a registry that asks others for a password.
    reads_past_a_challenge: ClassVar[bool] = True

    fixture: Fixture

    def prepare(self, *, lean: bool = False) -> None:
        """Make on this machine what is to be pushed."""
        self.fixture = fixture.make(self.scratch / "fixture", lean=lean)

    @property
    def contents(self) -> tuple[str, ...]:
        """The digests of what is inside the layers that `push` pushes."""
        return self.fixture.contents["amd64"]

    @abstractmethod
    def login(self, host: str, user: str, password: str) -> None:
        """Log in to HOST:PORT; a client that cannot ask at once shows the password with each command from now on."""

    @abstractmethod
    def logout(self, host: str) -> None:
        """Forget the password of HOST:PORT."""

    @abstractmethod
    def push(self, reference: str) -> str:
        """Push the fixture from this machine; pushing it again is the same call."""

    @abstractmethod
    def pull(self, reference: str, platform: str | None = None) -> Held:
        """Pull into an empty place, of an index only one platform, and tell what is held there."""

    def push_index(self, reference: str) -> str:
        """Push an index over the fixture's two platforms."""
        raise NotOfferedError(reference)

    def push_elsewhere(self, source: str, target: str) -> str:
        """Push what was just pulled from one repository to another one of the same registry."""
        raise NotOfferedError(source, target)

    def delete(self, reference: str) -> None:
        """Delete the manifest of a reference with a digest."""
        raise NotOfferedError(reference)


def printed_digest(text: str) -> str:
    """Return the last digest in what a client printed."""
    found = DIGEST.findall(text)
    if not found:
        raise MismatchError(f"the client printed no digest: {text[-300:]!r}")
    digest: str = found[-1]
    return digest


def without_tag(reference: str) -> str:
    """Return HOST:PORT/REPOSITORY of a reference."""
    named, _, _ = reference.partition("@")
    before, _, after = named.rpartition(":")
    return before if "/" not in after else named


def summed_file(path: Path) -> Summed:
    """Sum a file without holding it in memory."""
    with path.open("rb") as stored:
        return Summed.of_file(stored)


def held_in_layout(layout: Path, digest: str | None = None) -> Held:
    """Read an image from an OCI image layout, and compare each blob with its descriptor.

    Without a digest the layout holds one manifest, and that is meant.
    """
    if digest is None:
        entries = json.loads((layout / "index.json").read_bytes())["manifests"]
        if len(entries) != 1:
            raise MismatchError(f"{len(entries)} manifests were pulled, one was meant")
        digest = str(entries[0]["digest"])
    manifest = json.loads(_blob_file(layout, digest).read_bytes())
    descriptors = [{"digest": digest}, manifest["config"], *manifest["layers"]]
    sums = [summed_file(_blob_file(layout, descriptor["digest"])) for descriptor in descriptors]
    for descriptor, summed in zip(descriptors, sums, strict=True):
        if descriptor["digest"] != summed.digest:
            raise MismatchError(f"the pulled blob {descriptor['digest']} has the digest {summed.digest}")
    return Held(digest, tuple(summed.content_digest for summed in sums[2:]))


def _blob_file(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
