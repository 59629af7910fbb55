"""What commands print: nothing that a terminal would obey, no complaint when nobody reads on, and their progress."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_STDOUT = 1
"""Always there: what was closed is /dev/null, while `sys.stdout` is None then."""


def plain(line: str) -> str:
    """Escape what a terminal would take for a command, or could not show: the names of files are anybody's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows with their columns in line, the first row as the head."""
    shown = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in shown) for place in range(len(shown[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End the block quietly when the pipe that it prints to is closed, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        # What is left in the buffer goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def rest(seconds: float) -> None:
    """Wait, as long as somebody may read what is printed.

    Raises:
        BrokenPipeError: nobody will.

    """
    output = select.poll()
    output.register(_STDOUT, 0)  # errors and hang-ups are always told
    if output.poll(seconds * 1000):
        raise BrokenPipeError


class Bar:
    """A progress bar for each stage on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._present: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._present:
            self._present[0].stop()

    def begin(self, stage: str, total: int | None, *, of_bytes: bool = False) -> None:
        """Begin a stage."""
        from rich import progress  # noqa: PLC0415 - heavy: `lading --version` is quick without
        from rich.console import Console  # noqa: PLC0415

        if self._present:
            self._present[0].stop()
        amounts: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
        if of_bytes:
            amounts = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        bar = progress.Progress(
            progress.TextColumn("{task.description:<20}"),
            progress.BarColumn(),
            *amounts,
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        bar.start()
        self._present = bar, bar.add_task(stage, total=total)

    def advance(self, amount: int) -> None:
        """Go on in the present stage."""
        if self._present:
            bar, task = self._present
            bar.advance(task, amount)
