"""The supervisor: claims the data directory, binds the sockets, forks the workers, replaces those that die.

No thread and no database connection exists before a fork: neither would survive it.
"""

import contextlib
import gc
import math
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

from lading.logs import event_logger
from lading.oci.errors import PortUnavailable, StartRefused
from lading.settings import Settings
from lading.web import exposure
from lading.web.child import HANDLED_SIGNALS, Child, Generation, fork, stop_seconds
from lading.web.directory import Claim, claimed
from lading.web.notify import Manager
from lading.web.pulse import Pulse
from lading.web.sockets import Address, address_of, identity_of, inherited, listen
from lading.web.tls import Certificate
from lading.web.worker import Application, Duty, work

# Workers that die before they serve: the wait before the next try doubles, and after so many in a row we give up.
MAX_FAILED_STARTS = 5
FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 5.0
MAX_PAUSE_SECONDS = 1.0
# A new generation that does not serve after this long is given up; the old one goes on.
RELOAD_SECONDS = 60.0
KILLED_BY_USER = 130
# Manifests and small blobs are in the database: they are for those who may pull, not for every local user.
OTHERS_MAY_NOTHING = 0o027


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens, now that all its workers do."""

    addresses: tuple[Address, ...]
    workers: int


@dataclass(frozen=True, slots=True)
class Service:
    """What is served. `prepare` runs once, in the parent, before any worker; it is told whether no other server runs.

    Each worker enters `application(settings)` on its own event loop and serves what it yields. `announce` is called
    once, when all workers accept. `reread` returns the settings as they are now, or raises StartRefused.
    """

    prepare: Callable[[bool], None]
    application: Callable[[Settings], Application]
    announce: Callable[[Listening], None]
    reread: Callable[[], Settings]


def run(settings: Settings, service: Service) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    SIGHUP forks new workers with the settings read again; the old ones leave when all of the new ones accept.

    Raises:
        StartRefused: by any of the steps before the workers serve, or by the application in a worker.

    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the settings have just been read
    os.umask(OTHERS_MAY_NOTHING)
    _raise_descriptor_limit()
    manager = Manager.found()
    manager.tell("STATUS=Preparing the data directory")
    generation = _generation(settings)
    passed = inherited()
    with contextlib.ExitStack() as stack:
        for listener in passed:
            stack.enter_context(listener)
        claim = stack.enter_context(claimed(settings.data, identity_of(passed)))
        listeners = _listeners(settings, passed, stack)
        service.prepare(claim.alone)
        claim.share()
        return _Supervisor(service, claim, listeners, generation, manager).run()


def _generation(settings: Settings) -> Generation:
    http = settings.http
    certificate = None
    if http.tls_certificate is not None and http.tls_key is not None:
        certificate = Certificate(http.tls_certificate, http.tls_key)
        certificate.check()
    return Generation(settings, certificate)


def _listeners(settings: Settings, passed: list[socket.socket], stack: contextlib.ExitStack) -> Sequence[socket.socket]:
    """Return where to listen: on what was passed, else on `http.port`; and on `metrics.port`, passed or not.

    By its port a worker knows what it may answer.
    """
    port = settings.metrics.port
    listeners = passed or [stack.enter_context(each) for each in listen(settings.http.host, settings.http.port)]
    registry = [each for each in listeners if port is None or address_of(each).port != port]
    if not registry:
        raise PortUnavailable(
            f"metrics.port is {port}, the port of the registry itself",
            "give another, or none: /metrics is also on the port of the registry, for this machine and for users",
        )
    exposure.check(settings.auth, map(address_of, registry))
    if port is None or len(registry) < len(listeners):
        return listeners
    return [*listeners, *(stack.enter_context(each) for each in _listen_for_metrics(settings.metrics.host, port))]


def _listen_for_metrics(host: str, port: int) -> list[socket.socket]:
    try:
        return listen(host, port)
    except PortUnavailable as error:
        raise PortUnavailable(
            f"metrics: {error.message}",
            "give another metrics.host or metrics.port; two servers on the same sockets need it to be one of these",
        ) from error


def _raise_descriptor_limit() -> None:
    """Take all the descriptors that we may have: each connection is one, and each blob on its way another."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(slots=True)
