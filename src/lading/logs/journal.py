"""systemd's journal, spoken to directly: each record with its fields, of any size and with any bytes in them.

The protocol is systemd's "Native Journal Protocol".
"""

import errno
import fcntl
import os
import re
import socket
import stat
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from uuid import UUID, uuid5

from lading.logs.output import STDERR

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "lading"
# The journal takes some ten thousand records a second; while it is restarted, the kernel keeps 10 to 512 for it.
SEND_SECONDS = 0.5
MAX_NAME_CHARACTERS = 64
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_FOREIGN = re.compile("[^A-Z0-9_]")
_MESSAGES = UUID("0d5e6f4b-3a51-4c8e-9f0e-6c2f1a7b84d3")

# What the records call it, and the field of the journal; what is not here becomes LADING_<NAME>.
FIELDS: Mapping[str, str] = {
    "message_id": "MESSAGE_ID",
    "event": "EVENT",
    "request_id": "REQUEST_ID",
    "method": "METHOD",
    "route": "ROUTE",
    "repository": "REPOSITORY",
    "tag": "TAG",
    "digest": "DIGEST",
    "actor": "ACTOR",
    "status": "STATUS",
    "bytes": "BYTES",
    "received": "RECEIVED_BYTES",
    "duration_ms": "DURATION_MS",
    "client": "CLIENT",
    "error": "ERROR",
    "reason": "REASON",
    "exception": "EXCEPTION",
}
PRIORITIES: Mapping[str, int] = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal, called anew for each batch: whether it was restarted in between makes no difference."""

    place: Path = field(default_factory=lambda: SOCKET)

    def __str__(self) -> str:
        """Return its name for people."""
        return "the journal"

    def deliver(self, records: deque[bytes]) -> None:
        """Send records, and take them off the left of `records`.

        Raises:
            OSError: it is not there, or takes no more now.

        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
            caller.settimeout(SEND_SECONDS)
            caller.connect(str(self.place))
            while records:
                _send(caller, records[0])
                records.popleft()


def is_connected(descriptor: int) -> bool:
    """Tell whether what is written to `descriptor` goes to the journal, and the journal can be called directly."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        # systemd names one of the two where they differ, so each of them counts.
        streams = [os.fstat(number) for number in {descriptor, STDERR}]
    except OSError:
        return False
    return stream in {f"{found.st_dev}:{found.st_ino}" for found in streams} and SOCKET.is_socket()


def record(message: str, priority: int, fields: Iterable[tuple[str, object]]) -> bytes:
    """Return one record as the journal wants it. `fields` have our names; None is left out."""
    named: list[tuple[str, object]] = [("SYSLOG_IDENTIFIER", IDENTIFIER), ("PRIORITY", priority), ("MESSAGE", message)]
    named += [(_name(name), value) for name, value in fields if value is not None]
    text = "".join([f"{name}={value}\n" for name, value in named])
    if text.count("\n") == len(named):
        return _encoded(text)
    return b"".join([_field(name, _encoded(str(value))) for name, value in named])


@lru_cache(maxsize=1024)
def message_id(event: str) -> str:
    """Return the id of a kind of message, always the same for the same sentence."""
    return uuid5(_MESSAGES, event).hex


def _send(caller: socket.socket, record: bytes) -> None:
    try:
        caller.send(record)
    except OSError as error:
        if error.errno not in _TOO_LARGE:
            raise
        _send_as_file(caller, record)


def _send_as_file(caller: socket.socket, record: bytes) -> None:
    """Send a record that no datagram can hold, as memory that nobody can change any more."""
    memory = os.memfd_create("lading-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(memory, "wb") as file:
        file.write(record)
        file.flush()
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(caller, [], [memory])


@lru_cache(maxsize=1024)
def _name(name: str) -> str:
    """Return a field's name: upper case, no mark but `_`, and none that the journal keeps for itself."""
    return FIELDS.get(name) or f"LADING_{_FOREIGN.sub('_', name.upper())}"[:MAX_NAME_CHARACTERS]


def _field(name: str, content: bytes) -> bytes:
    if b"\n" in content:
        return b"%b\n%b%b\n" % (name.encode(), len(content).to_bytes(8, "little"), content)
    return b"%b=%b\n" % (name.encode(), content)


def _encoded(text: str) -> bytes:
    """Return the bytes of a text; those that were no UTF-8 where they came from are what they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
