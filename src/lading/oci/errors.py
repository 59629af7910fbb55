"""Every error of Lading, on one page.

    LadingError
    |-- StartRefused                     the server will not start: a sentence, and what to do
    |   |-- SettingsInvalid  PortUnavailable  DataDirectoryInUse  DataDirectoryUnusable  DiskFull
    |   |-- DatabaseUnusable  SchemaTooNew  StoreMismatch  CertificateUnusable  UsersUnusable  LogUnusable  Exposed
    |   |-- CommandRefused                 no server: a command cannot do what it was asked
    |   `-- VerifyRefused  ScrubStopped    no server: nothing that it could look at, or it could not go on
    |-- ClientGone                       the client left in the middle of its request: no reply is possible
    `-- RegistryError                    answered over HTTP with `status` and the OCI envelope
        |-- BlobUnknown  UploadUnknown  ManifestUnknown  NameUnknown  RouteUnknown          404
        |-- NameInvalid  TagInvalid  DigestInvalid (DigestUnsupported)  DigestMismatch  PageSizeInvalid  400
        |-- UploadInvalid  SizeInvalid  ManifestInvalid  ManifestBlobUnknown  RequestInvalid  400
        |-- Unauthorized 401  Denied 403
        |-- MethodNotAllowed  DeleteDisabled  BlobInUse  ManifestInUse  Superseded          405
        |-- BodyTimeout 408  BodyTooLarge 413  TargetTooLong 414  TooManyUploads 429  HeadersTooLarge 431
        |-- TooManyLogins                                                                   429
        |-- RangeUnsatisfiable  ChunkOutOfOrder                                             416
        `-- Internal (SyncFailed) 500  Busy  StoreUnavailable 503  StorageFull 507

Codes and statuses live here and nowhere else. Code names: distribution-spec "Error Codes", and the Docker additions.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

MAX_NAMED = 100
"""How many digests one error names."""


class LadingError(Exception):
    """The root of everything Lading raises on purpose."""


class StartRefused(LadingError):
    """The server will not start. `message` says why in a sentence, `hint` what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsInvalid(StartRefused):
    """A setting is missing, unknown or wrong; the message names its path and where it was read."""

    exit_code = 2


class PortUnavailable(StartRefused):
    """The address cannot be bound: taken by another program, or not ours to take."""


class CertificateUnusable(StartRefused):
    """TLS cannot be spoken: the certificate or its key is missing, unreadable, or they do not belong together."""


class DataDirectoryInUse(StartRefused):
    """Another server holds the lock of this data directory."""


class DataDirectoryUnusable(StartRefused):
    """The data directory cannot be made, read or written."""


class DiskFull(StartRefused):
    """There is no room to start: the database could not be written."""


class DatabaseUnusable(StartRefused):
    """The database or its library cannot be trusted with committed writes."""


class SchemaTooNew(StartRefused):
    """The database was written by a newer Lading."""


class StoreMismatch(StartRefused):
    """The objects on disk and the database do not belong together (E1)."""


class VerifyRefused(StartRefused):
    """`lading verify` cannot look at the data directory; exit code 1 would say that it found damage."""

    exit_code = 2


class ScrubStopped(StartRefused):
    """A scrub cannot look, or go on; exit code 1 would say that it found damage."""

    exit_code = 2


class UsersUnusable(StartRefused):
    """The file of users cannot be read, or a line of it is no user with a bcrypt hash."""


class LogUnusable(StartRefused):
    """A log file that the settings name cannot be made or written."""


class Exposed(StartRefused):
    """Without authentication, nothing beyond this machine may reach the server, unless that was said on purpose."""


class CommandRefused(StartRefused):
    """A command was asked for what cannot be done here, or was not allowed to do it."""


class ClientGone(LadingError):
    """The client closed its connection before its request was whole."""


