"""The registry as the specification has it, in memory: it foretells every reply, and holds what a server must hold.

It knows nothing of how the server works: no database, no files, no collection; only what was pushed, and is visible.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import quote

from tests.capability.content import OCI_INDEX, Json
from tests.model.expected import Expected, Part
from tests.model.pushable import Manifest

# The bytes `first` to `last` of a blob, both inclusive. Without a first: the last `last` bytes; without a last: to the
# end.
Span = tuple[int | None, int | None]


@dataclass(slots=True)
class Repository:
    """What one repository holds, by digest; tags name digests."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Upload:
    """A session: whose it is, what its client wants to push, and how much of that has arrived."""

    repository: str
    content: bytes
    id: str = ""
    offset: int = 0
    ended: bool = False

    @property
    def location(self) -> str:
        """Where the session is continued."""
        return f"/v2/{self.repository}/blobs/uploads/{self.id}"

    def headers(self) -> dict[str, str | None]:
        """Return what every answer about it carries."""
        last = max(self.offset - 1, 0)
        return {"Location": self.location, "Range": f"0-{last}", "Docker-Upload-UUID": self.id}


UPLOAD_UNKNOWN = Expected(404, code="BLOB_UPLOAD_UNKNOWN")
DIGEST_INVALID = Expected(400, code="DIGEST_INVALID")


