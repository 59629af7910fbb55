"""How many bytes all unfinished uploads have together: counted now and then, this process's own changes at once."""

import contextlib
import os
import time
from pathlib import Path

from lading.oci.errors import TooManyUploads

_SECONDS_BETWEEN_COUNTS = 1.0


class StagedBytes:
    """The sum of the staging files' sizes, held below `most_bytes`.

    It goes over by what the other processes take in the seconds between two counts, no more.
    """

    def __init__(self, folder: Path, *, most_bytes: int | None) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._bytes = 0
        self._counted_at = -_SECONDS_BETWEEN_COUNTS

    @property
    def is_due(self) -> bool:
        """Whether there is a limit, and the last count is old."""
        return self._most_bytes is not None and time.monotonic() - self._counted_at >= _SECONDS_BETWEEN_COUNTS

    def count(self) -> None:
        """Add up all files: a few microseconds for each."""
        self._counted_at = time.monotonic()
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_size
        self._bytes = total

    def refuse_if_crowded(self, more_bytes: int) -> None:
        """Refuse `more_bytes` that do not fit.

        Raises:
            TooManyUploads: the limit would be passed.

        """
        if self._most_bytes is not None and self._bytes + more_bytes > self._most_bytes:
            raise TooManyUploads(
                f"unfinished uploads may have {self._most_bytes} bytes together (setting uploads.max_bytes); "
                "finish or cancel some, or try again later"
            )

    def add(self, change_bytes: int) -> None:
        """Take into account what this process has written, or dropped when negative."""
        self._bytes = max(0, self._bytes + change_bytes)
