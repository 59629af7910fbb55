"""The manual says what the code does."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer

from lading.cli.main import app
from lading.logs.journal import FIELDS
from lading.metrics import FAMILIES, Counters, Family, Gauge, Histogram
from lading.oci import errors
from lading.oci.errors import RegistryError
from lading.oci.manifest import MAX_DEPTH, MAX_MANIFEST_BYTES, MAX_REFERENCES
from lading.oci.names import MAX_NAME_CHARACTERS
from lading.oci.ranges import MAX_RANGES
from lading.settings import Setting, catalog, load
from lading.upkeep.findings import KINDS
from lading.web import http_head, middleware
from lading.web.bodies import IDLE_SECONDS
from lading.web.metrics import BUILD, FREE_BYTES, OPEN_UPLOADS
from lading.web.middleware import SEND_SECONDS
from lading.web.v2.routes import Route, routes

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
SETTINGS_PAGE = REFERENCE / "settings.md"
HTTP_PAGE = REFERENCE / "http.md"
CLI_PAGE = REFERENCE / "cli.md"
METRICS_PAGE = REFERENCE / "metrics.md"
LOGS_PAGE = REFERENCE / "logs.md"


def test_every_setting_is_in_the_manual_with_its_variable_and_default() -> None:
    """A setting that nobody can look up is not one; a default that changed in the code only is a lie."""
    rows = [line for line in SETTINGS_PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]

    assert rows == [_row(setting) for setting in catalog()]


def _row(setting: Setting) -> str:
    return f"| `{setting.path}` | `{setting.variable}` | `{setting.default}` | {setting.meaning} |"


def test_the_example_file_in_the_manual_is_valid(tmp_path: Path) -> None:
    """An example is what people copy."""
    _, _, rest = SETTINGS_PAGE.read_text("utf-8").partition("```yaml\n")
    file = tmp_path / "lading.yaml"
    file.write_text(rest.partition("```")[0])

    settings = load(file, {}, environ={})

    assert (settings.data, settings.http.port, settings.uploads.ttl_seconds) == (Path("/srv/registry"), 5001, 86400)


def test_every_metric_is_in_the_manual_with_its_type_labels_and_meaning() -> None:
    """A dashboard is made from the page; a metric that was renamed in the code only is a flat line."""
    rows = [line for line in METRICS_PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    looked_at = [f"| `{name}` | gauge |  | {meaning} |" for name, meaning in (OPEN_UPLOADS, FREE_BYTES)]

    assert rows == [
        *map(_metric_row, FAMILIES),
        *looked_at,
        f"| `{BUILD[0]}` | gauge | `version`, `python` | {BUILD[1]} |",
    ]


def _metric_row(family: Family) -> str:
    kind = {Counters: "counter", Histogram: "histogram", Gauge: "gauge"}[type(family)]
    labels = "" if isinstance(family, Gauge) else ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {kind} | {labels} | {family.meaning} |"


def test_every_field_of_the_journal_is_in_the_manual() -> None:
    """Who asks the journal has to know what for."""
    named = {name for row in table_under("## The journal", LOGS_PAGE) for name in re.findall("`([A-Z_]+)`", row)}

    assert named == {"MESSAGE", "PRIORITY", *FIELDS.values()}


def test_every_route_is_in_the_manual_with_its_methods_actions_and_spec_ids() -> None:
    """The page is what a client's author, and later an operator who writes access rules, holds beside the spec."""
    expected = [row for route in routes(max_page_entries=1).values() for row in _route_rows(route)]

    assert table_under("## Routes") == expected


def _route_rows(route: Route) -> Iterator[str]:
    for method, endpoint in route.methods.items():
        yield f"| `{method}` | `{route.path}` | {endpoint.action.value} | {endpoint.spec} |"


def test_every_error_is_in_the_manual_with_its_status_and_code() -> None:
    """A client's author has to know what an answer means before meeting it."""
    expected = [_error_row(kind) for kind in _answers(RegistryError)]

    assert table_under("## Errors") == expected


def _answers(kind: type[RegistryError]) -> Iterator[type[RegistryError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _answers(child)


def _error_row(kind: type[RegistryError]) -> str:
    assert kind.__doc__, f"{kind.__name__} is not documented"
    return f"| {kind.status} | `{kind.code}` | {kind.__name__} | {kind.__doc__.splitlines()[0]} |"


def test_the_limits_in_the_manual_are_those_of_the_code() -> None:
    """A limit that moved in the code only is met in the middle of somebody's push."""
    expected = {
        "manifest": f"{MAX_MANIFEST_BYTES // 2**20} MiB",
        "nesting of a manifest": f"{MAX_DEPTH} levels",
        "references of a manifest": str(MAX_REFERENCES),
        "request target, path and query": f"{http_head.MAX_TARGET_BYTES // 1024} KiB",
        "header fields together": f"{http_head.MAX_HEADERS_BYTES // 1024} KiB",
        "number of header fields": str(middleware.MAX_HEADER_FIELDS),
        "repository name": f"{MAX_NAME_CHARACTERS} characters",
        "ranges of one `Range`": str(MAX_RANGES),
        "wait for the next piece of a body": f"{IDLE_SECONDS:g} s",
        "wait for a client to take the next piece": f"{SEND_SECONDS:g} s",
    }

    said = {cells[1]: cells[2] for cells in (re.split(r" ?\| ?", row) for row in table_under("## Limits"))}

    assert expected.items() <= said.items()


def test_every_command_and_option_is_in_the_manual() -> None:
    """What `--help` names, the manual explains."""
    page = CLI_PAGE.read_text("utf-8")

    missing = [name for name in _spoken(typer.main.get_command(app), "lading") if f"`{name}`" not in page]

    assert not missing


def _spoken(command: object, name: str) -> Iterator[str]:
    """Yield every command's full name, and the options of each."""
    yield name
    for parameter in getattr(command, "params", ()):
        yield from parameter.opts
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _spoken(child, f"{name} {child_name}")


def test_everything_that_verify_finds_is_in_the_manual_with_what_heals_it() -> None:
    """Who meets a code word at night looks it up there."""
    rows = [re.split(r" ?\| ?", row)[1:5] for row in table_under("### What it finds", CLI_PAGE)]

    assert [(code, severity, heals) for code, severity, _, heals in rows] == [
        (f"`{code}`", kind.severity.value, kind.heals) for code, kind in KINDS.items()
    ]


def table_under(heading: str, page: Path = HTTP_PAGE) -> list[str]:
    """Return the rows of the first table after a heading of a page, without the table's head."""
    _, found, rest = page.read_text("utf-8").partition(f"{heading}\n")
    assert found, f"no heading {heading!r}"
    lines = rest.partition("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| ")][1:]