class _Supervisor:
    """The parent's loop. `due` holds a time for each worker of `serving` that is missing.

    `candidate` is the generation that takes the place of `serving` as soon as all its workers are ready.
    """

    service: Service
    claim: Claim
    listeners: Sequence[socket.socket]
    serving: Generation
    manager: Manager
    candidate: Generation | None = None
    candidate_end: float = 0.0
    reload_wanted: bool = False
    children: dict[int, Child] = field(default_factory=dict)
    due: list[float] = field(default_factory=list)
    failed_starts: int = 0
    announced: bool = False
    stopping: bool = False
    exit_code: int = 0
    fatal: StartRefused | None = None
    selector: selectors.BaseSelector = field(default_factory=selectors.PollSelector)
    life: tuple[int, int] = field(default_factory=os.pipe)
    wakeup: tuple[int, int] = field(default_factory=os.pipe)

    def run(self) -> int:
        """Keep the workers running until told to stop; return the exit code."""
        gc.collect()
        gc.freeze()  # what was imported so far is shared with the workers, and stays shared
        self.due = [0.0] * self.serving.settings.http.workers
        pulse = Pulse(self.manager.watch_seconds)
        with self._signals_watched(), self.selector:
            self.selector.register(self.wakeup[0], selectors.EVENT_READ)
            while self.children or not self.stopping:
                self._start_due_workers()
                self._listen_to_pipes()
                self._reap()
                self._change_generations()
                self._renew_certificate()
                self._announce_once()
                self._kill_the_late()
                pulse.feel(self.children.values(), time.monotonic())
                self.manager.hear_that_we_live()
        if self.fatal is not None:
            raise self.fatal
        return self.exit_code

    def _start_due_workers(self) -> None:
        now = time.monotonic()
        while not self.stopping and self.due and min(self.due) <= now:
            self.due.remove(min(self.due))
            try:
                self._fork(self.serving)
            except OSError as error:
                event_logger().error("a worker cannot be started; trying again", reason=error.strerror)
                self.due.append(time.monotonic() + MAX_WAIT_SECONDS)

    def _fork(self, generation: Generation) -> None:
        assert threading.active_count() == 1, f"a thread before the fork: {threading.enumerate()}"

        def serve(status: int) -> int:
            application = self.service.application(generation.settings)
            grace_seconds = generation.settings.http.grace_seconds
            return work(Duty(self.listeners, generation.certificate, application, grace_seconds, self.life[0], status))

        ours = (*self.wakeup, self.life[1], *(child.status for child in self.children.values()))
        child = fork(generation, serve, ours)
        self.children[child.pid] = child
        self.selector.register(child.status, selectors.EVENT_READ, child)

    def _listen_to_pipes(self) -> None:
        for key, _ in self.selector.select(self._pause_seconds()):
            if key.data is None:
                self._obey(os.read(self.wakeup[0], 1024))
            else:
                self._hear(key.data)

    def _pause_seconds(self) -> float:
        ends = [child.kill_at for child in self.children.values() if child.kill_at is not None]
        earliest = min([*self.due, *ends], default=math.inf) - time.monotonic()
        return min(MAX_PAUSE_SECONDS, max(0.0, earliest), self.manager.pause_seconds)

    def _hear(self, child: Child) -> None:
        was_ready = child.ready
        if not child.hear():
            self.selector.unregister(child.status)
        if child.ready and not was_ready:
            self.failed_starts = 0

    def _obey(self, signals: bytes) -> None:
        for number in signals:
            if number == signal.SIGHUP:
                self.reload_wanted = True
            elif number in {signal.SIGTERM, signal.SIGINT}:
                if not self.stopping:
                    self._stop()
                elif number == signal.SIGINT:
                    self.exit_code = KILLED_BY_USER
                    for child in self.children.values():
                        child.send(signal.SIGKILL)

    def _stop(self) -> None:
        """Tell the workers to finish; from here on new clients are refused, or wait where another holds the sockets."""
        self.stopping, self.candidate = True, None
        ends = [stop_seconds(child.generation.settings) for child in self.children.values()]
        self.claim.ends_within(max(ends, default=0.0))
        self.manager.hear_that_we_stop(max(ends, default=0.0))
        for child in self.children.values():
            child.retire()
        for listener in self.listeners:
            listener.close()

    def _change_generations(self) -> None:
        """Let the candidate serve when it can, and begin a reload that was asked for."""
        if self.candidate is not None:
            ready = sum(child.ready and child.generation is self.candidate for child in self.children.values())
            if ready >= self.candidate.settings.http.workers:
                self._retire(self.serving)
                self.serving, self.candidate, self.due = self.candidate, None, []
                event_logger().info("reloaded: new workers serve, the old ones finish", workers=ready)
                self._tell_ready()
            elif time.monotonic() >= self.candidate_end:
                self._abandon(f"its workers were not ready within {RELOAD_SECONDS:g} s")
        elif self.reload_wanted and not self.stopping:
            self.reload_wanted = False
            self._reload()

    def _reload(self) -> None:
        """Start workers with the settings as they are now; the ones that serve do not notice."""
        if self.announced:
            self.manager.hear_that_we_reload()
        try:
            settings = _with_fixed(self.service.reread(), self.serving.settings)
            exposure.check(settings.auth, self._addresses())
            self.candidate = _generation(settings)
            self.candidate_end = time.monotonic() + RELOAD_SECONDS
            for _ in range(self.candidate.settings.http.workers):
                self._fork(self.candidate)
        except StartRefused as refusal:
            self._abandon(refusal.message)
        except OSError as error:
            self._abandon(error.strerror or repr(error))

    def _abandon(self, reason: str) -> None:
        event_logger().error("reload failed: the workers with the old settings go on", reason=reason)
        candidate, self.candidate = self.candidate, None
        if candidate is not None:
            self._retire(candidate)
        self._tell_ready()

    def _retire(self, generation: Generation) -> None:
        for child in self.children.values():
            if child.generation is generation:
                child.retire()

    def _renew_certificate(self) -> None:
        """Take a certificate that was replaced on disk, here for the workers to come and in those that serve."""
        certificate = self.serving.certificate
        if self.stopping or certificate is None or not certificate.has_changed():
            return
        try:
            certificate.renew()
        except StartRefused as refusal:
            event_logger().error("the new TLS certificate cannot be used; the old one stays", reason=refusal.message)
            return
        certificate.check()
        for child in self.children.values():
            if child.generation is self.serving:
                child.send(signal.SIGHUP)

    def _reap(self) -> None:
        """Take in every child that ended: as PID 1 of a container also those that are none of ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.get(pid)
            if child is not None:
                self._bury(child, os.waitstatus_to_exitcode(status))

    def _bury(self, child: Child, exit_code: int) -> None:
        while child.status in self.selector.get_map():
            self._hear(child)
        os.close(child.status)
        del self.children[child.pid]
        reason = child.refusal.message if child.refusal else None
        if child.kill_at is not None:
            return
        if child.generation is self.candidate:
            self._abandon(reason or f"a new worker ended with exit code {exit_code}")
            return
        if not child.ready:
            self.failed_starts += 1
        self.fatal = self._reason_to_give_up(child.refusal)
        if self.fatal is not None:
            self._stop()
            return
        event_logger().warning("a worker ended and is replaced", pid=child.pid, exit_code=exit_code, reason=reason)
        self.due.append(time.monotonic() + self._wait_seconds())

    def _wait_seconds(self) -> float:
        if not self.failed_starts:
            return 0.0
        return min(FIRST_WAIT_SECONDS * 2.0 ** (self.failed_starts - 1), MAX_WAIT_SECONDS)

    def _reason_to_give_up(self, refusal: StartRefused | None) -> StartRefused | None:
        """Return why to end; a server with one worker that serves goes on, and goes on trying."""
        if any(child.ready for child in self.children.values()):
            return None
        if refusal is None and self.failed_starts >= MAX_FAILED_STARTS:
            return StartRefused(
                f"{self.failed_starts} workers in a row died before they could serve", "the lines above say why"
            )
        return refusal

    def _announce_once(self) -> None:
        ready = sum(child.ready and child.generation is self.serving for child in self.children.values())
        if self.announced or self.stopping or ready < self.serving.settings.http.workers:
            return
        self.announced = True
        self._tell_ready()
        self.service.announce(Listening(tuple(self._addresses()), ready))

    def _tell_ready(self) -> None:
        """Tell the service manager that requests are answered, once that is so."""
        if self.announced:
            places = ", ".join(map(str, self._addresses()))
            self.manager.hear_that_we_serve(f"{self.serving.settings.http.workers} workers on {places}")

    def _addresses(self) -> list[Address]:
        """Return where the registry listens; that of the metrics is not announced."""
        aside = self.serving.settings.metrics.port
        return [address for address in map(address_of, self.listeners) if aside is None or address.port != aside]

    def _kill_the_late(self) -> None:
        killed = sorted(child.pid for child in self.children.values() if child.kill_if_late())
        if killed:
            event_logger().error("workers did not stop in time and are killed", pids=killed)

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


def _with_fixed(new: Settings, old: Settings) -> Settings:
    """Return `new` with what cannot change while the server runs as it is in `old`; say so where they differ."""
    listening = ("http.host", "http.port", "metrics.host", "metrics.port")
    fixed = ("data", *listening, "log.format", "log.file", "log.access_file")
    differing = [path for path in fixed if new.value(path) != old.value(path)]
    if differing:
        event_logger().warning("settings that only a restart can change stay as they are", settings=differing)
    http = new.http.model_copy(update={"host": old.http.host, "port": old.http.port})
    return new.model_copy(update={"data": old.data, "http": http, "metrics": old.metrics, "log": old.log})


def _noted(_: int, __: FrameType | None) -> None:
    """Do nothing: the byte on the wake-up pipe is what counts."""
