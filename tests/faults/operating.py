"""An operator beside the server, as `lading repo` and `lading tag` are: deletes repositories, brings things back."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from lading.app import OpenRegistry, open_registry
from lading.oci.digest import Digest
from lading.oci.errors import BlobUnknown, CommandRefused, ManifestUnknown, NameUnknown
from lading.oci.names import Tag
from lading.settings import load

T = TypeVar("T")

ACTOR = "cli:operator"
GONE = (NameUnknown, ManifestUnknown, BlobUnknown)
"""What is answered for what has been collected, or is just being collected."""
ANSWER_SECONDS = 60.0


class Operator:
    """One process for all the commands, in a thread of its own: starting each takes longer than what is restored."""

    def __init__(self, data: Path, settings: Mapping[str, str]) -> None:
        self._settings = load(None, {"data": str(data)}, environ=dict(settings))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="operator", daemon=True)
        self._stack = contextlib.AsyncExitStack()
        self._opened: OpenRegistry

    def __enter__(self) -> Self:
        self._thread.start()
        self._opened = self._run(self._stack.enter_async_context(open_registry(self._settings)))
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def restore_tag(self, repository: str, tag: str, digest: str) -> bool:
        """Have a tag name a manifest that was deleted; False when that is gone for good."""
        return self._unless_gone(
            self._opened.registry.history.restore_tag(repository, Tag(tag), Digest.parse(digest), actor=ACTOR)
        )

    def delete_repository(self, repository: str) -> bool:
        """Delete a repository; False when there is none."""
        return self._unless_gone(self._opened.registry.repositories.delete(repository, actor=ACTOR))

    def restore_repository(self, repository: str) -> bool:
        """Bring a deleted repository back, as far as it is not gone for good."""

        async def restore() -> None:
            history = self._opened.registry.history
            plan = await history.plan(repository, at_us=None)
            try:
                await history.restore_repository(plan, actor=ACTOR, step=lambda _: None)
            except CommandRefused as refusal:  # this repository has no other operator
                raise NameUnknown(f"collected between plan and restore: {refusal}") from refusal

        return self._unless_gone(restore())

    def _unless_gone(self, work: Coroutine[Any, Any, object]) -> bool:
        try:
            self._run(work)
        except GONE:
            return False
        return True

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_SECONDS)
