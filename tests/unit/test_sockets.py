"""The listening sockets."""

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import cast

import pytest

from lading.oci.errors import PortUnavailable
from lading.web.http_exchange import Endpoints
from lading.web.sockets import Address, address_of, identity_of, listen


def test_a_port_that_is_let_go_in_a_moment_is_waited_for() -> None:
    """The workers of a killed server may hold it a moment longer than its lock."""
    with socket.create_server(("127.0.0.1", 0)) as former:
        port = former.getsockname()[1]
        threading.Timer(0.2, former.close).start()

        (listener,) = listen("127.0.0.1", port)

    with listener:
        assert listener.getsockname()[1] == port


def test_a_port_that_stays_taken_is_refused() -> None:
    """The sentence says how to find who has it."""
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortUnavailable, match="is taken"):
        listen("127.0.0.1", other.getsockname()[1])


def test_sockets_are_the_same_in_whatever_process_and_order() -> None:
    """Which server may stand beside another is told by them; an equal address is not enough."""
    with contextlib.ExitStack() as stack:
        first, second, other = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3))
        copy = stack.enter_context(socket.socket(fileno=os.dup(first.fileno())))

        assert identity_of([first, second]) == identity_of([second, copy])
        assert len({identity_of(some) for some in ([first], [second], [first, second], [first, other])}) == 4
    assert identity_of([]) is None


def test_unix_sockets_are_named_as_other_tools_name_them(tmp_path: Path) -> None:
    """By path, or with the sign that stands for no path."""
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(tmp_path / "s"))
        abstract.bind(f"\0lading-test-{os.getpid()}")

        assert address_of(named) == Address(str(tmp_path / "s"), None)
        assert str(address_of(abstract)) == f"unix:@lading-test-{os.getpid()}"


@pytest.mark.parametrize(("host", "seen"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
def test_a_client_of_a_socket_for_both_families_has_the_address_that_it_came_with(host: str, seen: str) -> None:
    """`::ffff:127.0.0.1` is in no list of an operator, and not loopback to every Python."""
    met: list[Endpoints] = []

    class Greeting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            met.append(Endpoints.of(cast("asyncio.Transport", transport)))
            cast("asyncio.Transport", transport).close()

    async def meet(listener: socket.socket) -> None:
        async with await asyncio.get_running_loop().create_server(Greeting, sock=listener):
            reader, writer = await asyncio.open_connection(host, listener.getsockname()[1])
            await reader.read()
            writer.close()

    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        asyncio.run(meet(listener))

    assert [endpoints.client and endpoints.client[0] for endpoints in met] == [seen]
