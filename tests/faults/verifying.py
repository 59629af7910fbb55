"""`lading verify` as its operator runs it: in a process of its own, on a data directory that a fault has met."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.capability.server import LADING

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


def _subject(finding: Mapping[str, Any]) -> str:
    return str(finding["tag"] or finding["digest"] or finding["path"] or "".join(finding["repositories"]))


def verify(data: Path, *options: str) -> Verified:
    """Run `lading verify --json` on the data directory, whether a server runs or not."""
    done = subprocess.run(
        [*LADING, "verify", "--data", str(data), "--json", *options],
        capture_output=True,
        text=True,
        timeout=VERIFY_SECONDS,
        check=False,
        cwd=data,  # where there is no settings file
        env={name: value for name, value in os.environ.items() if not name.startswith("LADING_")},
    )
    assert done.returncode in {0, 1}, f"verify ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr
    return Verified(done.returncode, json.loads(done.stdout))


def assert_verified(data: Path, *, waste: bool = False) -> None:
    """Assert that `lading verify` finds no damage and, unless `waste` is expected, nothing at all (V1 to V8, V10)."""
    verified = verify(data)

    findings = [finding for finding in verified.document["findings"] if not waste or finding["severity"] != "waste"]
    assert not findings, json.dumps(findings, indent=1)
    assert verified.exit_code == 0
