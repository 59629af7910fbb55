"""Real servers for the tests: one that most share, and as many others as a test asks for."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.capability import preloaded
from tests.capability.operated import OperatedRegistry
from tests.capability.program import Serve, Server
from tests.capability.repository import Repository, new_name
from tests.capability.server import LADING, ClosedRegistry, RegistryProcess, StartRegistry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """Run one server with default settings for all tests of this test process."""
    server = RegistryProcess(tmp_path_factory.mktemp("registry"), parent=preloaded.shared())
    server.start_whole()
    try:
        yield server
        server.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture
def repository(registry: RegistryProcess) -> Repository:
    """Return a repository of the shared server that no other test uses."""
    return Repository(registry.wire, new_name())


@pytest.fixture(scope="session")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClosedRegistry]:
    """Run one server that wants a token for everything."""
    server = ClosedRegistry(tmp_path_factory.mktemp("closed"))
    server.start()
    try:
        yield server
        server.stop()
    finally:
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Return a function that starts a server of the test's own, with the settings given as environment variables."""
    started: list[RegistryProcess] = []

    def start(settings: Mapping[str, str] | None = None) -> RegistryProcess:
        folder = tmp_path / f"registry-{len(started)}"
        folder.mkdir()
        server = RegistryProcess(folder, settings, parent=preloaded.shared())
        started.append(server)
        server.start_whole()
        return server

    try:
        yield start
        for server in started:
            if server.running:
                server.stop()
            else:
                server.assert_untroubled()
    finally:
        for server in started:
            server.kill()
            shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that runs `lading serve --port 0` with what a test adds, in a folder of its own."""
    started: list[Server] = []

    def start(*arguments: str, environ: Mapping[str, str] | None = None, command: list[str] | None = None) -> Server:
        port = [] if "--port" in arguments else ["--port", "0"]
        parent = None if command else preloaded.shared()
        server = Server(tmp_path, command or [*LADING, "serve", *port, *arguments], environ, parent=parent)
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill_all()


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[OperatedRegistry]:
    """Return a server of the test's own, not started yet, whose operator is the test."""
    process = OperatedRegistry(tmp_path, parent=preloaded.shared())
    try:
        yield process
    finally:
        process.kill()
        shutil.rmtree(tmp_path, ignore_errors=True)
