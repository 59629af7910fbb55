"""`lading usage`: what takes room, what goes by itself, and what a deletion would free."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lading.cli.offline import DataOption, JsonOption, reading, settings_of_registry
from lading.cli.serve import ConfigOption
from lading.cli.terminal import columns, until_nobody_reads
from lading.oci.names import Tag, parse_repository_name

if TYPE_CHECKING:
    from lading.metadata.usage import RepositoryUsage, TagUsage
    from lading.upkeep.usage import Deletion, Survey, Usage

_REPOSITORY_HEAD = (
    "REPOSITORY", "SIZE", "EXCLUSIVE", "SHARED", "UNDO", "RECLAIMABLE", "MANIFESTS", "TAGS", "PULLS", "LAST PULL"
)  # fmt: skip
_TAG_HEAD = ("TAG", "SIZE", "EXCLUSIVE", "PULLS", "LAST PULL", "DIGEST")


def usage(
    repository: Annotated[str | None, typer.Argument(metavar="REPO", help="One repository, tag by tag.")] = None,
    if_deleted: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="What frees if this tag is deleted; may be given again, for all together."),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what takes room on the disk, by repository or by tag, what goes by itself, and what a deletion would free.

    It only reads. A server may run meanwhile.
    """
    from rich.console import Console  # noqa: PLC0415 - heavy: `lading --version` is quick without

    from lading.metadata.garbage import Retention  # noqa: PLC0415
    from lading.metadata.times import SECOND_US, now_us  # noqa: PLC0415
    from lading.upkeep.usage import Usage  # noqa: PLC0415

    if if_deleted and repository is None:
        raise typer.BadParameter("name the repository before --if-deleted")
    name = None if repository is None else parse_repository_name(repository)
    tags = list(dict.fromkeys(Tag.parse(tag).name for tag in if_deleted or ()))
    settings = settings_of_registry(config, data)
    kept = settings.collection
    retention = Retention(undo_us=round(kept.undo_seconds * SECOND_US), delay_us=round(kept.delay_seconds * SECOND_US))
    with reading(settings.data) as database, until_nobody_reads():
        asked = Usage(database, settings.data, retention, at_us=now_us())
        with Console(stderr=True).status("adding up ..."):
            document, lines = _answer(asked, name, tags)
        if as_json:
            typer.echo(json.dumps(document, indent=2))
        else:
            for line in lines:
                typer.echo(line)


def _answer(asked: "Usage", name: str | None, tags: Sequence[str]) -> tuple[dict[str, object], Iterator[str]]:
    if name is None:
        survey = asked.survey()
        return _survey_document(survey), _survey_lines(survey)
    if tags:
        deletion = asked.if_deleted(name, tags)
        return _deletion_document(name, tags, deletion), _deletion_lines(name, tags, deletion)
    row, of_tags = asked.repository(name)
    return {**_repository_row(row), "by_tag": [_tag_row(tag) for tag in of_tags]}, _tag_lines(row, of_tags)


def _survey_document(survey: "Survey") -> dict[str, object]:
    totals, doomed = survey.totals, survey.doomed
    return {
        "bytes": totals.content_bytes,
        "live_bytes": totals.live_bytes,
        "undo_bytes": totals.undo_bytes,
        "reclaimable_bytes": totals.reclaimable_bytes,
        "leased_bytes": totals.leased_bytes,
        "leased_until": _time(totals.leased_until_us),
        "doomed": {
            "objects": doomed.objects,
            "bytes": doomed.content_bytes,
            "within_an_hour": {"objects": doomed.hour_objects, "bytes": doomed.hour_bytes},
            "last_at": _time(doomed.last_us),
        },
        "held": survey.held_reason,
        "database_bytes": survey.database_bytes,
        "uploads_bytes": survey.uploads_bytes,
        "snapshots_bytes": survey.snapshots_bytes,
        "quarantine_bytes": survey.quarantine_bytes,
        "repositories": [_repository_row(row) for row in survey.repositories],
    }


def _repository_row(row: "RepositoryUsage") -> dict[str, object]:
    return {
        "repository": row.name,
        "deleted": row.deleted,
        "bytes": row.content_bytes,
        "exclusive_bytes": row.exclusive_bytes,
        "shared_bytes": row.content_bytes - row.exclusive_bytes,
        "live_bytes": row.content_bytes - row.undo_bytes - row.reclaimable_bytes,
        "undo_bytes": row.undo_bytes,
        "reclaimable_bytes": row.reclaimable_bytes,
        "manifests": row.manifests,
        "tags": row.tags,
        "pulls": row.pulls,
        "last_pull": _time(row.last_pull_us),
    }


