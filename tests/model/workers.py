"""Both workers of a server, each by a connection that is known to be its own."""

import contextlib
import itertools
import time
from pathlib import Path

from tests.capability.server import RegistryProcess
from tests.wire import Body, Connection, Headers, Reply, WireError

FOUND_WITHIN_SECONDS = 30.0


class Workers:
    """Sends each request to the worker whose turn it is, on a connection that is kept while the server keeps it."""

    def __init__(self, server: RegistryProcess, count: int = 2) -> None:
        self._server = server
        self._kept: dict[int, Connection] = {}
        self._pids: list[int] = []
        self._look_for(count)
        self._turns = itertools.cycle(self._pids)
        self.answered = dict.fromkeys(self._pids, 0)

    def request(
        self, method: str, target: str, *, headers: Headers = (), body: Body | None = None, chunked: bool = False
    ) -> Reply:
        """Send one request to the worker that did not answer the last one, and read its reply."""
        pid = next(self._turns)
        connection = self._kept.pop(pid, None) or self._connect(pid)
        try:
            reply = connection.request(method, target, headers=headers, body=body, chunked=chunked)
        except (OSError, WireError) as error:
            connection.close()
            raise AssertionError(f"{method} {target}: no reply, {error!r}\n{self._server.output()}") from error
        if reply.get("Connection") == "close":
            connection.close()
        else:
            self._kept[pid] = connection
        self.answered[pid] += 1
        return reply

    def close(self) -> None:
        """Close the connections."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def _look_for(self, count: int) -> None:
        deadline = time.monotonic() + FOUND_WITHIN_SECONDS
        while len(self._pids) < count:
            assert time.monotonic() < deadline, f"only the workers {self._pids} take connections"
            self._connect_any()

    def _connect(self, pid: int) -> Connection:
        """Return a connection of one worker; those of others that come up on the way are kept for their turn."""
        deadline = time.monotonic() + FOUND_WITHIN_SECONDS
        while pid not in self._kept:
            assert time.monotonic() < deadline, f"worker {pid} takes no connections"
            self._connect_any()
        return self._kept.pop(pid)

    def _connect_any(self) -> None:
        connection = self._server.wire.connect()
        # A worker that has answered has accepted; before that the connection is nobody's.
        connection.request("GET", "/livez")
        pid = self._owner(connection.local_port)
        if pid not in self._pids:
            self._pids.append(pid)
        if pid in self._kept:
            connection.close()
        else:
            self._kept[pid] = connection

    def _owner(self, client_port: int) -> int:
        """Return the process that holds the server's end of a connection."""
        ends = f":{self._server.wire.port:04X}", f":{client_port:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                socket_name = f"socket:[{fields[9]}]"
                break
        else:
            raise AssertionError(f"no connection from port {client_port}")
        for pid in self._server.tree():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == socket_name:
                        return pid
        raise AssertionError(f"no process of the server holds the connection from port {client_port}")
