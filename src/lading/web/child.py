"""A worker process as its parent sees it: forked, listened to, told to leave, killed when it does not."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from lading.oci.errors import StartRefused
from lading.settings import Settings
from lading.web.tls import Certificate
from lading.web.worker import BEAT, CANCEL_SECONDS, DRAIN_SECONDS, READY, refusal_in

# What the parent handles; held back over a fork, so that none meets a child that still has the parent's handlers.
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)
STOP_MARGIN_SECONDS = DRAIN_SECONDS + CANCEL_SECONDS + 2.0
KILL_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What the workers of one reading of the settings have in common."""

    settings: Settings
    certificate: Certificate | None


@dataclass(slots=True, eq=False)
class Child:
    """A worker; `said` is what came over its pipe and is not yet understood, `kill_at` is set once it is to leave.

    `heard_at` is when its event loop last had a turn, as far as its parent knows.
    """

    pid: int
    status: int
    generation: Generation
    heard_at: float
    ready: bool = False
    refusal: StartRefused | None = None
    kill_at: float | None = None
    said: bytes = b""

    def hear(self) -> bool:
        """Take in what it says; False when it will say no more."""
        try:
            said = os.read(self.status, 65536)
        except BlockingIOError:  # dead, while a child of its own still holds the other end
            said = b""
        self.heard_at = time.monotonic()
        *lines, self.said = (self.said + said).split(b"\n")
        for line in lines:
            if line + b"\n" == READY:
                self.ready = True
            elif line + b"\n" != BEAT:
                self.refusal = refusal_in(line)
        return bool(said)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def retire(self) -> None:
        """Tell it to finish what it has accepted and to leave; a second call does nothing."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + stop_seconds(self.generation.settings)
            self.send(signal.SIGTERM)

    def kill_if_late(self) -> bool:
        """Kill it when it was to leave and its time is over; tell whether that was so."""
        if self.kill_at is None or time.monotonic() < self.kill_at:
            return False
        self.kill_at = time.monotonic() + KILL_AGAIN_SECONDS
        self.send(signal.SIGKILL)
        return True


def stop_seconds(settings: Settings) -> float:
    """Return after how long a worker that was told to leave is gone, by itself or killed."""
    return settings.http.grace_seconds + STOP_MARGIN_SECONDS


def fork(generation: Generation, serve: Callable[[int], int], closing: Iterable[int]) -> Child:
    """Fork a worker that closes the descriptors `closing`, runs `serve(status)` and exits with what that returns.

    Raises:
        OSError: the machine has no process to spare.

    """
    status_read, status_write = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _become_worker(lambda: serve(status_write), (status_read, *closing))
    except OSError:
        os.close(status_read)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(status_write)
    os.set_blocking(status_read, False)
    return Child(pid, status_read, generation, time.monotonic())


def _become_worker(serve: Callable[[], int], closing: Iterable[int]) -> NoReturn:
    """Turn the forked child into a worker; it never returns into the parent's frames."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent tells us what to do
        for descriptor in closing:
            os.close(descriptor)
        # SIGHUP, "the certificate is a new one", waits until the worker can take it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        code = serve()
    finally:
        os._exit(code)
