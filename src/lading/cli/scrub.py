"""`lading scrub`: read again what is stored, and take what is wrong out of the store."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import STDERR, DataOption, JsonOption
from lading.cli.serve import ConfigOption
from lading.cli.terminal import Bar, plain
from lading.cli.verify import fault_lines
from lading.oci.errors import RegistryError, ScrubStopped, VerifyRefused
from lading.upkeep.findings import KINDS

if TYPE_CHECKING:
    from lading.metadata.database import Database
    from lading.metadata.verify import Fault
    from lading.settings import Settings
    from lading.storage.disk import DiskStore
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
    import sqlalchemy as sa  # noqa: PLC0415 - heavy: `lading --version` is quick without

    from lading import logs, settings  # noqa: PLC0415

    in_force = settings.load(config, {"data": data})
    logs.configure(in_force.log.format, fd=STDERR)
    _refuse_no_registry(in_force.data)
    report = _Report()
    try:
        with Bar() as bar:
            asyncio.run(_run(in_force, report, bar, resume=resume))
    except RegistryError as error:
        hint = "when that is mended, go on with: lading scrub --resume"
        raise ScrubStopped(f"{in_force.data.absolute()}: {error}", hint) from error
    except (OSError, sa.exc.DBAPIError) as error:
        what = f"{in_force.data.absolute()} cannot be used: {error}"
        raise ScrubStopped(what, "run it as the user whom the server runs as") from error
    finally:
        if report.begun:  # then what was found before it was stopped is told, too
            typer.echo(_document(report, in_force.data) if as_json else "\n".join(_lines(report, in_force.data)))
    raise typer.Exit(DAMAGED if report.found else 0)


def _refuse_no_registry(place: Path) -> None:
    from lading.metadata.database import FILE  # noqa: PLC0415 - see `scrub`
    from lading.metadata.verify import ReadOnlyDatabase, refuse_other_schema, revision  # noqa: PLC0415

    if not (place / FILE).is_file():
        raise ScrubStopped(f"there is no registry in {place.absolute()}", "name its data directory with --data")
    try:
        refuse_other_schema(ReadOnlyDatabase(place / FILE).read(revision), place / FILE)
    except VerifyRefused as error:
        raise ScrubStopped(error.message, error.hint.replace("verify", "scrub")) from error


async def _run(settings: "Settings", report: _Report, bar: Bar, *, resume: bool) -> None:
    from lading.metadata.database import FILE, Database  # noqa: PLC0415 - see `scrub`
    from lading.storage.disk import DiskStore  # noqa: PLC0415
    from lading.upkeep.scrub import scrubbing  # noqa: PLC0415

    place = settings.data
    with contextlib.closing(DiskStore(place)) as disk, contextlib.closing(Database(place / FILE)) as database:
        scrubber = await _scrubber(settings, database, disk, report, bar)
        waited = False
        while True:
            with scrubbing(place) as is_ours:
                if is_ours:
                    await _go_through(scrubber, report, resume=resume)
                    return
            if not waited:
                waited = True
                typer.echo("another process scrubs; waiting for it to pause or end", err=True)
            await asyncio.sleep(_WAIT_SECONDS)


async def _scrubber(
    settings: "Settings", database: "Database", disk: "DiskStore", report: _Report, bar: Bar
) -> "Scrub":
    from lading.metadata import stores  # noqa: PLC0415 - see `scrub`
    from lading.metadata.database import FILE  # noqa: PLC0415
    from lading.metadata.times import SECOND_US  # noqa: PLC0415
    from lading.storage.identity import Watch  # noqa: PLC0415
    from lading.upkeep.identity import marker_of  # noqa: PLC0415
    from lading.upkeep.scrub import Scrub  # noqa: PLC0415

    place = settings.data
    store = await database.scan(stores.find)
    if store is None:
        raise ScrubStopped(f"nothing was ever stored in {place.absolute()}", "name its data directory with --data")
    watch = Watch(place, marker_of(store, 0), place / FILE)
    watch.confirm_writable()
    return Scrub(
        database,
        disk,
        place,
        watch,
        store_id=store.id,
        undo_us=round(settings.collection.undo_seconds * SECOND_US),
        max_bytes_per_second=settings.scrub.max_bytes_per_second,
        tell=report.take,
        progress=bar,
    )


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
    document = {
        "damaged": bool(report.found),
        "complete": report.complete,
        "data": str(data.absolute()),
        "seconds": round(time.monotonic() - report.began, 3),
        "hashed_bytes": report.hashed_bytes,
        "found": dict(report.found),
        "findings": [
            {**dataclasses.asdict(fault), **dataclasses.asdict(KINDS[fault.code])} for fault in report.findings
        ],
    }
    return json.dumps(document, indent=2)


def _lines(report: _Report, data: Path) -> Iterator[str]:
    from rich import filesize  # noqa: PLC0415 - see `scrub`

    for fault in report.findings:
        yield from (*map(plain, fault_lines(fault)), "")
    seconds = time.monotonic() - report.began
    yield f"{data}: {filesize.decimal(report.hashed_bytes)} hashed, {seconds:.1f} s"
    if not report.complete:
        yield "not finished; go on with: lading scrub --resume"
    for code, number in report.found.items():
        more = f", {_MAX_LISTED} of them listed" if number > _MAX_LISTED else ""
        yield f"{KINDS[code].severity}: {number} {code}{more}"
    yield "damage found" if report.found else "no damage found"
