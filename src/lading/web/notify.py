"""What systemd is told of this process (sd_notify(3)), and how often it wants to hear that it lives."""

import math
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Self

from lading.logs import event_logger

# systemd reads at once, unless the whole machine stands still.
SEND_SECONDS = 1.0
# On top of what the workers may take to stop: moving the database's log, and our own end.
STOP_MARGIN_SECONDS = 10.0
BEATS_PER_WATCH = 3


@dataclass(slots=True)
class Manager:
    """The service manager that started this process, if there is one: without, nothing is said.

    `watch_seconds` is after how long a silence it takes this process for hung (`WatchdogSec=` of the unit), or None.
    """

    address: str | None = None
    watch_seconds: float | None = None
    _next_beat: float = field(default=-math.inf, init=False)

    @classmethod
    def found(cls) -> Self:
        """Take it from the environment: what this process starts must not speak in its name."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        if address[:1] not in {"/", "@"}:
            return cls()
        watched = interval.isdecimal() and int(interval) > 0 and pid in {"", str(os.getpid())}
        return cls(address, int(interval) / 1e6 if watched else None)

    @property
    def pause_seconds(self) -> float:
        """After how long at most it wants to hear from us again."""
        return math.inf if self.watch_seconds is None else self.watch_seconds / BEATS_PER_WATCH

    def hear_that_we_live(self) -> None:
        """Say so, when it is time to."""
        now = time.monotonic()
        if self.watch_seconds is not None and now >= self._next_beat:
            self._next_beat = now + self.pause_seconds / 2
            self.tell("WATCHDOG=1")

    def hear_that_we_serve(self, status: str) -> None:
        """Say that requests are answered."""
        self.tell("READY=1", f"STATUS={status}")

    def hear_that_we_reload(self) -> None:
        """Say that a reload has begun; it ends with `hear_that_we_serve`."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=Starting new workers")

    def hear_that_we_stop(self, seconds: float) -> None:
        """Say that this takes `seconds` at most: a unit with a shorter limit would cut requests off."""
        limit = round((seconds + STOP_MARGIN_SECONDS) * 1e6)
        self.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={limit}", "STATUS=Finishing requests")

    def tell(self, *lines: str) -> None:
        """Send one message; that it cannot be sent is in the log."""
        if self.address is None:
            return
        name = f"\0{self.address[1:]}" if self.address[0] == "@" else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            event_logger().warning("the service manager cannot be told", lines=lines, reason=str(error))