def _tag_row(tag: "TagUsage") -> dict[str, object]:
    return {
        "tag": tag.name,
        "digest": str(tag.digest),
        "bytes": tag.content_bytes,
        "exclusive_bytes": tag.exclusive_bytes,
        "pulls": tag.pulls,
        "last_pull": _time(tag.last_pull_us),
    }


def _deletion_document(name: str, tags: Sequence[str], deletion: "Deletion") -> dict[str, object]:
    return {
        "repository": name,
        "tags": list(tags),
        "manifests": [str(digest) for digest in deletion.freed.manifests],
        "bytes": deletion.freed.content_bytes,
        "at": _time(deletion.at_us),
        "held": deletion.held_reason,
    }


def _survey_lines(survey: "Survey") -> Iterator[str]:
    yield from _table(_REPOSITORY_HEAD, [_repository_cells(row) for row in survey.repositories])
    totals, doomed = survey.totals, survey.doomed
    yield ""
    yield (
        f"blobs: {_size(totals.content_bytes)}, of them {_size(totals.live_bytes)} live,"
        f" {_size(totals.undo_bytes)} in the undo window, {_size(totals.reclaimable_bytes)} reclaimable"
    )
    if totals.leased_bytes:
        until = _moment(totals.leased_until_us)
        yield f"reclaimable: {_size(totals.leased_bytes)} are kept for manifests to come, until {until} at most"
    yield (
        f"waiting to be deleted: {_size(doomed.content_bytes)} in {doomed.objects} files,"
        f" {_size(doomed.hour_bytes)} in {doomed.hour_objects} of them within the hour"
        + (f", the last at {_moment(doomed.last_us)}" if doomed.last_us is not None else "")
    )
    yield from _held(survey.held_reason)
    yield (
        f"besides: database {_size(survey.database_bytes)}, open uploads {_size(survey.uploads_bytes)},"
        f" snapshots {_size(survey.snapshots_bytes)}, quarantine {_size(survey.quarantine_bytes)}"
    )


def _repository_cells(row: "RepositoryUsage") -> tuple[str, ...]:
    shared = row.content_bytes - row.exclusive_bytes
    sizes = (row.content_bytes, row.exclusive_bytes, shared, row.undo_bytes, row.reclaimable_bytes)
    name = f"{row.name} (deleted)" if row.deleted else row.name
    numbers = (str(row.manifests), str(row.tags), str(row.pulls))
    return (name, *map(_size, sizes), *numbers, _day(row.last_pull_us))


def _tag_lines(row: "RepositoryUsage", of_tags: Sequence["TagUsage"]) -> Iterator[str]:
    yield from _table(_REPOSITORY_HEAD, [_repository_cells(row)])
    yield ""
    cells = [
        (
            tag.name,
            _size(tag.content_bytes),
            _size(tag.exclusive_bytes),
            str(tag.pulls),
            _day(tag.last_pull_us),
            str(tag.digest),
        )
        for tag in of_tags
    ]
    yield from _table(_TAG_HEAD, cells) if cells else ("no tags",)


def _deletion_lines(name: str, tags: Sequence[str], deletion: "Deletion") -> Iterator[str]:
    freed = deletion.freed
    what = f"{', '.join(tags)} of {name}"
    if not freed.manifests:
        yield f"deleting {what} frees nothing: other tags or indexes name the same manifests"
        return
    yield f"deleting {what} and these {len(freed.manifests)} manifests:"
    yield from (f"  {digest}" for digest in freed.manifests)
    if freed.content_bytes:
        yield f"frees {_size(freed.content_bytes)}, at {_moment(deletion.at_us)} if it is done now"
        yield from _held(deletion.held_reason)
    else:
        yield "frees nothing: other manifests need the same blobs"


def _held(reason: str | None) -> Iterator[str]:
    if reason is not None:
        yield f"nothing is removed from the store: {reason} (lading store acknowledge)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a table: a terminal gets what fits its width, a pipe one line for each row."""
    from rich import box  # noqa: PLC0415 - see `usage`
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        yield columns([head, *rows])
        return
    grid = Table(box=box.SIMPLE_HEAD)
    for name in head:
        is_text = name in {"REPOSITORY", "TAG", "DIGEST"}
        grid.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        grid.add_row(*row)
    with console.capture() as shown:
        console.print(grid)
    yield shown.get().rstrip()


def _size(content_bytes: int) -> str:
    from rich import filesize  # noqa: PLC0415 - see `usage`

    return filesize.decimal(content_bytes)


def _moment(at_us: int | None) -> str:
    from lading.metadata import times  # noqa: PLC0415 - see `usage`

    return "never" if at_us is None else times.to_second(at_us)


def _time(at_us: int | None) -> str | None:
    from lading.metadata import times  # noqa: PLC0415 - see `usage`

    return None if at_us is None else times.text(at_us)


def _day(at_us: int | None) -> str:
    return _moment(at_us).partition("T")[0]
