"""The listening sockets."""

import socket
import threading

import pytest

from lading.oci.errors import PortUnavailable
from lading.web.sockets import listen


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
