"""Which way what is logged goes, and in which layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lading.logs.courier import courier_to
from lading.logs.file import LogFile
from lading.logs.journal import Journal, is_connected
from lading.logs.output import Output

Style = Literal["auto", "console", "json", "journal"]
Layout = Literal["console", "json", "journal"]


class Put(Protocol):
    """Takes a record on its way; what is urgent may wait a moment for room, the rest never does."""

    def __call__(self, record: bytes, /, *, urgent: bool = False) -> None:
        """Take `record`; a line comes with its newline."""
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """A way, and what it wants to be given."""

    layout: Layout
    colours: bool
    put: Put
    close: Callable[[], None]


def destination(style: Style, fd: int, file: Path | None) -> Destination:
    """Return the way to `file`, or to the descriptor `fd` where there is none."""
    if file is not None:
        courier = courier_to(LogFile(file.absolute()))
        return Destination("console" if style == "console" else "json", False, courier.put, _nothing)
    if style == "journal" or (style == "auto" and is_connected(fd)):
        return Destination("journal", False, courier_to(Journal()).put, _nothing)
    output = Output(fd)
    console = style == "console" or (style == "auto" and output.is_terminal)
    return Destination("console" if console else "json", output.colours, output.put, output.close)


def _nothing() -> None:
    """Do nothing: a courier is the process's."""
