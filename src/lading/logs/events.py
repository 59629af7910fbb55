"""The program's events, through structlog, and what libraries log."""

import logging
from collections.abc import MutableMapping
from json.encoder import encode_basestring_ascii as _ascii
from pathlib import Path
from typing import cast

import structlog

from lading.logs import journal
from lading.logs.destination import Destination, Put, Style, destination
from lading.logs.output import STDOUT

LINE_END = "\n"


def configure(style: Style, *, fd: int = STDOUT, file: Path | None = None) -> None:
    """Send the program's events, and the warnings of libraries, to `file` or `fd`; called once, before the fork."""
    way = destination(style, fd, file)
    structlog.configure(
        processors=_chain(way),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _EventWriter(way.put),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToEvents()], level=logging.WARNING, force=True)


class _EventWriter:
    """Where structlog leaves its finished lines; events are few, so each may wait a moment for a slow reader."""

    def __init__(self, put: Put) -> None:
        self._put = put

    def msg(self, message: str | bytes) -> None:
        line = message if isinstance(message, bytes) else f"{message}\n".encode("utf-8", "backslashreplace")
        self._put(line, urgent=True)

    debug = info = warning = error = critical = msg


class _ToEvents(logging.Handler):
    """Carries the records of libraries (uvicorn, asyncio) over to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        event_logger().log(record.levelno, record.getMessage().strip(), logger=record.name, exc_info=record.exc_info)


def _chain(way: Destination) -> list[structlog.typing.Processor]:
    match way.layout:
        case "console":
            return _console_chain(colours=way.colours)
        case "json":
            return _json_chain()
        case "journal":
            return [structlog.processors.add_log_level, structlog.processors.format_exc_info, _journal_record]


def _journal_record(_: object, __: str, event: MutableMapping[str, object]) -> bytes:
    """Return an event as the journal wants it. The message alone tells people everything, too."""
    said, level = str(event["event"]), str(event.pop("level"))
    details = [f"{name}={value}" for name, value in event.items() if name not in {"event", "exception"}]
    message = _printable(" ".join([said, *details]), keep="")
    if "exception" in event:
        message += f"\n{_printable(str(event['exception']), keep=LINE_END)}"
    return journal.record(
        message, journal.PRIORITIES[level], [*event.items(), ("message_id", journal.message_id(said))]
    )


def _json_chain() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        _event_first,
        structlog.processors.JSONRenderer(),
    ]


def _console_chain(*, colours: bool) -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=True),
        structlog.processors.format_exc_info,
        _without_controls,
        structlog.dev.ConsoleRenderer(colors=colours),
    ]


def _event_first(_: object, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    return {"event": event.pop("event"), "at": event.pop("at"), **event}


def _without_controls(_: object, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Escape what a terminal would obey; a traceback keeps its line ends."""
    return {
        name: _printable(value, keep=LINE_END if name == "exception" else "") if isinstance(value, str) else value
        for name, value in event.items()
    }


def _printable(text: str, *, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else _ascii(character)[1:-1] for character in text
    )


def event_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the logger of the program's events."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())
