"""Time as the database keeps it: whole microseconds since 1970, UTC; and as people and protocols write it."""

import re
import time
from datetime import UTC, datetime, timedelta

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_FRACTION_DIGITS = 6


def now_us() -> int:
    """Return the present moment."""
    return time.time_ns() // 1000


def text(at_us: int) -> str:
    """Return a moment as RFC 3339 writes it, to the microsecond."""
    return _written(at_us, "microseconds")


def to_second(at_us: int) -> str:
    """Return a moment as RFC 3339 writes it, to the second: for sentences."""
    return _written(at_us, "seconds")


def _written(at_us: int, unit: str) -> str:
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec=unit).replace("+00:00", "Z")


def parse(written: str) -> int:
    """Return the moment that RFC 3339 writes so; digits beyond the microsecond are dropped.

    Raises:
        ValueError: it is none.

    """
    found = _RFC3339.fullmatch(written)
    if found is None:
        raise ValueError(f"not a time of RFC 3339: {written!r}")
    day, clock, fraction, zone = found.groups()
    # `datetime` checks the rest: the thirteenth month, the hour 25, an offset of a day.
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    micros = int((fraction or "0")[:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0"))
    return (moment - _EPOCH) // timedelta(microseconds=1) + micros
