"""A log file that others rotate, by whatever means, while several processes append to it."""

import errno
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from lading.oci.errors import LogUnusable

MODE = 0o640
# Who rotates by renaming makes the new file a moment later: making it first would be in the way.
GRACE_SECONDS = 0.1
# NONBLOCK is for what is no file: a pipe without a reader must not hold anybody up.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_PASSES = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file, known by its name alone: it is opened for each write, so no rotation has to tell us of it.

    The kernel appends what one `write` gives it in one piece, also between processes.
    """

    path: Path

    def __str__(self) -> str:
        """Return its name for people."""
        return f"the log file {self.path}"

    def deliver(self, records: deque[bytes]) -> None:
        """Append records, and take them off the left of `records`.

        Raises:
            OSError: the file cannot be opened or takes no more. What is left in `records` is not in it whole.

        """
        descriptor = self._open()
        try:
            while records:
                _take_off(records, os.write(descriptor, b"".join(records)))
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FLAGS)
        except FileNotFoundError:
            time.sleep(GRACE_SECONDS)
            return os.open(self.path, _FLAGS | os.O_CREAT, MODE)


def make_file(path: Path) -> None:
    """Make a log file if there is none.

    Raises:
        LogUnusable: it cannot be written, and not because there is no room at the moment.

    """
    try:
        os.close(os.open(path, _FLAGS | os.O_CREAT, MODE))
    except OSError as error:
        if error.errno not in _PASSES:
            reason = (error.strerror or repr(error)).lower()
            hint = "make its directory, give it to the user that Lading runs as, or name another in the settings"
            raise LogUnusable(f"the log file {path} cannot be written: {reason}", hint) from error


def _take_off(records: deque[bytes], written: int) -> None:
    """Take off what was written. A line that was cut is ended, and written again whole."""
    while records and written >= len(records[0]):
        written -= len(records.popleft())
    if written:
        records[0] = b"\n" + records[0]
