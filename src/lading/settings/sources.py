"""How the settings are read: once, from a file, LADING_* variables and flags, each with the place it came from."""

import difflib
import json
import os
import re
import typing
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lading.oci.errors import SettingsInvalid
from lading.settings.sections import Section, Settings

DEFAULT_FILE = Path("lading.yaml")
DEFAULT_SOURCE = "default"
VARIABLE_PREFIX = "LADING_"
# Read by the scripts of Lading's developers, never by the program.
FOREIGN_VARIABLES = frozenset({"LADING_TOOLS", "LADING_FULL", "LADING_SEED"})
# Kubernetes gives every container such variables for each service of its namespace, one named `lading` too.
SERVICE_LINK = re.compile(r"LADING(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_[A-Z]+(_[A-Z]+)?)")
SERVICE_LINK_ADDRESS = re.compile(r"LADING(_[A-Z0-9]+)*_PORT=(tcp|udp|sctp)://.*")
MAX_SHOWN_CHARACTERS = 60
# Pydantic's names of what can be wrong, in our words.
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "string_too_short": "text that is not empty",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the manual shows it."""

    path: str
    default: str
    meaning: str
    is_text: bool

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return VARIABLE_PREFIX + self.path.upper().replace(".", "__")


@dataclass(frozen=True, slots=True)
class Trace:
    """The settings in force, and for each path where its value was read: a file, a variable, a flag or `default`."""

    settings: Settings
    sources: Mapping[str, str]

    def value(self, path: str) -> object:
        """Return the value of the setting `path`."""
        return self.settings.value(path)


def catalog() -> tuple[Setting, ...]:
    """Return every setting, in the order of this page."""
    return tuple(_walk(Settings, ""))


def load(config: Path | None, overrides: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in force: `overrides` before variables before the file before the defaults.

    `config` is the file, or None for `./lading.yaml` if there is one. `overrides` maps paths such as `http.port` to
    values; None is a flag that was not given. A variable that is empty counts as not set.

    Raises:
        SettingsInvalid: one line of the message for each wrong or unknown setting.

    """
    return trace(config, overrides, environ=environ).settings


def trace(config: Path | None, overrides: Mapping[str, object], *, environ: Mapping[str, str] | None = None) -> Trace:
    """Do what `load` does, and tell for each setting where it was read.

    Raises:
        SettingsInvalid: as `load` does.

    """
    problems: list[str] = []
    known = {setting.path: setting for setting in catalog()}
    found = _from_file(config, known, problems)
    found |= _from_environment(os.environ if environ is None else environ, known, problems)
    found |= _from_flags(overrides)
    settings = _validated(found, problems)
    if settings is None or problems:
        raise SettingsInvalid("\n".join(problems), "docs/reference/settings.md lists every setting")
    return Trace(settings, {path: found[path].source if path in found else DEFAULT_SOURCE for path in known})


@dataclass(frozen=True, slots=True)
class _Found:
    """A value as it was read, before validation, and where."""

    value: object
    source: str


def _walk(section: type[Section], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", _default_text(field), field.description or "", _is_text(field))


def _default_text(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["default"]) if isinstance(extra, dict) else _shown(field.default).strip('"')


def _is_text(field: FieldInfo) -> bool:
    """Tell whether the value is a string; else a variable's text is read as the same text in the file would be."""
    return not {int, float, bool}.intersection(typing.get_args(field.annotation) or (field.annotation,))


def _from_file(config: Path | None, known: Mapping[str, Setting], problems: list[str]) -> dict[str, _Found]:
    path = config or DEFAULT_FILE
    if config is None and not path.exists():
        return {}
    try:
        document = yaml.load(path.read_text("utf-8"), Loader=_StrictLoader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        problems.append(f"{path}: cannot be read: {(error.strerror or 'unknown error').lower()}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text (byte {error.start})")
    except yaml.YAMLError as error:
        problems.append(f"{path}: is not valid YAML: {_yaml_problem(error)}")
    except RecursionError:
        problems.append(f"{path}: is not valid YAML: nested too deeply")
    else:
        return dict(_flattened(document, "", str(path), known, problems))
    return {}


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, where a key that comes twice is an error instead of a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:  # noqa: FBT001, FBT002 - the base's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{_shown(key.value)} comes twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error).splitlines()[0]
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"


def _flattened(
    node: object, prefix: str, source: str, known: Mapping[str, Setting], problems: list[str]
) -> Iterator[tuple[str, _Found]]:
    """Yield the settings of a section of the file; a section that is left empty sets nothing."""
    if node is None:
        return
    if not isinstance(node, dict):
        place = f"{prefix.rstrip('.')} ({source})" if prefix else source
        problems.append(f"{place}: found {_shown(node)}, wanted a section, `name: value` on each line")
        return
    for name, value in node.items():
        path = f"{prefix}{name}"
        if path in known:
            yield path, _Found(value, source)
        elif any(other.startswith(f"{path}.") for other in known):
            yield from _flattened(value, f"{path}.", source, known, problems)
        else:
            problems.append(f"{_plain(path)} ({source}): unknown setting{_suggestion(path, known)}")


def _from_environment(
    environ: Mapping[str, str], known: Mapping[str, Setting], problems: list[str]
) -> dict[str, _Found]:
    variables = {setting.variable: setting for setting in known.values()}
    found: dict[str, _Found] = {}
    for name, text in sorted(environ.items()):
        setting = variables.get(name)
        if setting is None and _is_foreign(name, text):
            continue
        if setting is None:
            problems.append(f"{_plain(name)} (environment): unknown setting{_suggestion(name, variables)}")
        elif text:
            found[setting.path] = _Found(text if setting.is_text else _scalar(text), name)
    return found


def _is_foreign(name: str, text: str) -> bool:
    """Tell whether a variable that names no setting is none of ours to judge."""
    return (
        not name.startswith(VARIABLE_PREFIX)
        or name in FOREIGN_VARIABLES
        or SERVICE_LINK.fullmatch(name) is not None
        or SERVICE_LINK_ADDRESS.fullmatch(f"{name}={text}") is not None
    )


def _scalar(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _from_flags(overrides: Mapping[str, object]) -> dict[str, _Found]:
    return {
        path: _Found(value, f"--{path.rpartition('.')[2].replace('_', '-')}")
        for path, value in overrides.items()
        if value is not None
    }


def _validated(found: Mapping[str, _Found], problems: list[str]) -> Settings | None:
    tree: dict[str, object] = {}
    for path, item in found.items():
        section, _, name = path.rpartition(".")
        branch = tree.setdefault(section, {}) if section else tree
        assert isinstance(branch, dict)
        branch[name] = item.value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            path = ".".join(map(str, detail["loc"]))
            item = found.get(path, _Found(None, DEFAULT_SOURCE))
            problems.append(f"{path} ({item.source}): found {_shown(item.value)}, wanted {_wanted(detail)}")
        return None


def _wanted(detail: ErrorDetails) -> str:
    wanted = _WANTED.get(detail["type"])
    if wanted is None:
        return detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return wanted.format_map(detail.get("ctx", {}))


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(value: object) -> str:
    """Return any value on one line, bounded, with control characters escaped."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _plain(text: str) -> str:
    return _shown(text)[1:-1]
