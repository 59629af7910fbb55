"""oras: files as artifacts, and copies of whatever a registry or an OCI layout holds."""

import os
from pathlib import Path
from typing import ClassVar

from tests.clients.client import Client, held_in_layout, printed_digest, summed_file
from tests.clients.registry import Held


class Oras(Client):
    name = "oras"
    programs: ClassVar[tuple[str, ...]] = ("oras",)

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._files = scratch / "files"

    def prepare(self, *, lean: bool = False) -> None:
        super().prepare(lean=lean)
        # An artifact is made of files, so each layer of the fixture becomes a file with a name.
        self._files.mkdir()
        for number, layer in enumerate(self.fixture.layers("amd64")):
            os.link(layer, self._files / f"{number}.tar.gz")

    def version(self) -> str:
        return self.run("oras", "version").split()[1]

    def login(self, host: str, user: str, password: str) -> None:
        self.run("oras", "login", "--plain-http", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("oras", "logout", host)

    def push(self, reference: str) -> str:
        files = [f"{path.name}:application/gzip" for path in sorted(self._files.iterdir())]
        # Without a fixed time every push makes another manifest.
        options = (
            "--artifact-type",
            "application/vnd.example.files",
            "--annotation",
            f"{CREATED}=2026-01-01T00:00:00Z",
        )
        return printed_digest(
            self.run("oras", "push", "--plain-http", "--no-tty", *options, reference, *files, cwd=self._files)
        )

    def pull(self, reference: str, platform: str | None = None) -> Held:
        folder = self.empty_folder()
        if platform:
            chosen = ("--platform", platform, "--to-oci-layout", f"{folder}:pulled")
            self.run("oras", "copy", "--no-tty", "--from-plain-http", reference, *chosen)
            return held_in_layout(folder)
        digest = printed_digest(self.run("oras", "pull", "--plain-http", "--no-tty", "-o", folder, reference))
        return Held(digest, tuple(summed_file(path).content_digest for path in sorted(folder.iterdir())))

    def push_index(self, reference: str) -> str:
        source = f"{self.fixture.layout}:index"
        return printed_digest(
            self.run("oras", "copy", "--no-tty", "--from-oci-layout", source, "--to-plain-http", reference)
        )

    def push_elsewhere(self, source: str, target: str) -> str:
        return printed_digest(
            self.run("oras", "copy", "--no-tty", "--from-plain-http", source, "--to-plain-http", target)
        )

    def delete(self, reference: str) -> None:
        self.run("oras", "manifest", "delete", "--plain-http", "--force", reference)


CREATED = "org.opencontainers.image.created"
