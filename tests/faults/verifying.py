"""`lading verify` and `lading scrub` as their operator runs them: in a process, where a fault has been."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.capability import preloaded

VERIFY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Verified:
    """What one run said."""

    exit_code: int
    document: Mapping[str, Any]

    @property
    def found(self) -> list[tuple[str, str]]:
        """Each finding as its code and the best name of what it is about."""
        return [
            (
                finding["code"],
                finding["tag"] or finding["digest"] or finding["path"] or "".join(finding["repositories"]),
            )
            for finding in self.document["findings"]
        ]


def named(told: Verified) -> list[str]:
    """Return the digests of all findings, in order."""
    return sorted(finding["digest"] for finding in told.document["findings"])


def _subject(finding: Mapping[str, Any]) -> str:
    return str(finding["tag"] or finding["digest"] or finding["path"] or "".join(finding["repositories"]))


def verify(data: Path, *options: str) -> Verified:
    """Run `lading verify --json` on the data directory, whether a server runs or not."""
    return _run("verify", data, options)


def scrub(data: Path, *options: str) -> Verified:
    """Run `lading scrub --json` on the data directory, whether a server runs or not."""
    return _run("scrub", data, options)


def _run(command: str, data: Path, options: Sequence[str]) -> Verified:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LADING_")}
    arguments = (command, "--data", str(data), "--json", *options)
    # In a folder where there is no settings file.
    done = preloaded.shared().run(*arguments, environment=environment, folder=data, seconds=VERIFY_SECONDS)
    assert done.code in {0, 1}, f"{command} ended with {done.code}\n{done.output}\n{done.errors}"
    assert not done.errors, done.errors
    return Verified(done.code, done.json())


def assert_verified(data: Path, *, waste: bool = False) -> None:
    """Assert that `lading verify` finds no damage and, unless `waste` is expected, nothing at all (V1 to V8, V10)."""
    verified = verify(data)

    findings = [finding for finding in verified.document["findings"] if not waste or finding["severity"] != "waste"]
    assert not findings, json.dumps(findings, indent=1)
    assert verified.exit_code == 0