class Model:
    """Each method foretells the reply to one request, and does to the state what the request does."""

    def __init__(self) -> None:
        self._repositories: dict[str, Repository] = {}

    def repository(self, name: str) -> Repository:
        """Return what a repository holds; nothing where there is none."""
        return self._repositories.get(name, Repository())

    # Blobs

    def read_blob(self, name: str, digest: str, *, spans: Sequence[Span] = (), known: bool = False) -> Expected:
        """GET and HEAD: the spans are those of a Range header that is to be obeyed; a known blob is not sent again."""
        content = self.repository(name).blobs.get(digest)
        if content is None:
            return Expected(404, code="BLOB_UNKNOWN")
        headers: dict[str, str | None] = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"', "Content-Range": None}
        if known:
            return Expected(304, headers)
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Content-Encoding": None}
        if not spans:
            return Expected(200, headers, content)
        return _ranged(headers, content, spans)

    def put_blob(self, name: str, content: bytes, digest: str) -> Expected:
        """POST with the whole blob, whose digest is the one given."""
        self._repositories.setdefault(name, Repository()).blobs[digest] = content
        return Expected(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def mount(self, name: str, digest: str, source: str | None) -> Expected | None:
        """POST with mount; None where the answer is a session: the source has no such blob, or none of them has."""
        sources = self._repositories if source is None else [source]
        holding = [each for each in sources if digest in self.repository(each).blobs]
        if not holding:
            return None
        return self.put_blob(name, self.repository(holding[0]).blobs[digest], digest)

    def delete_blob(self, name: str, digest: str) -> Expected:
        """Hide a blob, unless a manifest of the repository needs it."""
        repository = self.repository(name)
        if digest not in repository.blobs:
            return Expected(404, code="BLOB_UNKNOWN")
        holding = {key for key, each in repository.manifests.items() if digest in (*each.blobs, *each.foreign)}
        if holding:
            return Expected(405, {"Allow": "GET, HEAD"}, code="UNSUPPORTED", named=frozenset(holding))
        del repository.blobs[digest]
        return Expected(202)

    # Upload sessions

    def append(self, upload: Upload, sent: bytes, claimed: tuple[int, int] | None) -> Expected:
        """PATCH with `sent`; `claimed` are the first and last byte of its Content-Range."""
        refused = self._refused_part(upload, sent, claimed)
        if refused is not None:
            return refused
        upload.offset += len(sent)
        return Expected(202, upload.headers())

    def finish(self, upload: Upload, sent: bytes, claimed: tuple[int, int] | None, digest: str) -> Expected:
        """PUT with the last bytes and a digest in form; the content, when it is another, ends the session."""
        refused = self._refused_part(upload, sent, claimed)
        if refused is not None:
            return refused
        upload.ended = True
        return self.put_blob(upload.repository, upload.content, digest)

    def fail(self, upload: Upload, sent: bytes, claimed: tuple[int, int] | None) -> Expected:
        """PUT like `finish`, with the digest of some other content."""
        refused = self._refused_part(upload, sent, claimed)
        upload.ended = upload.ended or refused is None
        return refused or DIGEST_INVALID

    def status(self, upload: Upload) -> Expected:
        """GET."""
        return UPLOAD_UNKNOWN if upload.ended else Expected(204, upload.headers())

    def cancel(self, upload: Upload) -> Expected:
        """DELETE."""
        if upload.ended:
            return UPLOAD_UNKNOWN
        upload.ended = True
        return Expected(204)

    @staticmethod
    def _refused_part(upload: Upload, sent: bytes, claimed: tuple[int, int] | None) -> Expected | None:
        if upload.ended:
            return UPLOAD_UNKNOWN
        if claimed is not None and claimed[0] != upload.offset:
            return Expected(416, upload.headers(), code="RANGE_INVALID")
        if claimed is not None and claimed[1] - claimed[0] + 1 != len(sent):
            return Expected(400, code="SIZE_INVALID")
        return None

    # Manifests and tags

    def read_manifest(self, name: str, tag_or_digest: str, *, known: bool = False) -> Expected:
        """GET and HEAD by a tag or digest in form; a known manifest is not sent again."""
        repository = self.repository(name)
        digest = repository.tags.get(tag_or_digest, tag_or_digest)
        manifest = repository.manifests.get(digest)
        if manifest is None:
            return self._unknown(name)
        headers: dict[str, str | None] = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        if known:
            return Expected(304, headers)
        return Expected(200, headers | {"Content-Type": manifest.media_type}, manifest.body)

    def put_manifest(self, name: str, manifest: Manifest, digest: str, tags: Sequence[str] = ()) -> Expected:
        """PUT under its digest and any tags."""
        absent = self.missing(name, manifest)
        if absent:
            return Expected(400, code="MANIFEST_BLOB_UNKNOWN", named=frozenset(absent))
        repository = self._repositories.setdefault(name, Repository())
        repository.manifests[digest] = manifest
        repository.tags |= dict.fromkeys(tags, digest)
        return Expected(
            201,
            {
                "Location": f"/v2/{name}/manifests/{digest}",
                "Docker-Content-Digest": digest,
                "OCI-Subject": manifest.subject,
            },
        )

    def missing(self, name: str, manifest: Manifest) -> list[str]:
        """Return what the repository lacks of what the manifest names."""
        repository = self.repository(name)
        children = [child.digest() for child in manifest.children]
        return [
            *(digest for digest in manifest.blobs if digest not in repository.blobs),
            *(digest for digest in children if digest not in repository.manifests),
        ]

    def delete_tag(self, name: str, tag: str) -> Expected:
        """Remove a tag, and nothing else."""
        if self.repository(name).tags.pop(tag, None) is None:
            return self._unknown(name)
        return Expected(202)

    def delete_manifest(self, name: str, digest: str) -> Expected:
        """Hide a manifest, and remove the tags that name it."""
        repository = self.repository(name)
        if repository.manifests.pop(digest, None) is None:
            return self._unknown(name)
        repository.tags = {tag: named for tag, named in repository.tags.items() if named != digest}
        return Expected(202)

    def _unknown(self, name: str) -> Expected:
        return Expected(404, code="MANIFEST_UNKNOWN" if name in self._repositories else "NAME_UNKNOWN")

    # Lists

    def list_tags(self, name: str, entries: int | None, last: str | None) -> Expected:
        """Foretell a page of tags; None stands for a parameter that is not given."""
        if name not in self._repositories:
            return Expected(404, code="NAME_UNKNOWN")
        tags, headers = _page(f"/v2/{name}/tags/list", self.repository(name).tags, entries, last)
        return Expected(200, headers, document={"name": name, "tags": tags})

    def catalog(self, entries: int | None, last: str) -> Expected:
        """Foretell a page of the repositories that have a manifest."""
        named = [name for name, each in self._repositories.items() if each.manifests]
        names, headers = _page("/v2/_catalog", named, entries, last)
        return Expected(200, headers, document={"repositories": names})

    def referrers(self, name: str, subject: str, artifact_types: Sequence[str]) -> Expected:
        """Foretell the list of the manifests that name `subject`, of any of the types or of all."""
        listed = [
            manifest.described(digest)
            for digest, manifest in self.repository(name).manifests.items()
            if manifest.subject == subject and (not artifact_types or manifest.artifact_type in artifact_types)
        ]
        document: Json = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        filters = "artifactType" if artifact_types else None
        return Expected(200, {"Content-Type": OCI_INDEX, "OCI-Filters-Applied": filters}, document=document)


def _page(path: str, names: Iterable[str], entries: int | None, last: str | None) -> tuple[list[str], Json]:
    """Return the names after `last`, bytewise, up to `entries`, and the header that leads on where there are more."""
    following = sorted(name for name in names if name > (last or ""))
    page = following if entries is None else following[:entries]
    more = bool(page) and len(page) < len(following)
    link = f'<{path}?last={quote(page[-1], safe="")}&n={entries}>; rel="next"' if more else None
    return page, {"Content-Type": "application/json", "Link": link}


def _ranged(headers: dict[str, str | None], content: bytes, spans: Sequence[Span]) -> Expected:
    total = len(content)
    found: list[tuple[int, int]] = []
    for first, last in spans:
        if first is None:
            first, last = max(total - (last or 0), 0), None  # noqa: PLW2901 - a suffix, counted from the start
        end = total if last is None else min(last + 1, total)
        if first < end:
            found.append((first, end))
    if not found:
        return Expected(416, {"Content-Range": f"bytes */{total}"}, code="RANGE_INVALID")
    if any(later[0] < earlier[1] for earlier, later in pairwise(found)):
        return Expected(200, headers, content)
    if len(found) == 1:
        ((first, end),) = found
        return Expected(206, headers | {"Content-Range": f"bytes {first}-{end - 1}/{total}"}, content[first:end])
    several = {name: value for name, value in headers.items() if name != "Content-Type"}
    return Expected(206, several, parts=[Part(first, content[first:end]) for first, end in found], total=total)
