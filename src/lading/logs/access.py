"""The access log: one record for each request that was answered, built without any library's help."""

import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _ascii
from pathlib import Path
from typing import cast

from lading.logs import journal
from lading.logs.destination import Style, destination
from lading.logs.output import MAX_LINE_BYTES, STDOUT

MAX_FIELD_BYTES = 420
CLIPPED_CHARACTERS = 34
SECOND_NS = 1_000_000_000
INTERNAL = 500

_RED, _GREEN, _YELLOW, _CYAN, _DIM, _PLAIN = (f"\x1b[{code}m" for code in (31, 32, 33, 36, 2, 0))
# request id, method, route, repository, tag, digest, actor, client
_Texts = tuple[str, str, str, str | None, str | None, str | None, str | None, str | None]
_Numbers = tuple[int, int, int, int]
_STATUS_COLOURS = {2: _GREEN, 3: _CYAN, 4: _YELLOW, 5: _RED}


class AccessLog:
    """One line for each request that was answered."""

    def __init__(
        self,
        style: Style = "auto",
        *,
        fd: int = STDOUT,
        file: Path | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        way = destination(style, fd, file)
        self._put = way.put
        self._is_journal = way.layout == "journal"
        self._line = self._console_line if way.layout == "console" else self._json_line
        self._colours = way.colours
        self.close = way.close
        """Give back what was opened; `fd` itself stays open."""
        self._clock = clock
        self._second = -1
        self._prefix = ""

    def write(  # noqa: PLR0913 - a record object would cost as much as the line (measured: 0.9 us of 3)
        self,
        *,
        request_id: str,
        method: str,
        route: str,
        repository: str | None,
        tag: str | None,
        digest: str | None,
        actor: str | None,
        status: int,
        sent_bytes: int,
        received_bytes: int,
        duration_us: int,
        client: str | None,
    ) -> None:
        """Write the line of one request, or drop it where its reader is gone or too slow.

        `route` is the route's name, or the path of a request that met none. `sent_bytes` and `received_bytes` count
        bodies. Texts may hold anything: what could break the line is escaped, what is too long is cut.
        """
        texts = (request_id, method, route, repository, tag, digest, actor, client)
        numbers = (status, sent_bytes, received_bytes, duration_us)
        if self._is_journal:
            self._put(_journal_record(texts, numbers))
            return
        line = self._line(texts, numbers)
        if len(line) > MAX_LINE_BYTES:
            cut = tuple(None if text is None else _clipped(text) for text in texts)
            line = self._line(cast("_Texts", cut), numbers)
        self._put(line.encode("ascii"))

    def _json_line(self, texts: _Texts, numbers: _Numbers) -> str:
        request_id, method, route, repository, tag, digest, actor, client = texts
        status, sent_bytes, received_bytes, duration_us = numbers
        return (
            f'{{"event": "request", "at": "{self._now("%Y-%m-%dT%H:%M:%S")}Z", "request_id": {_ascii(request_id)}, '
            f'"method": {_ascii(method)}, "route": {_ascii(route)}, '
            f'"repository": {"null" if repository is None else _ascii(repository)}, '
            f'"tag": {"null" if tag is None else _ascii(tag)}, '
            f'"digest": {"null" if digest is None else _ascii(digest)}, '
            f'"actor": {"null" if actor is None else _ascii(actor)}, "status": {status}, "bytes": {sent_bytes}, '
            f'"received": {received_bytes}, "duration_us": {duration_us}, '
            f'"client": {"null" if client is None else _ascii(client)}}}\n'
        )

    def _console_line(self, texts: _Texts, numbers: _Numbers) -> str:
        _, method, route, repository, tag, digest, _, client = map(_escaped, texts)
        status = numbers[0]
        colour, dim, plain = ("", "", "")
        if self._colours:
            colour, dim, plain = _STATUS_COLOURS.get(status // 100, ""), _DIM, _PLAIN
        return (
            f"{dim}{self._now('%H:%M:%S')[:-3]}{plain} {colour}{status}{plain} {method:<6} {route:<18} "
            f"{_place(repository, tag, digest)} {dim}{_sizes(numbers)}, {client or 'unknown client'}{plain}\n"
        )

    def _now(self, layout: str) -> str:
        """Return the time in UTC with microseconds; the part down to the second is formatted once a second."""
        second, fraction_ns = divmod(self._clock(), SECOND_NS)
        if second != self._second:
            self._second, self._prefix = second, time.strftime(layout, time.gmtime(second))
        return f"{self._prefix}.{fraction_ns // 1000:06d}"


def _journal_record(texts: _Texts, numbers: _Numbers) -> bytes:
    request_id, method, route, repository, tag, digest, actor, client = texts
    status, sent_bytes, received_bytes, duration_us = numbers
    said = f"{status} {method} {route} {_place(repository, tag, digest)}".rstrip()
    message = f"{said}, {_sizes(numbers)}, {actor or 'nobody'} at {client or 'an unknown address'}"
    return journal.record(
        _escaped(message),
        journal.PRIORITIES["warning" if status >= INTERNAL else "info"],
        (
            ("message_id", journal.message_id("request")),
            ("event", "request"),
            ("request_id", request_id),
            ("method", method),
            ("route", route),
            ("repository", repository),
            ("tag", tag),
            ("digest", digest),
            ("actor", actor),
            ("status", status),
            ("bytes", sent_bytes),
            ("received", received_bytes),
            ("duration_ms", f"{duration_us / 1000:.3f}"),
            ("client", client),
        ),
    )


def _place(repository: str | None, tag: str | None, digest: str | None) -> str:
    named = f"{repository}:{tag}" if tag else repository
    return " ".join(text for text in (named, digest and _short(digest)) if text)


def _sizes(numbers: _Numbers) -> str:
    _, sent_bytes, received_bytes, duration_us = numbers
    return f"{_human(received_bytes)} in, {_human(sent_bytes)} out, {duration_us / 1000:.1f} ms"


def _escaped(text: str | None) -> str:
    """Return `text` in ASCII, without any control character; nothing for None."""
    return "" if text is None else _ascii(text)[1:-1]


def _clipped(text: str) -> str:
    return text if len(_escaped(text)) <= MAX_FIELD_BYTES else f"{text[:CLIPPED_CHARACTERS]}..."


def _short(digest: str) -> str:
    algorithm, colon, encoded = digest.partition(":")
    return f"{algorithm}{colon}{encoded[:12]}"


def _human(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
