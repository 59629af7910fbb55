"""Every setting of Lading, on one page, and how they are read: once, from a file, LADING_* variables and flags."""

import difflib
import json
import os
import re
import typing
import unicodedata
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lading.oci.errors import SettingsInvalid

DEFAULT_FILE = Path("lading.yaml")
DEFAULT_SOURCE = "default"
VARIABLE_PREFIX = "LADING_"
# Read by the scripts of Lading's developers, never by the program.
FOREIGN_VARIABLES = frozenset({"LADING_TOOLS", "LADING_FULL", "LADING_SEED"})
# Kubernetes gives every container such variables for each service of its namespace, one named `lading` too.
SERVICE_LINK = re.compile(r"LADING(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_[A-Z]+(_[A-Z]+)?)")
SERVICE_LINK_ADDRESS = re.compile(r"LADING(_[A-Z0-9]+)*_PORT=(tcp|udp|sctp)://.*")
MAX_DEFAULT_WORKERS = 4
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


def default_workers() -> int:
    """Return one worker for each core this process may run on, at most four."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_WORKERS)


def _beside_a_certificate(value: Path | None, info: ValidationInfo) -> Path | None:
    """Refuse a key without a certificate, and the other way round."""
    if "tls_certificate" in info.data and (value is None) != (info.data["tls_certificate"] is None):
        raise ValueError("both http.tls_certificate and http.tls_key, or neither")
    return value


def _beside_users(value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - called so by pydantic
    """Refuse to let strangers read where nobody can log in: then they can write, too."""
    if value and info.data.get("htpasswd") is None:
        raise ValueError("auth.htpasswd beside it, as without users everybody may do everything")
    return value


def _beside_another_format(value: Path | None, info: ValidationInfo) -> Path | None:
    """Refuse what would be written to two places."""
    if value is not None and info.data.get("format") == "journal":
        raise ValueError("log.file, or log.format journal, or log.access_file beside the journal")
    return value


def _without_controls(value: str | Path) -> str | Path:
    """Refuse what neither a path nor a host name can hold."""
    if any(unicodedata.category(character) == "Cc" for character in str(value)):
        raise ValueError("text without control characters")
    return value


class Section(BaseModel):
    """A group of settings: frozen, closed to unknown names, and `5000` is a number while `"5000"` is not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Http(Section):
    """Where and how the server listens."""

    host: Annotated[str, AfterValidator(_without_controls)] = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address or host name to listen on. `::` listens on every address, IPv4 and IPv6.",
    )
    port: int = Field(default=5000, ge=0, le=65535, description="Port to listen on. 0 picks a free one.")
    workers: int = Field(
        default_factory=default_workers,
        ge=1,
        le=1024,
        description="Processes that answer requests.",
        json_schema_extra={"default": "one per core, at most 4"},
    )
    grace_seconds: int = Field(
        default=30, ge=0, description="How long requests in flight may go on when the server is told to stop."
    )
    tls_certificate: Annotated[Path, AfterValidator(_without_controls)] | None = Field(
        default=None,
        strict=False,
        description="PEM file with the certificate and its chain: speak TLS. Read again when it changes.",
    )
    tls_key: Annotated[
        Annotated[Path, AfterValidator(_without_controls)] | None, AfterValidator(_beside_a_certificate)
    ] = Field(
        default=None,
        strict=False,
        validate_default=True,
        description="PEM file with the private key of `http.tls_certificate`, not encrypted.",
    )


class Auth(Section):
    """Who may do what."""

    htpasswd: Annotated[Path, AfterValidator(_without_controls)] | None = Field(
        default=None,
        strict=False,
        description="File of the users, who may do everything: `name:hash`, bcrypt only. Read again when it changes.",
    )
    anonymous_pull: Annotated[bool, AfterValidator(_beside_users)] = Field(
        default=False,
        description="Whether everybody may pull without a login; users push and delete.",
    )
    open: bool = Field(default=False, description="Listen beyond this machine although there is no `auth.htpasswd`.")


class Blobs(Section):
    """What a blob may be, and where it is kept."""

    max_bytes: int | None = Field(default=None, ge=1, description="Largest blob accepted. `null` is no limit.")
    inline_max_bytes: int = Field(
        default=16384,
        ge=0,
        le=1048576,
        description="Blobs up to this size are kept in the database, larger ones as files.",
    )


class Uploads(Section):
    """Upload sessions."""

    ttl_seconds: int = Field(
        default=604800, ge=1, description="An upload session ends this long after its start, finished or not."
    )
    max_sessions: int = Field(
        default=10000, ge=1, description="Most upload sessions open at the same time; more are refused with 429."
    )
    max_sessions_per_user: int | None = Field(
        default=None,
        ge=1,
        description="Most upload sessions that one user may have open, so that none can take them all. "
        "Without `auth.htpasswd` only `uploads.max_sessions` counts.",
        json_schema_extra={"default": "a fifth of uploads.max_sessions"},
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes that unfinished uploads may have together; more are refused with 429. "
        "`null` is no limit but `storage.min_free_bytes`.",
    )


