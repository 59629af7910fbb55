"""Every setting of Lading, on one page: what it is called, what it may be, what it is without anybody's word."""

import os
import unicodedata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

MAX_DEFAULT_WORKERS = 4


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
