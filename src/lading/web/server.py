"""The supervisor: claims the data directory, binds the sockets, forks the workers, replaces those that die.

No thread and no database connection exists before a fork: neither would survive it.
"""

import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from lading.logs import event_logger
from lading.oci.errors import StartRefused
from lading.settings import Settings
from lading.web.directory import claimed
from lading.web.sockets import Address, address_of, listen
from lading.web.worker import CANCEL_SECONDS, DRAIN_SECONDS, READY, Application, Duty, refusal_in, work

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)
STOP_MARGIN_SECONDS = DRAIN_SECONDS + CANCEL_SECONDS + 2.0
# Workers that die before they serve: the wait before the next try doubles, and after so many in a row we give up.
MAX_FAILED_STARTS = 5
FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 5.0
MAX_PAUSE_SECONDS = 1.0
KILLED_BY_USER = 130
# Manifests and small blobs are in the database: they are for those who may pull, not for every local user.
OTHERS_MAY_NOTHING = 0o027


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens, now that all its workers do."""

    addresses: tuple[Address, ...]
    workers: int


def run(
    *, settings: Settings, prepare: Callable[[], None], application: Application, announce: Callable[[Listening], None]
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    `prepare` runs once, in this process, before any worker. Each worker enters `application()` on its own event loop
    and serves what it yields. `announce` is called once, when all workers accept.

    Raises:
        StartRefused: by any of the steps before the workers serve, or by `application` in a worker.

    """
    os.umask(OTHERS_MAY_NOTHING)
    _raise_descriptor_limit()
    with claimed(settings.data), contextlib.ExitStack() as stack:
        listeners = listen(settings.http.host, settings.http.port)
        for listener in listeners:
            stack.enter_context(listener)
        prepare()
        return _Supervisor(settings, listeners, application, announce).run()


