"""Time as the database keeps it: whole microseconds since 1970, UTC."""

import time
from datetime import UTC, datetime, timedelta

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US


def now_us() -> int:
    """Return the present moment."""
    return time.time_ns() // 1000


def text(at_us: int) -> str:
    """Return a moment as RFC 3339 writes it."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"
