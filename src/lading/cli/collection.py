"""`lading garbage-collect`: collect now, and tell what went and why; the server does it by itself, all the time."""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, JsonOption, YesOption, confirm, settings_of_registry
from lading.cli.serve import ConfigOption
from lading.cli.terminal import Bar

if TYPE_CHECKING:
    from lading.metadata.backlog import Backlog
    from lading.metadata.collection import Removed
    from lading.settings import Settings
    from lading.upkeep.collection import Collector, Policy, Report

_REST = 0.5
_TURN_SECONDS = 0.2


def garbage_collect(  # noqa: PLR0913, PLR0917 - flags
    config: ConfigOption = None,
    data: DataOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and change nothing.")] = False,  # noqa: FBT002 - a flag
    now: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--now", help="Do not wait for undo windows and delays. What is being pushed stays.")
    ] = False,
    delete_untagged: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--delete-untagged", help="Let manifests go, too, that no tag, index or subject keeps.")
    ] = False,
    yes: YesOption = False,  # noqa: FBT002 - a flag
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Remove what nothing refers to any more, and tell what went and why. The server may run, and clients may push.

    The server does this by itself, every minute; this looks through everything as well.
    """
    settings = settings_of_registry(config, data)
    run = _Run(settings, now=now, delete_untagged=delete_untagged)
    with contextlib.ExitStack() as stack:
        if dry_run:
            run.copy = stack.enter_context(_copy(settings.data))
        elif now:
            _ask(asyncio.run(run.backlog()), yes=yes)
        if not dry_run:
            stack.enter_context(_turn(settings.data))
        outcome = asyncio.run(run.collect())
    typer.echo(_document(outcome, dry_run=dry_run) if as_json else "\n".join(_lines(outcome, dry_run=dry_run)))


@dataclass(slots=True)
class _Outcome:
    """What was removed, each thing in `items`, and what there is left to do."""

    report: "Report"
    items: "list[Removed]"
    left: "Backlog"


@dataclass(slots=True)
class _Run:
    """One collection."""

    settings: "Settings"
    now: bool
    delete_untagged: bool
    copy: Path | None = None

    async def backlog(self) -> "Backlog":
        """Return what there is to do."""
        async with self._open() as collector:
            return await collector.backlog()

    async def collect(self) -> _Outcome:
        """Search, and collect."""
        from lading.upkeep.collection import Report  # noqa: PLC0415 - heavy: `lading --version` is quick without

        items: list[Removed] = []
        with Bar() as bar:
            report = Report(tell=items.append, begin=bar.begin, step=bar.advance)
            async with self._open() as collector:
                if self.now:
                    await collector.hurry()
                await collector.search(report)
                await collector.collect(report)
                return _Outcome(report, items, await collector.backlog())

    def _open(self) -> "contextlib.AbstractAsyncContextManager[Collector]":
        from lading.app import open_collector  # noqa: PLC0415 - see `collect`

        return open_collector(self.settings, self._policy(), copy=self.copy)

    def _policy(self) -> "Policy":
        from lading.app import retention  # noqa: PLC0415 - see `collect`
        from lading.metadata.garbage import Retention  # noqa: PLC0415
        from lading.upkeep.collection import Policy  # noqa: PLC0415

        kept = retention(self.settings)
        if self.now:
            kept = Retention(lease_us=kept.lease_us, undo_us=0, delay_us=0)
        return Policy(kept, self.delete_untagged or self.settings.collection.delete_untagged, rest=_REST)


def _ask(there: "Backlog", *, yes: bool) -> None:
    confirm(
        f"{there.deleted_manifests} deleted manifests and {there.past_moves} past moves of tags could be brought back, "
        f"and {there.waiting_objects} files wait for their day. Remove all of that for good now?",
        yes=yes,
    )


@contextlib.contextmanager
def _copy(data: Path) -> Iterator[Path]:
    """Copy the database to where temporary files go; collecting there shows exactly what would go here."""
    from lading.metadata import snapshots  # noqa: PLC0415 - see `_Run.collect`
    from lading.metadata.schema import REVISION  # noqa: PLC0415
    from lading.upkeep import adoption  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="lading-") as folder, adoption.looked_into(data) as connection:
        yield snapshots.take(connection, Path(folder), REVISION, snapshots.Kind.REGULAR)


@contextlib.contextmanager
def _turn(data: Path) -> Iterator[None]:
    """Wait until no other process collects, and keep others from it."""
    from lading.upkeep.collection import collecting  # noqa: PLC0415 - see `_Run.collect`

    told = False
    while True:
        with collecting(data) as ours:
            if ours:
                yield
                return
        if not told:
            typer.echo("a collection is under way; waiting for its end", err=True)
            told = True
        time.sleep(_TURN_SECONDS)


def _document(outcome: _Outcome, *, dry_run: bool) -> str:
    report, left = outcome.report, outcome.left
    document = {
        "dry_run": dry_run,
        "removed": [
            {"what": what, "reason": reason, "count": count, "bytes": report.content_bytes[what, reason]}
            for (what, reason), count in sorted(report.counts.items())
        ],
        "freed_bytes": _freed(report),
        "waiting": {
            "blobs": {"count": left.waiting_blobs, "next": _moment(left.next_blob_us)},
            "objects": {"count": left.waiting_objects, "next": _moment(left.next_object_us)},
        },
        "items": [
            {
                "what": item.what,
                "reason": item.reason,
                "bytes": item.content_bytes,
                "repository": item.repository,
                "digest": item.digest and str(item.digest),
                "object": item.object_key,
            }
            for item in outcome.items
        ],
    }
    return json.dumps(document, indent=2)


def _lines(outcome: _Outcome, *, dry_run: bool) -> Iterator[str]:
    from rich import filesize  # noqa: PLC0415 - see `_Run.collect`

    report, left = outcome.report, outcome.left
    if dry_run:
        yield from (_item_line(item) for item in outcome.items if item.digest or item.object_key)
    for (what, reason), count in sorted(report.counts.items()):
        content_bytes = report.content_bytes[what, reason]
        size = filesize.decimal(content_bytes) if content_bytes else ""
        yield f"{count:>8} {what + ('s' if count != 1 else ''):<20} {size:>10}  {reason}".rstrip()
    if not report:
        yield "nothing to collect"
    yield f"{filesize.decimal(_freed(report))} {'would be freed' if dry_run else 'freed'}"
    if left.waiting_blobs:
        which = f"{left.waiting_blobs} blobs without a manifest were pushed or asked for lately, and are kept"
        yield f"{which} for one that may be on its way, the first until {_moment(left.next_blob_us)}"
    if left.waiting_objects:
        which = f"{left.waiting_objects} files are deleted when their delay is over"
        yield f"{which}, the first after {_moment(left.next_object_us)}"


def _item_line(item: "Removed") -> str:
    place = f"{item.repository}@{item.digest}" if item.repository else str(item.digest or item.object_key)
    return f"{item.what} {place}: {item.reason}"


def _freed(report: "Report") -> int:
    return sum(size for (what, _), size in report.content_bytes.items() if what == "object")


def _moment(at_us: int | None) -> str | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(timespec="seconds")
