"""oras-py: a second client for artifacts, which shares no line with the first."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import requests
from oras.client import OrasClient

from tests.clients.client import CommandFailedError, NotOfferedError, summed_file, without_tag
from tests.clients.oras import CREATED, Oras
from tests.clients.registry import Held, digest_of


class OrasPy(Oras):
    name = "oras-py"
    programs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._client: Any = _client()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have it try again at once: what is refused it tries five times, over two minutes."""
        with patch("oras.decorator.time", SimpleNamespace(sleep=lambda _: None)):
            yield

    def version(self) -> str:
        return metadata.version("oras")

    def login(self, host: str, user: str, password: str) -> None:  # noqa: ARG002 - it is shown to all that ask
        # Its own `login` asks a docker engine to keep the password.
        self._client.auth.set_basic_auth(user, password)

    def logout(self, host: str) -> None:  # noqa: ARG002 - with the object goes all that it knows
        self._client = _client()

    def push(self, reference: str) -> str:
        files = [f"{path}:application/gzip" for path in sorted(self._files.iterdir())]
        annotations = {CREATED: "2026-01-01T00:00:00Z"}
        with _told(f"push({reference!r})"):
            reply = self._client.push(
                reference, files=files, manifest_annotations=annotations, disable_path_validation=True, quiet=True
            )
        return str(reply.headers["Docker-Content-Digest"])

    def pull(self, reference: str, platform: str | None = None) -> Held:
        assert platform is None, "an artifact has no platforms"
        folder = self.empty_folder()
        with _told(f"pull({reference!r})"):
            self._client.pull(reference, outdir=str(folder))
            container = self._client.get_container(reference)
            manifest = self._client.do_request(f"http://{container.manifest_url()}", "GET")
        contents = tuple(summed_file(path).content_digest for path in sorted(folder.iterdir()))
        return Held(digest_of(manifest.content), contents)

    def push_index(self, reference: str) -> str:
        raise NotOfferedError(reference)

    def push_elsewhere(self, source: str, target: str) -> str:
        raise NotOfferedError(source, target)

    def delete(self, reference: str) -> None:
        with _told(f"delete_tag({reference!r})"):
            if not self._client.delete_tag(without_tag(reference), reference.partition("@")[2]):
                raise CommandFailedError(f"delete_tag of {reference} found nothing")


def _client() -> Any:
    client = OrasClient(insecure=True, auth_backend="basic")
    # Where it knows nobody it trips over itself at a challenge (an AttributeError): an empty name stands for nobody.
    client.auth.set_basic_auth("", "")
    return client


@contextmanager
def _told(call: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, requests.RequestException) as error:
        raise CommandFailedError(f"{call}: {error}") from error
