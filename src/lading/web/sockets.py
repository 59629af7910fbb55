"""The listening sockets: one per address, bound once, shared by all workers.

No SO_REUSEPORT: with it two servers could share one port without noticing, and a restart would drop connections.
"""

import errno
import hashlib
import ipaddress
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lading.oci.errors import PortUnavailable

BACKLOG = 4096  # what Linux allows by default (net.core.somaxconn)
FIRST_INHERITED = 3  # sd_listen_fds(3)
# With port 0 the first address picks the port; another address of the same name may have it taken.
PICK_ATTEMPTS = 20
# A server that was killed may let go of its data directory a moment before it lets go of its port.
LET_GO_SECONDS = 1.0
POLL_SECONDS = 0.05
IPV6_WILDCARD = "::"
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class Address:
    """A numeric address and a port; or the path of a Unix socket, whose port is None."""

    host: str
    port: int | None

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.port is None or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`, all on one port; port 0 picks a free one.

    Raises:
        PortUnavailable: an address is taken, or not ours to take.

    """
    addresses = _resolved(host, port)
    attempts = round(LET_GO_SECONDS / POLL_SECONDS) if port else PICK_ATTEMPTS
    for _ in range(attempts - 1):
        try:
            return _listen_on_all(addresses, port)
        except PortUnavailable as error:
            if port and not _is_taken(error):
                raise
        if port:
            time.sleep(POLL_SECONDS)
    return _listen_on_all(addresses, port)


def inherited() -> list[socket.socket]:
    """Return the listening sockets that systemd, or another parent, passed to this process (sd_listen_fds(3)).

    The parent keeps them open, so that clients wait while nobody serves. Its variables are taken from the environment.

    Raises:
        PortUnavailable: what was passed is no listening socket of TCP or a Unix stream.

    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_inherited(descriptor) for descriptor in range(FIRST_INHERITED, FIRST_INHERITED + int(count))]


def _inherited(descriptor: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    families = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
    if not listens or listener.family not in families or listener.type != socket.SOCK_STREAM:
        raise PortUnavailable(
            f"descriptor {descriptor}, passed by LISTEN_FDS, is not a listening socket of TCP or a Unix stream",
            "in a systemd unit only ListenStream= makes such sockets",
        )
    listener.setblocking(False)  # systemd makes the socket blocking again each time that it starts a service with it
    listener.set_inheritable(False)
    return listener


def identity_of(listeners: Sequence[socket.socket]) -> str | None:
    """Return what names these very sockets while one of them is open, in whatever process; None for none.

    Two servers that share them were both given them by the parent that made them.
    """
    if not listeners:
        return None
    numbers = sorted((status.st_dev, status.st_ino) for status in (os.fstat(each.fileno()) for each in listeners))
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]


def address_of(listener: socket.socket) -> Address:
    """Return where `listener` listens."""
    if listener.family == socket.AF_UNIX:
        name = os.fsdecode(listener.getsockname())
        return Address(f"@{name[1:]}" if name.startswith("\0") else name, None)  # `@`, as systemd and ss write it
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def _resolved(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortUnavailable(
            f"{host} is neither an address nor a name that can be resolved", "give another with --host"
        ) from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _listen_on_all(addresses: list[tuple[socket.AddressFamily, str]], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    absent: PortUnavailable | None = None
    try:
        for family, host in addresses:
            try:
                listeners.append(_listen_on(family, host, port))
            except _AddressAbsentError as error:
                absent = error
            else:
                port = listeners[-1].getsockname()[1]
        if absent is not None and not listeners:
            raise absent
    except PortUnavailable:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class _AddressAbsentError(PortUnavailable):
    """This machine does not have the address: `localhost` resolves to `::1` where IPv6 is switched off, too."""


def _listen_on(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != IPV6_WILDCARD)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _refusal(Address(host, port), error) from error
    listener.setblocking(False)
    return listener


def _is_taken(error: PortUnavailable) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


def _refusal(address: Address, error: OSError) -> PortUnavailable:
    if error.errno in _ABSENT:
        return _AddressAbsentError(
            f"this machine does not have the address {address.host}",
            "give another with --host, `ip address` lists them",
        )
    if error.errno == errno.EADDRINUSE:
        return PortUnavailable(
            f"{address} is taken by another program",
            f"give another port with --port, or find the program: ss -ltnp 'sport = :{address.port}'",
        )
    if error.errno == errno.EACCES:
        return PortUnavailable(
            f"{address} may not be taken by this user", "ports below 1024 need a privilege: give another with --port"
        )
    return PortUnavailable(
        f"{address} cannot be listened on: {(error.strerror or 'unknown error').lower()}",
        "give another address with --host and --port",
    )
