"""`lading scrub`: read again what is stored, and take what is wrong out of the store."""

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, JsonOption, settings_of_registry
from lading.cli.serve import ConfigOption
from lading.cli.terminal import Bar, plain
from lading.cli.verify import fault_lines
from lading.oci.errors import CommandRefused, RegistryError, ScrubStopped
from lading.upkeep.findings import KINDS

if TYPE_CHECKING:
    from lading.metadata.verify import Fault
    from lading.settings import Settings
    from lading.upkeep.scrub import Scrub

DAMAGED = 1
_MAX_LISTED = 1000
_WAIT_SECONDS = 0.05


@dataclass
class _Report:
    """What it has come to so far: of each kind some findings are listed, `found` counts them all."""

    findings: "list[Fault]" = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    hashed_bytes: int = 0
    begun: bool = False
    complete: bool = False
    began: float = field(default_factory=time.monotonic)

    def take(self, fault: "Fault") -> None:
        """Take note of a finding."""
        self.found[fault.code] += 1
        if self.found[fault.code] <= _MAX_LISTED:
            self.findings.append(fault)


def scrub(
    config: ConfigOption = None,
    data: DataOption = None,
    resume: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--resume", help="Go on with the pass that was not finished, if there is one.")
    ] = False,
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Read everything that is stored and hash it; what is wrong is taken out of the store, and a push brings it back.

    A server may run meanwhile. Exit code 0 when nothing was wrong, 1 when something was.
    """
    report = _Report()
    try:
        settings = settings_of_registry(config, data)
        with Bar() as bar:
            asyncio.run(_run(settings, report, bar, resume=resume))
    except CommandRefused as refusal:
        raise ScrubStopped(refusal.message, refusal.hint) from refusal
    except RegistryError as error:
        raise ScrubStopped(str(error), "when that is mended, go on with: lading scrub --resume") from error
    finally:
        if report.begun:  # then what was found before it was stopped is told, too
            typer.echo(_document(report, settings.data) if as_json else "\n".join(_lines(report, settings.data)))
    raise typer.Exit(DAMAGED if report.found else 0)


async def _run(settings: "Settings", report: _Report, bar: Bar, *, resume: bool) -> None:
    from lading.app import open_scrub  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.upkeep.scrub import scrubbing  # noqa: PLC0415

    async with open_scrub(settings, tell=report.take, progress=bar) as scrubber:
        waited = False
        while True:
            with scrubbing(settings.data) as is_ours:
                if is_ours:
                    await _go_through(scrubber, report, resume=resume)
                    return
            if not waited:
                waited = True
                typer.echo("another process scrubs; waiting for it to pause or end", err=True)
            await asyncio.sleep(_WAIT_SECONDS)


async def _go_through(scrubber: "Scrub", report: _Report, *, resume: bool) -> None:
    report.begun = True
    try:
        last = await scrubber.last() if resume else None
        if last is None or last.is_over:
            await scrubber.begin()
        await scrubber.go_on()
        report.complete = True
    finally:
        report.hashed_bytes = scrubber.hashed_bytes


def _document(report: _Report, data: Path) -> str:
    from lading.upkeep.scrub import HEALS  # noqa: PLC0415 - heavy: `lading --version` is quick without

    document = {
        "damaged": bool(report.found),
        "complete": report.complete,
        "data": str(data.absolute()),
        "seconds": round(time.monotonic() - report.began, 3),
        "hashed_bytes": report.hashed_bytes,
        "found": dict(report.found),
        "findings": [
            {**dataclasses.asdict(fault), "severity": KINDS[fault.code].severity, "heals": HEALS}
            for fault in report.findings
        ],
    }
    return json.dumps(document, indent=2)


def _lines(report: _Report, data: Path) -> Iterator[str]:
    from rich import filesize  # noqa: PLC0415 - heavy: `lading --version` is quick without

    from lading.upkeep.scrub import HEALS  # noqa: PLC0415

    for fault in report.findings:
        yield from (*map(plain, fault_lines(fault, HEALS)), "")
    seconds = time.monotonic() - report.began
    yield f"{data}: {filesize.decimal(report.hashed_bytes)} hashed, {seconds:.1f} s"
    if not report.complete:
        yield "not finished; go on with: lading scrub --resume"
    for code, number in report.found.items():
        more = f", {_MAX_LISTED} of them listed" if number > _MAX_LISTED else ""
        yield f"{KINDS[code].severity}: {number} {code}{more}"
    yield "damage found" if report.found else "no damage found"