class Storage(Section):
    """The disk of the data directory."""

    min_free_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Room that stays free: pushes are refused with 507 below it, pulls and deletes go on. "
        "A quarter of it more is held by the ballast, which deletes get when the disk is full.",
        json_schema_extra={"default": "64 MiB, or an eighth of a smaller disk"},
    )


class Manifests(Section):
    """What a manifest may be."""

    sparse_indexes: bool = Field(
        default=False, description="Accept indexes and manifests although the repository lacks content that they name."
    )


class Deletes(Section):
    """Deleting over the API."""

    enabled: bool = Field(default=True, description="Whether clients may delete tags, manifests and blobs.")
    index_children: bool = Field(
        default=True, description="Whether clients may delete a manifest that an index of its repository lists."
    )


class Collection(Section):
    """Collecting what nothing refers to any more, and how long it can be brought back before."""

    lease_seconds: float = Field(
        default=86400, ge=0, description="How long pushed content is kept for the manifest that will refer to it."
    )
    undo_seconds: float = Field(
        default=1209600,
        ge=0,
        description="How long deleted and overwritten tags and manifests are kept, and can be brought back.",
    )
    delay_seconds: float = Field(
        default=86400,
        ge=0,
        description="How long a file is kept after the database has forgotten it: "
        "an older copy of the database can still be restored so long.",
    )
    every_seconds: float = Field(default=60, gt=0, description="How often the server collects what is due.")
    delete_untagged: bool = Field(
        default=False,
        description="Whether manifests go, after `collection.undo_seconds`, that no tag and no index names "
        "and that refer to no manifest as their subject.",
    )


class Lists(Section):
    """Lists of tags and repositories."""

    max_page_entries: int = Field(default=10000, ge=1, description="Most entries of one page of a list.")


class Metrics(Section):
    """`/metrics`, which on the port of the registry is for this machine and for users only."""

    host: Annotated[str, AfterValidator(_without_controls)] = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address or host name of `metrics.port`. Whoever reaches it reads the metrics, and nothing else.",
    )
    port: int | None = Field(
        default=None, ge=1, le=65535, description="A port of its own for `/metrics`. `null` is none."
    )


class Snapshots(Section):
    """Copies of the database, beside it."""

    every_seconds: int = Field(
        default=86400,
        ge=0,
        description="How often the database is copied into `snapshots/` of the data directory. 0 never does.",
    )
    keep: int = Field(
        default=7,
        ge=1,
        description="How many of those copies are kept, and as many of those made before an upgrade.",
    )


class Scrub(Section):
    """Reading again what is stored, so that what a disk spoils is found before somebody pulls it."""

    every_seconds: int = Field(
        default=2592000,
        ge=0,
        description="How often all content is read again and hashed, in the background. 0 never does.",
    )
    max_bytes_per_second: int = Field(
        default=67108864, ge=1, description="How fast content is read for that, and by `lading scrub`."
    )


class Log(Section):
    """Where the server says what happens, and how."""

    format: Literal["auto", "console", "json", "journal"] = Field(
        default="auto",
        description="`console`, `json`, `journal` (systemd's, with its fields), or `auto`: the journal where systemd "
        "connects us to it, console on a terminal, else JSON lines.",
    )
    file: Annotated[
        Annotated[Path, AfterValidator(_without_controls)] | None, AfterValidator(_beside_another_format)
    ] = Field(
        default=None,
        strict=False,
        description="File that events and the access log are appended to, instead of standard output. "
        "Anything may rotate it.",
    )
    access_file: Annotated[Path, AfterValidator(_without_controls)] | None = Field(
        default=None, strict=False, description="File for the access log alone, wherever the events go."
    )


class Settings(Section):
    """All settings in force; nothing reads the environment or the file after these were made."""

    data: Annotated[Path, AfterValidator(_without_controls)] = Field(
        default=Path("data"),
        strict=False,
        description="Directory of everything the registry keeps. Made if it is missing.",
        json_schema_extra={"default": "./data"},
    )
    http: Http = Field(default_factory=Http)
    auth: Auth = Field(default_factory=Auth)
    blobs: Blobs = Field(default_factory=Blobs)
    uploads: Uploads = Field(default_factory=Uploads)
    storage: Storage = Field(default_factory=Storage)
    manifests: Manifests = Field(default_factory=Manifests)
    deletes: Deletes = Field(default_factory=Deletes)
    collection: Collection = Field(default_factory=Collection)
    lists: Lists = Field(default_factory=Lists)
    metrics: Metrics = Field(default_factory=Metrics)
    snapshots: Snapshots = Field(default_factory=Snapshots)
    scrub: Scrub = Field(default_factory=Scrub)
    log: Log = Field(default_factory=Log)

    def value(self, path: str) -> object:
        """Return the value of the setting `path`, such as `http.port`."""
        value: object = self
        for name in path.split("."):
            value = getattr(value, name)
        return value


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
