"""The system calls of running processes, as strace sees them: in order, with the files and sockets they touch.

It can make them fail as well: what the kernel answers then is strace's, and the call itself does not happen.
"""

import ast
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.capability.server import until

ATTACH_SECONDS = 10.0
SHOWN_BYTES = 96

_LINE = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
_UNFINISHED = " <unfinished ...>"
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\w+)(?P<rest>.*)")
_SECONDS = re.compile(r"<(?P<seconds>\d+\.\d+)>$")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. It began at line `begin` of the trace and was over at line `end`."""

    name: str
    text: str
    result: str
    seconds: float
    thread: int
    begin: int
    end: int

    @property
    def is_sync(self) -> bool:
        """Whether it makes what was written durable."""
        return self.name in {"fsync", "fdatasync"} and self.result == "0"

    def has(self, content: bytes) -> bool:
        """Whether one of the strings that it was called with has these bytes, as far as the trace shows it."""
        return any(content in ast.literal_eval(f"b{string}") for string in _STRING.findall(self.text))

    @property
    def was_made_to_fail(self) -> bool:
        """Whether the answer was strace's."""
        return "(INJECTED)" in self.text

    def __str__(self) -> str:
        return f"{self.begin:5} to {self.end:5}: {self.text}"


class Trace:
    """Traces all threads of `pids` while its block lasts; afterwards `calls` has what they did.

    With `only`, it sees the calls that touch this file. `fault` is what each of these calls is answered, such
    as `error=EIO`, or `error=EIO:when=1` for the first of each thread; `failing` names the calls if it is not all.
    Of each string `shown` bytes are kept.
    """

    def __init__(
        self,
        output: Path,
        pids: Sequence[int],
        names: Sequence[str],
        *,
        only: Path | None = None,
        fault: str = "",
        failing: Sequence[str] = (),
        shown: int = SHOWN_BYTES,
    ) -> None:
        self.calls: list[Call] = []
        self._output = output
        self._notes = output.with_suffix(".notes")
        self._pids = pids
        self._command = ["strace", "-f", "-T", "-yy", "-s", str(shown), "-o", str(output)]
        self._command += ["-e", f"trace={','.join(names)}", "-e", "signal=none"]
        self._command += ["-P", str(only)] if only else []
        self._command += ["-e", f"inject={','.join(failing or names)}:{fault}"] if fault else []
        self._command += [part for pid in pids for part in ("-p", str(pid))]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._notes.open("wb") as notes:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=notes)
        if not until(self._attached_or_gone, seconds=ATTACH_SECONDS) or self._process.poll() is not None:
            self._stop()
            raise AssertionError(f"strace cannot watch the server: {self._notes.read_text()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self.calls = parse(self._output.read_text(errors="replace").splitlines())

    def _attached_or_gone(self) -> bool:
        assert self._process is not None
        notes = self._notes.read_text()
        return self._process.poll() is not None or all(f"Process {pid} attached" in notes for pid in self._pids)

    def _stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)  # it lets go of the server and ends
        self._process.wait(ATTACH_SECONDS)

    def __str__(self) -> str:
        return "\n".join(map(str, self.calls))

    def first(self, name: str, text: str, *, after: int = -1) -> Call:
        """Return the first call whose name and text match, of those that begin after line `after`."""
        for call in self.calls:
            if call.begin > after and re.fullmatch(name, call.name) and text in call.text:
                return call
        raise AssertionError(f"no {name} with {text!r} after line {after} in\n{self}")

    def between(self, begin: int, end: int) -> list[Call]:
        """Return the calls that began after line `begin` and were over before line `end`."""
        return [call for call in self.calls if call.begin > begin and call.end < end]


def parse(lines: Sequence[str]) -> list[Call]:
    """Return the calls of a trace in the order of their beginnings; a call cut in two by others is put together."""
    calls: list[Call] = []
    begun: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        if (parts := _LINE.fullmatch(line)) is None:
            continue
        thread, rest = int(parts["thread"]), parts["rest"]
        if rest.endswith(_UNFINISHED):
            begun[thread] = (number, rest.removesuffix(_UNFINISHED))
            continue
        begin, text = number, rest
        if resumed := _RESUMED.fullmatch(rest):
            begin, head = begun.pop(thread, (number, ""))
            text = head + resumed["rest"]
        if call := _CALL.fullmatch(text):
            took = _SECONDS.search(text)
            seconds = float(took["seconds"]) if took else 0.0
            calls.append(Call(call["name"], text, call["result"], seconds, thread, begin, number))
    return sorted(calls, key=lambda call: call.begin)
