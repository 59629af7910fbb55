"""Lanes: processes beside each other, in each of which some clients take their turns one after the other.

A lane ends what its clients have started, whatever ends it itself: its work, an error, or the run that started it.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

# A fork, for it must begin at once and needs nothing of what it works on to be packed; no thread runs before it.
_FORK = multiprocessing.get_context("fork")
Result = TypeVar("Result")


class Lane(Generic[Result]):
    """Work that goes on in a process of its own until it is done or the context closes."""

    def __init__(self, work: Callable[[], Iterable[Result]]) -> None:
        self._results, self._sending = _FORK.Pipe(duplex=False)
        self._process = _FORK.Process(target=_go_through, args=(work, self._sending), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        # The end of the results is known by this: nobody holds the pipe's other end any more.
        self._sending.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def results(self) -> Iterator[Result]:
        """Give each result when it is there, until there will be no more."""
        with suppress(EOFError):
            while True:
                yield self._results.recv()

    def exit_code(self) -> int | None:
        """Wait for the end, and return its code: 0 when all the work was done."""
        self._process.join()
        return self._process.exitcode


def end_at_a_signal() -> None:
    """Let SIGTERM end this process by an exception, and only once: a second must not disturb the tidying up."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _go_through(work: Callable[[], Iterable[Any]], sending: "Connection[Any, Any]") -> None:
    end_at_a_signal()
    # Ctrl-C reaches every process of a terminal; the one that started the lanes hears it, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for result in work():
        sending.send(result)