class RegistryError(LadingError):
    """An answer that is an error: `status`, `code`, `message`, `detail` (any JSON) and extra reply `headers`."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"
    message: ClassVar[str] = "something went wrong"

    def __init__(self, message: str = "", *, detail: object = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message or self.message)
        self.detail = detail
        self.headers: Mapping[str, str] = headers or {}


class BlobUnknown(RegistryError):
    """The repository has no such blob."""

    status, code, message = 404, "BLOB_UNKNOWN", "this repository has no such blob"


class UploadUnknown(RegistryError):
    """No such upload session here: never started, expired, finished, cancelled, or of another repository."""

    status, code, message = 404, "BLOB_UPLOAD_UNKNOWN", "no such upload session; start a new one with POST"


class ManifestUnknown(RegistryError):
    """The repository has no such tag or manifest."""

    status, code, message = 404, "MANIFEST_UNKNOWN", "this repository has no such manifest"


class NameUnknown(RegistryError):
    """No such repository."""

    status, code, message = 404, "NAME_UNKNOWN", "no such repository"


class RouteUnknown(RegistryError):
    """The path is none of the API's."""

    status, code, message = 404, "NAME_UNKNOWN", "this path is not part of the registry API"


class NameInvalid(RegistryError):
    """A repository name outside the grammar of the specification."""

    status, code, message = 400, "NAME_INVALID", "not a valid repository name"


class TagInvalid(RegistryError):
    """A tag outside the grammar of the specification, on a write."""

    status, code, message = 400, "TAG_INVALID", "not a valid tag"


class DigestInvalid(RegistryError):
    """A digest that is malformed, missing, or of an algorithm we do not store."""

    status, code, message = 400, "DIGEST_INVALID", "not a valid digest"


class DigestMismatch(RegistryError):
    """The content received does not have the digest the client gave."""

    status, code, message = 400, "DIGEST_INVALID", "the content does not match the digest"


class PageSizeInvalid(RegistryError):
    """`n` is not a non-negative integer."""

    status, code, message = 400, "PAGINATION_NUMBER_INVALID", "n must be a non-negative integer"


class UploadInvalid(RegistryError):
    """The upload request contradicts itself or asks for what we do not offer."""

    status, code, message = 400, "BLOB_UPLOAD_INVALID", "the upload request is not valid"


class SizeInvalid(RegistryError):
    """The body's length disagrees with what its headers say."""

    status, code, message = 400, "SIZE_INVALID", "the body is not as long as its headers say"


class ManifestInvalid(RegistryError):
    """The manifest breaks a rule of the image specification."""

    status, code, message = 400, "MANIFEST_INVALID", "the manifest is not valid"


class ManifestBlobUnknown(RegistryError):
    """A manifest refers to blobs or manifests that the repository does not have; `detail` lists their digests."""

    status, code, message = 400, "MANIFEST_BLOB_UNKNOWN", "the manifest refers to content this repository does not have"

    def __init__(self, digests: Sequence[str]) -> None:
        named = digests[:MAX_NAMED]
        more = f" and {len(digests) - MAX_NAMED} more" if len(digests) > MAX_NAMED else ""
        super().__init__(f"{self.message}: {', '.join(named)}{more}", detail=[{"digest": digest} for digest in named])


class RequestInvalid(RegistryError):
    """The request is not one a client of the specification would send."""

    status, code, message = 400, "UNSUPPORTED", "the request is not valid"


class DigestUnsupported(DigestInvalid):
    """A digest as the grammar has it, of an algorithm we do not store."""


class Unauthorized(RegistryError):
    """Credentials are missing or do not suffice; `challenge` becomes WWW-Authenticate."""

    status, code, message = 401, "UNAUTHORIZED", "authentication required"

    def __init__(self, challenge: str, message: str = "") -> None:
        super().__init__(message, headers={"WWW-Authenticate": challenge})


class Denied(RegistryError):
    """The caller is known, and may never do this."""

    status, code, message = 403, "DENIED", "access to this is denied"


class MethodNotAllowed(RegistryError):
    """The route exists, the method does not."""

    status, code, message = 405, "UNSUPPORTED", "this method is not supported here"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(headers={"Allow": ", ".join(allowed)})


class DeleteDisabled(RegistryError):
    """Deleting is switched off by `deletes.enabled`."""

    status, code, message = 405, "UNSUPPORTED", "deleting is disabled on this registry (setting deletes.enabled)"

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(headers={"Allow": ", ".join(allowed)})


