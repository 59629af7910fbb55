"""`lading verify`: prove that database and objects agree, without changing either."""

import contextlib
import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.serve import ConfigOption
from lading.cli.terminal import Bar, plain
from lading.upkeep.findings import KINDS

if TYPE_CHECKING:
    from lading.metadata.verify import Fault
    from lading.upkeep.verify import Report, Verification

DAMAGED = 1


def verify(
    config: ConfigOption = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="What to verify (default ./data).")] = None,
    quick: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--quick", help="Compare lengths only; read no content but manifests.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Hold the database against the objects, changing nothing: exit code 0 when no damage was found, 1 when some was.

    It reads all content and hashes it. A server may run meanwhile.
    """
    from lading import settings  # noqa: PLC0415 - heavy: `lading --version` is quick without
    from lading.metadata.database import FILE  # noqa: PLC0415
    from lading.upkeep.verify import Verification  # noqa: PLC0415

    place = settings.load(config, {"data": data}).data
    with Bar() as bar:
        verification = Verification(place, place / FILE, quick=quick, progress=bar)
        with _interrupts_stop(verification):
            report = verification.run()
    typer.echo(_document(report, place, quick=quick) if as_json else "\n".join(_lines(report, place, quick=quick)))
    raise typer.Exit(DAMAGED if report.damaged else 0)


@contextlib.contextmanager
def _interrupts_stop(verification: "Verification") -> Iterator[None]:
    """Let Ctrl-C end it at its next look: an exception raised anywhere may meet a finalizer, which drops it."""

    def stop(_: int, __: FrameType | None) -> None:
        verification.stop()

    former = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _document(report: "Report", data: Path, *, quick: bool) -> str:
    document = {
        "damaged": report.damaged,
        "data": str(data.absolute()),
        "quick": quick,
        "seconds": round(report.seconds, 3),
        "counts": {**dataclasses.asdict(report.counts), "hashed_bytes": report.hashed_bytes},
        "found": dict(report.found),
        "findings": [
            {**dataclasses.asdict(fault), **dataclasses.asdict(KINDS[fault.code])} for fault in report.findings
        ],
    }
    return json.dumps(document, indent=2)


def _lines(report: "Report", data: Path, *, quick: bool) -> Iterator[str]:
    from rich import filesize  # noqa: PLC0415 - see `verify`

    for fault in report.findings:
        yield from (*map(plain, fault_lines(fault)), "")
    counts = report.counts
    yield (
        f"{data}: {counts.repositories} repositories, {counts.tags} tags, {counts.manifests} manifests,"
        f" {counts.blobs} blobs, {counts.objects} of them files"
    )
    hashed = f"{filesize.decimal(report.hashed_bytes)} hashed"
    extent = "lengths compared, no content read" if quick else hashed
    yield f"{extent}, {report.seconds:.1f} s"
    listed = Counter(fault.code for fault in report.findings)
    for code, number in report.found.items():
        more = f", {listed[code]} of them listed" if listed[code] < number else ""
        yield f"{KINDS[code].severity}: {number} {code}{more}"
    yield "damage found" if report.damaged else "no damage found"


def fault_lines(fault: "Fault", heals: str | None = None) -> Iterator[str]:
    """Yield what is said of one finding; `heals` is what is to be done about it, where that is not as always."""
    kind = KINDS[fault.code]
    subject = fault.digest or fault.path or ""
    if fault.tag is not None:
        subject = f"tag {fault.tag} {subject}".rstrip()
    yield f"{kind.severity} {fault.code}: {subject + ': ' if subject else ''}{fault.what}"
    if fault.repositories:
        yield f"    in {', '.join(fault.repositories)}"
    if fault.path is not None and fault.digest is not None:
        yield f"    at {fault.path}"
    yield f"    {heals or kind.heals}"
