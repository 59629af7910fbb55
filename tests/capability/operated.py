"""A registry whose operator does things to it: runs commands on its data directory, moves files under it."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2

from tests.capability.server import RegistryProcess

COMMAND_SECONDS = 60


class OperatedRegistry(RegistryProcess):
    """One server, stopped and started at will, and its commands. Refusals are answers, too; a traceback never is."""

    def assert_untroubled(self) -> None:
        """Assert that nothing was raised unhandled."""
        assert "Traceback" not in self._log.read_text() + self._errors.read_text(), f"a traceback\n{self.output()}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of its commands."""
        return self._environment

    def start(self) -> None:
        """Start all workers."""
        self.start_whole()

    def set(self, name: str, value: str) -> None:
        """Set a variable for the next start."""
        self._environment = {**self._environment, name: value}

    def refused(self, *arguments: str) -> str:
        """Run it, assert that it is refused in a sentence, and return that."""
        outcome = self.run(*arguments)
        assert outcome.code == 1, outcome
        assert outcome.errors.startswith("error: "), outcome
        return outcome.errors

    def refusal(self) -> str:
        """Start the server, assert that it refuses to, and return what it says."""
        return self.refused("serve", "--port", "0")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return what the log has under that name."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement on the database, behind the server's back."""
        with closing(dbapi2.connect(self.data / "lading.db", isolation_level=None, timeout=10)) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(statement, parameters).fetchall()
            return rows

    def marker(self) -> dict[str, Any]:
        """Return the marker among the objects."""
        document: dict[str, Any] = json.loads(self.marker_path.read_text())
        return document

    @property
    def marker_path(self) -> Path:
        """Where the marker is."""
        return self.data / "objects" / "registry-store.json"

    def change_marker(self, **fields: object) -> None:
        """Put another marker in its place."""
        replacement = self.marker_path.with_suffix(".changed")
        replacement.write_text(json.dumps({**self.marker(), **fields}))
        replacement.replace(self.marker_path)
