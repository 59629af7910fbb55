"""The state machine: every call of the API, right and wrong, to both workers in turn; each reply as the model says.

A step is a request or a few; hypothesis chooses steps and arguments, and shrinks what fails to a short program. The
names in that program are those of `pushable.SIZES`, `REPOSITORIES` and `TAGS`.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal
from urllib.parse import quote, urlencode

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, initialize, multiple, rule

from tests.capability.content import digest_of
from tests.capability.repository import with_digest
from tests.model.expected import Expected
from tests.model.model import DIGEST_INVALID, UPLOAD_UNKNOWN, Model, Repository, Span, Upload
from tests.model.pushable import SIZES, Manifest, contents_of
from tests.model.workers import Workers
from tests.wire import Reply

# Names that prefix one another, and one that holds a word of the API's own paths.
REPOSITORIES = ("a", "a-b", "a/blobs")
# In place of a repository: one that holds what the step is about, where there is one. Chance would seldom meet it.
WHERE_IT_IS = "where it is"
TAGS = ("0", "A", "a", "a-b", "a.b", "latest")
ARTIFACT_TYPES = ("application/vnd.example.sbom", "application/vnd.example.signature")
MALFORMED = "sha256:abc"
UNSUPPORTED = "md5:d41d8cd98f00b204e9800998ecf8427e"

repositories = st.sampled_from(REPOSITORIES)
places = st.just(WHERE_IT_IS) | repositories
contents = st.sampled_from(tuple(SIZES))
algorithms = st.sampled_from(("sha256", "sha256", "sha256", "sha512"))
tags = st.sampled_from(TAGS)
maybe_tag = st.sampled_from((None, *TAGS))
reading = st.sampled_from(("GET", "HEAD"))
page_sizes = st.sampled_from((1, 1, 2, 3))
# By chance alone a step would seldom meet what is there.
held_blobs = st.runner().flatmap(lambda machine: st.sampled_from(machine.blobs_held()))
held_tags = st.runner().flatmap(lambda machine: st.sampled_from(machine.tags_held()))
blobs = held_blobs | held_blobs | st.tuples(repositories, contents, algorithms)
named_tags = held_tags | held_tags | st.tuples(repositories, tags)

# A blob by its repository, its content and the algorithm of its digest; a tag by its repository and its name.
Blob = tuple[str, str, str]
NamedTag = tuple[str, str]
WrongDigest = Literal["another's", "malformed", "unsupported", "none"]
Claim = Literal["none", "right", "too early", "too late", "too long", "unreadable"]
claims = st.sampled_from(("none", "none", "right", "right", "too early", "too late", "too long", "unreadable"))


def _spans_of(size: int) -> st.SearchStrategy[list[Span]]:
    """Return ranges around both ends of a blob, and past any file."""
    offset = st.sampled_from(sorted({0, 1, 5, max(size - 2, 0), max(size - 1, 0), size, size + 1, 10**20}))
    closed = st.tuples(offset, offset)
    ordered = closed.map(lambda ends: (min(ends), max(ends)))
    span = ordered | ordered | closed | st.tuples(offset, st.none()) | st.tuples(st.none(), offset)
    return st.lists(span, min_size=1, max_size=3)


class ApiMachine(RuleBasedStateMachine):
    """One example: fresh repositories and contents on a server that lives longer."""

    uploads: Bundle[Upload] = Bundle("uploads")
    manifests: Bundle[Manifest] = Bundle("manifests")

    _examples = itertools.count()

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        # Later examples have later names: in the catalog, nothing stands behind the names of this one.
        self._example = f"e{next(self._examples):08}"
        self._workers = workers
        self._model = Model()
        self._contents = contents_of(self._example)
        self._subjects: dict[str, None] = {}
        self._by_digest = {digest_of(content): content for content in self._contents.values()}

    def _name(self, repository: str) -> str:
        return f"{self._example}/{repository}"

    def blobs_held(self) -> list[Blob]:
        """Return what the repositories hold; the empty content in the first one, where they hold nothing."""
        held = [
            (repository, content, algorithm)
            for repository in REPOSITORIES
            for content in SIZES
            for algorithm in ("sha256", "sha512")
            if digest_of(self._contents[content], algorithm) in self._model.repository(self._name(repository)).blobs
        ]
        return held or [(REPOSITORIES[0], "empty", "sha256")]

    def tags_held(self) -> list[NamedTag]:
        """Return the tags that are set; the last one of the first repository, where none is."""
        held = [(each, tag) for each in REPOSITORIES for tag in sorted(self._model.repository(self._name(each)).tags)]
        return held or [(REPOSITORIES[0], TAGS[-1])]

    def _named(self, blob: Blob) -> tuple[str, str]:
        """Return the repository's whole name and the digest."""
        repository, content, algorithm = blob
        return self._name(repository), digest_of(self._contents[content], algorithm)

    def _place_of(self, repository: str, manifest: Manifest, algorithm: str) -> tuple[str, str]:
        """Return the name of a repository and the digest; where it is, that by which it is there."""
        digest = manifest.digest(algorithm)
        if repository == WHERE_IT_IS:
            for name in map(self._name, REPOSITORIES):
                for held, pushed in self._model.repository(name).manifests.items():
                    if pushed is manifest:
                        return name, held
        return self._name_where(repository, lambda _: False), digest

    def _name_where(self, repository: str, holds: Callable[[Repository], bool]) -> str:
        if repository != WHERE_IT_IS:
            return self._name(repository)
        holding = [name for name in map(self._name, REPOSITORIES) if holds(self._model.repository(name))]
        return holding[0] if holding else self._name(REPOSITORIES[0])

    def _send(
        self,
        expected: Expected,
        method: str,
        target: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        chunked: bool = False,
    ) -> Reply:
        reply = self._workers.request(method, target, headers=headers or {}, body=body, chunked=chunked)
        expected.check(reply)
        return reply

    @initialize(
        target=manifests,
        images=st.lists(st.tuples(repositories, st.lists(contents, max_size=2), maybe_tag, st.booleans()), max_size=5),
    )
    def begin(self, images: list[tuple[str, list[str], str | None, bool]]) -> MultipleResults[Manifest]:
        """Begin with images, each by its repository, its layers, its tag, and whether it has a referrer."""
        pushed = []
        for repository, layers, tag, has_referrer in images:
            chosen = [self._contents[layer] for layer in layers]
            image = Manifest.image(self._example, config=self._contents["tiny"], layers=chosen)
            pushed.append(self._pushed(repository, image, tag, prepared=True))
            if has_referrer:
                kind, layer = ARTIFACT_TYPES[0], self._contents["small"]
                referrer = Manifest.artifact(self._example, layer=layer, artifact_type=kind, subject=image, notes=1)
                pushed.append(self._pushed(repository, referrer, None, prepared=True))
        return multiple(*pushed)

    # Blobs

    @rule(
        target=uploads,
        repository=repositories,
        content=contents,
        algorithm=algorithms,
        chunked=st.booleans(),
        without_body=st.sampled_from((False, False, False, True)),
    )
    def push_blob(
        self, *, repository: str, content: str, algorithm: str, chunked: bool, without_body: bool
    ) -> Upload | MultipleResults[Upload]:
        """Push a blob with one POST. Without a body that starts a session, unless the blob is the empty one."""
        name, body = self._name(repository), self._contents[content]
        digest = digest_of(body, algorithm)
        target = f"/v2/{name}/blobs/uploads/?digest={digest}"
        if without_body and body:
            return self._started(name, content, target)
        self._send(self._model.put_blob(name, body, digest), "POST", target, body=body, chunked=chunked)
        return multiple()

    @rule(repository=repositories, content=contents, wrong=st.sampled_from(("another's", "malformed", "unsupported")))
    def push_blob_wrongly(self, repository: str, content: str, wrong: WrongDigest) -> None:
        """Push a blob with one POST and a digest that is not its own; nothing may come of it."""
        target = f"/v2/{self._name(repository)}/blobs/uploads/?digest={self._wrong(wrong)}"
        self._send(DIGEST_INVALID, "POST", target, body=self._contents[content] or b"x")

    @rule(
        asked=blobs.flatmap(lambda blob: st.tuples(st.just(blob), _spans_of(SIZES[blob[1]]))),
        method=st.sampled_from(("GET", "GET", "HEAD")),
        how=st.sampled_from((*["ranges"] * 6, "whole", "known", "If-Range", "items=0-1", "bytes=1-2,")),
    )
    def read_blob(self, asked: tuple[Blob, list[Span]], method: str, how: str) -> None:
        """Read a blob: ranges of it, or all in spite of a Range that cannot be read, or does not count any more."""
        (name, digest), spans = self._named(asked[0]), asked[1]
        headers = {
            "ranges": {"Range": _range_of(spans)},
            "whole": {},
            "known": {"If-None-Match": f'"{digest}"'},
            "If-Range": {"Range": _range_of(spans), "If-Range": '"sha256:another"'},
        }.get(how, {"Range": how})
        obeyed = spans if how == "ranges" and method == "GET" else []
        expected = self._model.read_blob(name, digest, spans=obeyed, known=how == "known")
        self._send(expected, method, f"/v2/{name}/blobs/{digest}", headers=headers)

    @rule(
        target=uploads,
        repository=repositories,
        blob=blobs,
        source=st.sampled_from(("given", "given", "none", "nobody's", "No Name")),
    )
    def mount_blob(self, repository: str, blob: Blob, source: str) -> Upload | MultipleResults[Upload]:
        """Mount a blob, read it where it was mounted; a source that has none, or is none, gives a session instead."""
        content = blob[1]
        name, (home, digest) = self._name(repository), self._named(blob)
        query = {"mount": digest}
        # The empty blob has the same digest in all examples: any repository would do, which the model does not know.
        if source != "none" or content == "empty":
            query["from"] = home if source in {"given", "none"} else self._name(source)
        target = f"/v2/{name}/blobs/uploads/?{urlencode(query)}"
        expected = self._model.mount(name, digest, query.get("from"))
        if expected is None:
            return self._started(name, content, target)
        self._send(expected, "POST", target, body=b"")
        self._send(self._model.read_blob(name, digest), "GET", f"/v2/{name}/blobs/{digest}")
        return multiple()

    @rule(blob=blobs)
    def delete_blob(self, blob: Blob) -> None:
        """Delete a blob, which a manifest may hold."""
        name, digest = self._named(blob)
        self._send(self._model.delete_blob(name, digest), "DELETE", f"/v2/{name}/blobs/{digest}")

    # Upload sessions

    @rule(
        target=uploads,
        repository=repositories,
        content=contents,
        query=st.sampled_from(("", "digest-algorithm=sha512")),
    )
    def start_upload(self, repository: str, content: str, query: str) -> Upload:
        """Start a session for a content."""
        name = self._name(repository)
        return self._started(name, content, f"/v2/{name}/blobs/uploads/?{query}")

    @rule(
        upload=uploads, size=st.sampled_from((0, 1, 11, 12, 299, 16_384, 32_768)), claim=claims, chunked=st.booleans()
    )
    def append(self, upload: Upload, size: int, claim: Claim, *, chunked: bool) -> None:
        """PATCH with the next bytes of the content, with or without a Content-Range that may be wrong."""
        sent = upload.content[upload.offset : upload.offset + size]
        claimed, headers = _claimed(upload, sent, claim)
        expected = self._model.append(upload, sent, claimed)
        self._send(expected, "PATCH", upload.location, headers=headers, body=sent, chunked=chunked)
        # Some clients ask with what an earlier PUT has left in the location.
        self._send(self._model.status(upload), "GET", f"{upload.location}?digest={MALFORMED}")

    @rule(upload=uploads, claim=claims, algorithm=algorithms, chunked=st.booleans())
    def finish(self, upload: Upload, claim: Claim, algorithm: str, *, chunked: bool) -> None:
        """PUT with the rest of the content and its digest; read the blob when it is accepted."""
        sent, digest = upload.content[upload.offset :], digest_of(upload.content, algorithm)
        claimed, headers = _claimed(upload, sent, claim)
        expected = self._model.finish(upload, sent, claimed, digest)
        target = with_digest(upload.location, quote(digest, safe=""))
        self._send(expected, "PUT", target, headers=headers, body=sent, chunked=chunked)
        self._send(self._model.status(upload), "GET", upload.location)
        blob = f"/v2/{upload.repository}/blobs/{digest}"
        self._send(self._model.read_blob(upload.repository, digest), "GET", blob)

    @rule(
        upload=uploads,
        claim=claims,
        wrong=st.sampled_from(("another's", "malformed", "unsupported", "none")),
        chunked=st.booleans(),
    )
    def finish_wrongly(self, upload: Upload, claim: Claim, wrong: WrongDigest, *, chunked: bool) -> None:
        """PUT with a wrong digest, which ends the session, or with one that is none, which does not."""
        sent = upload.content[upload.offset :]
        claimed, headers = _claimed(upload, sent, claim)
        target = upload.location if wrong == "none" else with_digest(upload.location, self._wrong(wrong))
        expected = DIGEST_INVALID
        if wrong == "another's":
            expected = self._model.fail(upload, sent, claimed)
        elif wrong == "none" and upload.ended:
            expected = UPLOAD_UNKNOWN
        self._send(expected, "PUT", target, headers=headers, body=sent, chunked=chunked)
        self._send(self._model.status(upload), "GET", upload.location)

    @rule(upload=uploads, repository=repositories, method=st.sampled_from(("GET", "PATCH", "PUT", "DELETE")))
    def use_upload_elsewhere(self, upload: Upload, repository: str, method: str) -> None:
        """Use a session in a repository that is not its own: there it is unknown, and stays as it was."""
        name = self._name(repository)
        if name == upload.repository:
            name = self._name("nobody")
        target = with_digest(f"/v2/{name}/blobs/uploads/{upload.id}", digest_of(upload.content))
        body = None if method in {"GET", "DELETE"} else upload.content
        self._send(UPLOAD_UNKNOWN, method, target, body=body)
        self._send(self._model.status(upload), "GET", upload.location)

    @rule(upload=consumes(uploads))
    def cancel_upload(self, upload: Upload) -> None:
        """DELETE a session; a second time there is none."""
        self._send(self._model.cancel(upload), "DELETE", upload.location)
        self._send(self._model.cancel(upload), "DELETE", upload.location)

    # Manifests and tags

    @rule(
        target=manifests,
        repository=repositories,
        config=contents,
        layers=st.lists(contents, max_size=3),
        kind=st.sampled_from(("oci", "docker", "foreign")),
        tag=maybe_tag,
        prepared=st.sampled_from((True, True, False)),
    )
    def push_image(
        self, *, repository: str, config: str, layers: list[str], kind: str, tag: str | None, prepared: bool
    ) -> Manifest:
        """Push an image, with the blobs it needs or without them; the last layer of one kind need not be there."""
        chosen, body = [self._contents[layer] for layer in layers], self._contents[config]
        if kind == "docker":
            image = Manifest.docker_image(self._example, config=body, layers=chosen)
        else:
            foreign = chosen[-1:] if kind == "foreign" else []
            kept = chosen[: len(chosen) - len(foreign)]
            image = Manifest.image(self._example, config=body, layers=kept, foreign=foreign)
        return self._pushed(repository, image, tag, prepared=prepared)

    @rule(
        target=manifests,
        repository=repositories,
        layer=contents,
        artifact_type=st.none() | st.sampled_from(ARTIFACT_TYPES),
        subject=st.none() | manifests | manifests,
        notes=st.integers(0, 2),
        tag=maybe_tag,
    )
    def push_artifact(
        self,
        *,
        repository: str,
        layer: str,
        artifact_type: str | None,
        subject: Manifest | None,
        notes: int,
        tag: str | None,
    ) -> Manifest:
        """Push an artifact, with a subject that need not be in this repository, or anywhere."""
        artifact = Manifest.artifact(
            self._example, layer=self._contents[layer], artifact_type=artifact_type, subject=subject, notes=notes
        )
        return self._pushed(repository, artifact, tag, prepared=True)

    @rule(
        target=manifests,
        repository=repositories,
        children=st.lists(manifests, max_size=3),
        blobs=st.lists(contents, max_size=1),
        subject=st.none() | st.none() | manifests,
        tag=maybe_tag,
        prepared=st.sampled_from((True, True, False)),
    )
    def push_index(
        self,
        *,
        repository: str,
        children: list[Manifest],
        blobs: list[str],
        subject: Manifest | None,
        tag: str | None,
        prepared: bool,
    ) -> Manifest:
        """Push an index, with its children or without them."""
        listed = [self._contents[blob] for blob in blobs]
        index = Manifest.index(self._example, children=children, blobs=listed, subject=subject)
        return self._pushed(repository, index, tag, prepared=prepared)

    @rule(
        repository=repositories,
        manifest=manifests,
        algorithm=algorithms,
        named=st.lists(tags, max_size=3, unique=True),
    )
    def put_manifest_by_digest(self, repository: str, manifest: Manifest, algorithm: str, named: list[str]) -> None:
        """PUT a manifest by its digest, with tags in the query."""
        name, digest = self._name(repository), manifest.digest(algorithm)
        expected = self._model.put_manifest(name, manifest, digest, named)
        query = urlencode([("tag", tag) for tag in named])
        reply = self._put(expected, f"{name}/manifests/{digest}?{query}", manifest)
        assert reply.all("OCI-Tag") == (named if reply.status == 201 else []), f"expected {named} as OCI-Tag\n{reply}"

    @rule(repository=repositories, manifest=manifests, tag=tags, hint=st.sampled_from(("", "sha256", "sha512")))
    def put_manifest_by_tag(self, repository: str, manifest: Manifest, tag: str, hint: str) -> None:
        """PUT a manifest by a tag, which then moves if it was another's; a digest in the query says which algorithm."""
        name, digest = self._name(repository), manifest.digest(hint or "sha256")
        expected = self._model.put_manifest(name, manifest, digest, [tag])
        query = f"?digest={digest}" if hint else ""
        self._put(expected, f"{name}/manifests/{tag}{query}", manifest)

    @rule(
        repository=repositories,
        manifest=manifests,
        tag=tags,
        wrong=st.sampled_from(("digest", "hint", "type", "cut short", "tag", "another tag")),
    )
    def put_manifest_wrongly(self, repository: str, manifest: Manifest, tag: str, wrong: str) -> None:
        """PUT a manifest with one thing wrong about it; nothing may come of it."""
        other, digest = self._wrong("another's"), manifest.digest()
        target, body, code = {
            "digest": (other, manifest.body, "DIGEST_INVALID"),
            "hint": (f"{tag}?digest={other}", manifest.body, "DIGEST_INVALID"),
            "type": (tag, manifest.body, "MANIFEST_INVALID"),
            "cut short": (tag, manifest.body[:-1], "MANIFEST_INVALID"),
            "tag": (f".{tag}", manifest.body, "TAG_INVALID"),
            "another tag": (f"{digest}?tag={tag}&tag=-{tag}", manifest.body, "TAG_INVALID"),
        }[wrong]
        media_type = "application/vnd.example.other+json" if wrong == "type" else manifest.media_type
        path = f"/v2/{self._name(repository)}/manifests/{target}"
        self._send(Expected(400, code=code), "PUT", path, headers={"Content-Type": media_type}, body=body)

    @rule(repository=places, manifest=manifests, algorithm=algorithms, method=reading, known=st.booleans())
    def read_manifest(self, repository: str, manifest: Manifest, algorithm: str, method: str, *, known: bool) -> None:
        """Read a manifest by its digest."""
        name, digest = self._place_of(repository, manifest, algorithm)
        headers = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        headers |= {"If-None-Match": f'"{digest}"'} if known else {}
        expected = self._model.read_manifest(name, digest, known=known)
        self._send(expected, method, f"/v2/{name}/manifests/{digest}", headers=headers)

    @rule(named=named_tags, method=reading)
    def read_tag(self, named: NamedTag, method: str) -> None:
        """Read a manifest by a tag."""
        name, tag = self._name(named[0]), named[1]
        self._send(self._model.read_manifest(name, tag), method, f"/v2/{name}/manifests/{tag}")

    @rule(named=named_tags, entries=page_sizes)
    def delete_tag(self, named: NamedTag, entries: int) -> None:
        """Delete a tag; the manifest and its other tags stay."""
        name, tag = self._name(named[0]), named[1]
        self._send(self._model.delete_tag(name, tag), "DELETE", f"/v2/{name}/manifests/{tag}")
        self._compare_tags(name, entries)

    @rule(repository=places, manifest=manifests, algorithm=algorithms, entries=page_sizes)
    def delete_manifest(self, repository: str, manifest: Manifest, algorithm: str, entries: int) -> None:
        """Delete a manifest by its digest, and with it the tags that name it, and its place among the referrers."""
        name, digest = self._place_of(repository, manifest, algorithm)
        self._send(self._model.delete_manifest(name, digest), "DELETE", f"/v2/{name}/manifests/{digest}")
        self._compare_tags(name, entries)
        if manifest.subject:
            self._compare_referrers(name, manifest.subject, [])

    # Lists

    @rule(
        repository=places,
        method=reading,
        entries=st.none() | st.integers(0, 4),
        last=st.none() | st.sampled_from((*TAGS, "", "Z", "zz")),
    )
    def list_tags(self, repository: str, method: str, entries: int | None, last: str | None) -> None:
        """List a page of tags."""
        name = self._name_where(repository, lambda held: len(held.tags) > 1)
        expected = self._model.list_tags(name, entries, last)
        self._send(expected, method, f"/v2/{name}/tags/list?{_paging(entries, last)}")

    @rule(method=reading, entries=st.integers(0, 4), last=repositories | st.sampled_from(("", "a0", "z")))
    def list_repositories(self, method: str, entries: int, last: str) -> None:
        """List a page of the catalog, from this example's repositories on."""
        expected = self._model.catalog(entries, self._name(last))
        self._send(expected, method, f"/v2/_catalog?{_paging(entries, self._name(last))}")

    @rule(repository=places, subject=manifests, types=st.lists(st.sampled_from(ARTIFACT_TYPES), max_size=2))
    def list_referrers(self, repository: str, subject: Manifest, types: list[str]) -> None:
        """List the referrers of a manifest, all or some types of them."""
        digest = subject.digest()
        name = self._name_where(repository, lambda held: any(m.subject == digest for m in held.manifests.values()))
        self._compare_referrers(name, digest, types)

    # What is not to be had

    @rule(
        repository=repositories,
        case=st.sampled_from(
            (
                ("GET", "/blobs/{malformed}", 400, "DIGEST_INVALID"),
                ("HEAD", "/blobs/{unsupported}", 400, "DIGEST_INVALID"),
                ("DELETE", "/blobs/{malformed}", 400, "DIGEST_INVALID"),
                ("GET", "/manifests/{malformed}", 400, "DIGEST_INVALID"),
                ("DELETE", "/manifests/{malformed}", 400, "DIGEST_INVALID"),
                ("GET", "/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
                ("GET", "/referrers/{malformed}", 400, "DIGEST_INVALID"),
                ("POST", "/blobs/uploads/?mount={malformed}", 400, "DIGEST_INVALID"),
                ("POST", "/blobs/uploads/?digest-algorithm=md5", 400, "DIGEST_INVALID"),
                ("GET", "/blobs/uploads/00000000-0000-4000-8000-000000000000", 404, "BLOB_UPLOAD_UNKNOWN"),
                ("GET", "/blobs/uploads/..", 404, "BLOB_UPLOAD_UNKNOWN"),
                ("GET", "/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
                ("GET", "/tags/list?n=1.5", 400, "PAGINATION_NUMBER_INVALID"),
                ("GET", "/tags/listing", 404, "NAME_UNKNOWN"),
                ("POST", "/manifests/latest", 405, "UNSUPPORTED"),
                ("PUT", "/tags/list", 405, "UNSUPPORTED"),
                ("GET", "___b/tags/list", 400, "NAME_INVALID"),
                ("PUT", "/-b/manifests/latest", 400, "NAME_INVALID"),
                ("POST", "/B/blobs/uploads/", 400, "NAME_INVALID"),
                ("GET", "//tags/list", 400, "NAME_INVALID"),
                ("GET", "%2Fb/tags/list", 400, "NAME_INVALID"),
            )
        ),
    )
    def ask_for_what_is_not(self, repository: str, case: tuple[str, str, int, str]) -> None:
        """Send a request that is wrong whatever the registry holds."""
        method, tail, status, code = case
        target = f"/v2/{self._name(repository)}{tail.format(malformed=MALFORMED, unsupported=UNSUPPORTED)}"
        body = b"" if method in {"POST", "PUT"} else None
        self._send(Expected(status, code=code), method, target, body=body)

    # Everything at once

    @rule(repository=places, entries=page_sizes)
    def compare_repository(self, repository: str, entries: int) -> None:
        """Compare all that a repository holds, and does not hold, with the model."""
        name = self._name_where(repository, lambda held: bool(held.blobs))
        self._compare_tags(name, entries)
        held = self._model.repository(name)
        for content in self._contents.values():
            digest = digest_of(content)
            self._send(self._model.read_blob(name, digest), "HEAD", f"/v2/{name}/blobs/{digest}")
            if digest in held.blobs and len(content) > 1:
                first_half: list[Span] = [(0, len(content) // 2 - 1)]
                expected = self._model.read_blob(name, digest, spans=first_half)
                headers = {"Range": _range_of(first_half)}
                self._send(expected, "GET", f"/v2/{name}/blobs/{digest}", headers=headers)
        for tag_or_digest in (*held.manifests, *held.tags):
            expected = self._model.read_manifest(name, tag_or_digest)
            self._send(expected, "GET", f"/v2/{name}/manifests/{tag_or_digest}")
        for subject in self._subjects:
            self._compare_referrers(name, subject, [])

    # How it is done

    def _started(self, name: str, content: str, target: str) -> Upload:
        upload = Upload(name, self._contents[content])
        expected = Expected(202, {"Range": "0-0", "Docker-Content-Digest": None})
        reply = self._send(expected, "POST", target, body=b"")
        upload.id = reply["Docker-Upload-UUID"]
        reply.expect(202, {"Location": upload.location})
        return upload

    def _pushed(self, repository: str, manifest: Manifest, tag: str | None, *, prepared: bool) -> Manifest:
        name = self._name(repository)
        if manifest.subject:
            self._subjects[manifest.subject] = None
        if prepared:
            self._bring(name, manifest)
        expected = self._model.put_manifest(name, manifest, manifest.digest(), [tag] if tag else [])
        self._put(expected, f"{name}/manifests/{tag or manifest.digest()}", manifest)
        return manifest

    def _bring(self, name: str, manifest: Manifest) -> None:
        """Push what a manifest needs and the repository lacks."""
        lacking = self._model.missing(name, manifest)
        for child in manifest.children:
            if child.digest() in lacking and child.digest() not in self._model.repository(name).manifests:
                self._bring(name, child)
                expected = self._model.put_manifest(name, child, child.digest())
                self._put(expected, f"{name}/manifests/{child.digest()}", child)
        for digest in dict.fromkeys(lacking):
            if digest in self._by_digest:
                content = self._by_digest[digest]
                target = f"/v2/{name}/blobs/uploads/?digest={digest}"
                self._send(self._model.put_blob(name, content, digest), "POST", target, body=content)

    def _put(self, expected: Expected, path: str, manifest: Manifest) -> Reply:
        headers = {"Content-Type": manifest.media_type}
        return self._send(expected, "PUT", f"/v2/{path}", headers=headers, body=manifest.body)

    def _compare_tags(self, name: str, entries: int) -> None:
        """Compare all tags, in pages of `entries`."""
        last = None
        while True:
            expected = self._model.list_tags(name, entries, last)
            self._send(expected, "GET", f"/v2/{name}/tags/list?{_paging(entries, last)}")
            if not expected.headers.get("Link") or expected.document is None:
                return
            last = expected.document["tags"][-1]

    def _compare_referrers(self, name: str, subject: str, types: Sequence[str]) -> None:
        query = urlencode([("artifactType", each) for each in types])
        expected = self._model.referrers(name, subject, types)
        self._send(expected, "GET", f"/v2/{name}/referrers/{subject}?{query}")

    def _wrong(self, how: WrongDigest) -> str:
        return {
            "malformed": MALFORMED,
            "unsupported": UNSUPPORTED,
        }.get(how, digest_of(f"{self._example} another".encode()))


def _range_of(spans: Sequence[Span]) -> str:
    """Return the Range header that asks for them."""
    texts = [["" if end is None else str(end) for end in span] for span in spans]
    return "bytes=" + ",".join("-".join(text) for text in texts)


def _paging(entries: int | None, last: str | None) -> str:
    given = {"n": entries, "last": last}
    return urlencode({name: value for name, value in given.items() if value is not None})


def _claimed(upload: Upload, sent: bytes, claim: Claim) -> tuple[tuple[int, int] | None, dict[str, str]]:
    """Return the first and last byte that a Content-Range claims, and the header; of no bytes there is no range."""
    if claim == "none" or not sent:
        return None, {}
    if claim == "unreadable":
        return (-1, -1), {"Content-Range": "bytes"}
    shift = {"too early": -1, "too late": 1}.get(claim, 0)
    first = max(upload.offset + shift, 0)
    last = first + len(sent) - 1 + (claim == "too long")
    return (first, last), {"Content-Range": f"{first}-{last}"}