def _raise_descriptor_limit() -> None:
    """Take all the descriptors that we may have: each connection is one, and each blob on its way another."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(slots=True)
class _Worker:
    """A child as the parent sees it; `said` is what came over its pipe and is not yet understood."""

    pid: int
    status: int
    ready: bool = False
    said: bytes = b""
    refusal: StartRefused | None = None


@dataclass(slots=True)
class _Supervisor:
    """The parent's loop. `due` holds a time for each worker that is missing."""

    settings: Settings
    listeners: Sequence[socket.socket]
    application: Application
    announce: Callable[[Listening], None]
    workers: dict[int, _Worker] = field(default_factory=dict)
    due: list[float] = field(default_factory=list)
    failed_starts: int = 0
    announced: bool = False
    kill_at: float | None = None
    exit_code: int = 0
    fatal: StartRefused | None = None
    selector: selectors.BaseSelector = field(default_factory=selectors.PollSelector)
    life: tuple[int, int] = field(default_factory=os.pipe)
    wakeup: tuple[int, int] = field(default_factory=os.pipe)

    def run(self) -> int:
        """Keep the workers running until told to stop; return the exit code."""
        gc.collect()
        gc.freeze()  # what was imported so far is shared with the workers, and stays shared
        self.due = [0.0] * self.settings.http.workers
        with self._signals_watched(), self.selector:
            self.selector.register(self.wakeup[0], selectors.EVENT_READ)
            while self.workers or not self._stopping:
                self._start_due_workers()
                self._listen_to_pipes()
                self._reap()
                self._announce_once()
                self._kill_if_late()
        if self.fatal is not None:
            raise self.fatal
        return self.exit_code

    @property
    def _stopping(self) -> bool:
        return self.kill_at is not None

    def _start_due_workers(self) -> None:
        now = time.monotonic()
        while not self._stopping and self.due and min(self.due) <= now:
            self.due.remove(min(self.due))
            self._fork()

    def _fork(self) -> None:
        assert threading.active_count() == 1, f"a thread before the fork: {threading.enumerate()}"
        status_read, status_write = os.pipe()
        # Blocked, so that no signal meets the child while it still has the parent's handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(status_read)
                self._become_worker(status_write)
        except OSError as error:  # the machine has no process to spare
            os.close(status_read)
            event_logger().error("a worker cannot be started; trying again", reason=error.strerror)
            self.due.append(time.monotonic() + MAX_WAIT_SECONDS)
        else:
            os.set_blocking(status_read, False)
            self.workers[pid] = _Worker(pid, status_read)
            self.selector.register(status_read, selectors.EVENT_READ, self.workers[pid])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(status_write)

    def _become_worker(self, status: int) -> NoReturn:
        """Turn the forked child into a worker; it never returns into the parent's frames."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number, action in (
                (signal.SIGTERM, signal.SIG_DFL),
                (signal.SIGCHLD, signal.SIG_DFL),
                (signal.SIGINT, signal.SIG_IGN),  # Ctrl-C reaches the whole group: the parent tells us what to do
                (signal.SIGHUP, signal.SIG_IGN),
            ):
                signal.signal(number, action)
            for descriptor in (*self.wakeup, self.life[1], *(worker.status for worker in self.workers.values())):
                os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
            code = work(Duty(self.listeners, self.application, self.settings.http.grace_seconds, self.life[0], status))
        finally:
            os._exit(code)

    def _listen_to_pipes(self) -> None:
        for key, _ in self.selector.select(self._pause_seconds()):
            if key.data is None:
                self._obey(os.read(self.wakeup[0], 1024))
            else:
                self._hear(key.data)

    def _pause_seconds(self) -> float:
        times = [*self.due, *([] if self.kill_at is None else [self.kill_at])]
        return min(MAX_PAUSE_SECONDS, max(0.0, min(times) - time.monotonic())) if times else MAX_PAUSE_SECONDS

    def _obey(self, signals: bytes) -> None:
        for number in signals:
            if number not in {signal.SIGTERM, signal.SIGINT}:
                continue
            if not self._stopping:
                self._stop()
            elif number == signal.SIGINT:
                self.exit_code = KILLED_BY_USER
                self._send(signal.SIGKILL)

    def _stop(self) -> None:
        """Tell the workers to finish; new clients are refused from here on."""
        self.kill_at = time.monotonic() + self.settings.http.grace_seconds + STOP_MARGIN_SECONDS
        self._send(signal.SIGTERM)
        for listener in self.listeners:
            listener.close()

    def _send(self, number: signal.Signals) -> None:
        for pid in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _hear(self, worker: _Worker) -> None:
        try:
            said = os.read(worker.status, 65536)
        except BlockingIOError:  # dead, while a child of its own still holds the other end
            said = b""
        if not said:
            self.selector.unregister(worker.status)
            return
        *lines, worker.said = (worker.said + said).split(b"\n")
        for line in lines:
            if line + b"\n" == READY:
                worker.ready, self.failed_starts = True, 0
            else:
                worker.refusal = refusal_in(line)

    def _reap(self) -> None:
        """Take in every child that ended: as PID 1 of a container also those that are none of ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self.workers.get(pid)
            if worker is not None:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: _Worker, exit_code: int) -> None:
        while worker.status in self.selector.get_map():
            self._hear(worker)
        os.close(worker.status)
        del self.workers[worker.pid]
        if self._stopping:
            return
        if not worker.ready:
            self.failed_starts += 1
        self.fatal = self._reason_to_give_up(worker.refusal)
        if self.fatal is not None:
            self._stop()
            return
        event_logger().warning(
            "a worker ended and is replaced",
            pid=worker.pid,
            exit_code=exit_code,
            reason=worker.refusal.message if worker.refusal else None,
        )
        self.due.append(time.monotonic() + self._wait_seconds())

    def _wait_seconds(self) -> float:
        if not self.failed_starts:
            return 0.0
        return min(FIRST_WAIT_SECONDS * 2.0 ** (self.failed_starts - 1), MAX_WAIT_SECONDS)

    def _reason_to_give_up(self, refusal: StartRefused | None) -> StartRefused | None:
        """Return why to end; a server with one worker that serves goes on, and goes on trying."""
        if any(worker.ready for worker in self.workers.values()):
            return None
        if refusal is None and self.failed_starts >= MAX_FAILED_STARTS:
            return StartRefused(
                f"{self.failed_starts} workers in a row died before they could serve", "the lines above say why"
            )
        return refusal

    def _announce_once(self) -> None:
        serving = sum(worker.ready for worker in self.workers.values())
        if self.announced or self._stopping or serving < self.settings.http.workers:
            return
        self.announced = True
        self.announce(Listening(tuple(map(address_of, self.listeners)), serving))

    def _kill_if_late(self) -> None:
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            event_logger().error("workers did not stop in time and are killed", pids=sorted(self.workers))
            self.kill_at = time.monotonic() + MAX_PAUSE_SECONDS
            self._send(signal.SIGKILL)

    @contextlib.contextmanager
    def _signals_watched(self) -> Iterator[None]:
        """Turn the signals we handle into bytes on a pipe, one for each."""
        os.set_blocking(self.wakeup[1], False)
        former_descriptor = signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        former = {number: signal.signal(number, _noted) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_descriptor)
            for descriptor in (*self.wakeup, *self.life):
                os.close(descriptor)


def _noted(_: int, __: FrameType | None) -> None:
    """Do nothing: the byte on the wake-up pipe is what counts."""
