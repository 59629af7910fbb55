"""Time as the database keeps it: whole microseconds since 1970, UTC."""

import time

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US


def now_us() -> int:
    """Return the present moment."""
    return time.time_ns() // 1000