class BlobInUse(RegistryError):
    """Manifests of the repository still refer to the blob; `detail` lists their digests."""

    status, code, message = (
        405,
        "UNSUPPORTED",
        "manifests of this repository still refer to the blob; delete them first",
    )

    def __init__(self, manifests: Sequence[str]) -> None:
        super().__init__(
            detail=[{"manifest": digest} for digest in manifests],
            headers={"Allow": "GET, HEAD"},
        )


class ManifestInUse(RegistryError):
    """Indexes of the repository list the manifest, and `deletes.index_children` is off; `detail` has their digests."""

    status, code, message = (
        405,
        "UNSUPPORTED",
        "indexes of this repository list the manifest; delete them first (setting deletes.index_children)",
    )

    def __init__(self, indexes: Sequence[str]) -> None:
        super().__init__(
            detail=[{"manifest": digest} for digest in indexes],
            headers={"Allow": "GET, HEAD, PUT"},
        )


class Superseded(RegistryError):
    """Another database has taken over the store: this one is only read (storage identity, epoch)."""

    status, code, message = 405, "UNSUPPORTED", "this registry is read-only: another one has taken over its storage"

    def __init__(self) -> None:
        super().__init__(headers={"Allow": "GET, HEAD"})


class BodyTimeout(RegistryError):
    """The client stopped sending in the middle of its body."""

    status, code, message = 408, "UNKNOWN", "the request body stalled; continue the upload from its current offset"


class BodyTooLarge(RegistryError):
    """The body is over the limit for what it is."""

    status, code, message = 413, "SIZE_INVALID", "the content is too large"


class TargetTooLong(RegistryError):
    """The request target is over the limit."""

    status, code, message = 414, "UNSUPPORTED", "the request target is too long"


class HeadersTooLarge(RegistryError):
    """The header fields are over the limit."""

    status, code, message = 431, "UNSUPPORTED", "the request headers are too large"


class TooManyLogins(RegistryError):
    """More passwords wait to be checked than can be in time."""

    status, code, message = 429, "TOOMANYREQUESTS", "too many logins at once; try again"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class RangeUnsatisfiable(RegistryError):
    """No byte of the blob is in the range asked for."""

    status, code, message = 416, "RANGE_INVALID", "the range is outside the blob"

    def __init__(self, blob_bytes: int) -> None:
        super().__init__(headers={"Content-Range": f"bytes */{blob_bytes}"})


class ChunkOutOfOrder(RegistryError):
    """The chunk does not begin where the session ends; the headers tell the client where to go on."""

    status, code, message = 416, "RANGE_INVALID", "the chunk does not begin at the session's offset"

    def __init__(self, headers: Mapping[str, str], message: str = "") -> None:
        super().__init__(message, headers=headers)


class TooManyUploads(RegistryError):
    """More unfinished uploads than a setting allows, by number or by bytes; those that are open go on."""

    status, code, message = 429, "TOOMANYREQUESTS", "too many uploads are unfinished; try again later"

    def __init__(self, message: str = "") -> None:
        super().__init__(message, headers={"Retry-After": "30"})


class Internal(RegistryError):
    """A fault of ours; the log has the story under the request id."""

    status, code, message = 500, "UNKNOWN", "an internal error; the server's log tells more under this request id"


class SyncFailed(Internal):
    """The disk would not make the content durable. What the kernel still shows of it is not to be believed."""

    message = "the disk failed to store the content; the upload session is dropped, push again"


class Busy(RegistryError):
    """The registry cannot say just now, mostly as the database did not answer in time; try again."""

    status, code, message = 503, "UNAVAILABLE", "the registry is busy; try again"

    def __init__(self, message: str = "") -> None:
        super().__init__(message, headers={"Retry-After": "1"})


class StoreUnavailable(RegistryError):
    """What lies where the objects were is not this registry's store: nothing is said of it, nothing put into it."""

    status, code, message = (
        503,
        "UNAVAILABLE",
        "the registry's storage is not there; nothing is stored until it is back",
    )

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "5"})


class StorageFull(RegistryError):
    """The disk is full, or has less room than `storage.min_free_bytes`; reads and deletes go on."""

    status, code, message = (
        507,
        "UNAVAILABLE",
        "the registry's disk is full; pulls and deletes go on. Its operator has to make room on it; then push again",
    )
