"""The registry as plain HTTP shows it: the judge of what the clients say, and no client itself."""

import base64
import hashlib
import http.client
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, Self
from urllib.parse import urlencode

PIECE_BYTES = 1024 * 1024
GZIP_MAGIC = b"\x1f\x8b"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ALL_MANIFESTS = f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}"


class MismatchError(Exception):
    """What was found differs from what was expected."""


def digest_of(content: bytes) -> str:
    """Return the sha256 digest of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Held:
    """A manifest with its blobs, as one side holds it: the registry, or a client after a pull.

    `contents` has a digest for each layer, taken after decompression: clients compress as they like, but what they
    compress must stay the same byte for byte.
    """

    digest: str
    contents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body was read whole."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Summed:
    """The digests and the size of a stream of bytes, as it stands and after decompression."""

    digest: str
    content_digest: str
    size_bytes: int

    @classmethod
    def of(cls, pieces: Iterable[bytes]) -> Self:
        """Read the stream to its end; gzip is known by its first bytes."""
        raw, content, size_bytes = hashlib.sha256(), hashlib.sha256(), 0
        gunzip: _Gunzip | None = None
        for piece in pieces:
            if size_bytes == 0 and piece.startswith(GZIP_MAGIC):
                gunzip = _Gunzip()
            raw.update(piece)
            size_bytes += len(piece)
            content.update(gunzip.feed(piece) if gunzip else piece)
        return cls(f"sha256:{raw.hexdigest()}", f"sha256:{content.hexdigest()}", size_bytes)

    @classmethod
    def of_file(cls, file: IO[bytes] | http.client.HTTPResponse) -> Self:
        """Read a file, or the body of an answer, from here to its end."""
        return cls.of(iter(lambda: file.read(PIECE_BYTES), b""))


class _Gunzip:
    """Decompresses a stream of several gzip members, as parallel compressors write them."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    def feed(self, piece: bytes) -> bytes:
        plain = self._member.decompress(piece)
        while rest := self._member.unused_data:
            self._member = zlib.decompressobj(wbits=31)
            plain += self._member.decompress(rest)
        return plain


class Registry:
    """A registry at HOST:PORT, spoken to without TLS, by a user with a password where it wants one."""

    def __init__(self, address: str, user: str = "", password: str = "") -> None:
        self.address = address
        said = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._credentials = {"Authorization": f"Basic {said}"} if user else {}

    def answer(self, method: str, path: str, body: bytes | None = None, content_type: str | None = None) -> Answer:
        """Send one request and read its whole answer; every status is an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            # Lading answers what is stored whatever is accepted; other registries hold back what is not named.
            headers = {"Accept": ALL_MANIFESTS, **self._credentials}
            if content_type:
                headers["Content-Type"] = content_type
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            read = response.read()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, read)
        finally:
            connection.close()

    def manifest(self, repository: str, tag_or_digest: str) -> Answer:
        """Return a manifest that is there, and whose digest and media type are what the answer says they are."""
        path = f"/v2/{repository}/manifests/{tag_or_digest}"
        answer = self.answer("GET", path)
        if answer.status != 200:
            raise MismatchError(f"GET {path} is {answer.status}: {answer.body[:300].decode(errors='replace')}")
        said = answer.headers.get("docker-content-digest")
        if said != digest_of(answer.body):
            raise MismatchError(f"GET {path} says {said}, but its bytes are {digest_of(answer.body)}")
        media_type = json.loads(answer.body).get("mediaType")
        if media_type not in {None, answer.headers.get("content-type")}:
            raise MismatchError(f"GET {path} answers {answer.headers.get('content-type')} to a {media_type}")
        return answer

    def held(self, repository: str, tag_or_digest: str) -> Held:
        """Read a manifest and all its blobs, and compare each with its descriptor."""
        body = self.manifest(repository, tag_or_digest).body
        manifest = json.loads(body)
        self.blob(repository, manifest["config"])
        layers = [self.blob(repository, descriptor) for descriptor in manifest["layers"]]
        return Held(digest_of(body), tuple(layer.content_digest for layer in layers))

    def blob(self, repository: str, descriptor: dict[str, Any]) -> Summed:
        """Read a blob and compare it with its descriptor."""
        path = f"/v2/{repository}/blobs/{descriptor['digest']}"
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request("GET", path, headers=self._credentials)
            response = connection.getresponse()
            if response.status != 200:
                raise MismatchError(f"GET {path} is {response.status}: {response.read(300).decode(errors='replace')}")
            summed = Summed.of_file(response)
        finally:
            connection.close()
        if (summed.digest, summed.size_bytes) != (descriptor["digest"], descriptor["size"]):
            raise MismatchError(f"GET {path}: descriptor {descriptor}, but the blob is {summed}")
        return summed

    def children(self, repository: str, tag_or_digest: str) -> dict[str, str]:
        """Return the digest of an index's child for each architecture."""
        index = json.loads(self.manifest(repository, tag_or_digest).body)
        return {child["platform"]["architecture"]: child["digest"] for child in index["manifests"]}

    def put_blob(self, repository: str, content: bytes) -> None:
        """Push a blob with one POST and one PUT."""
        started = self.answer("POST", f"/v2/{repository}/blobs/uploads/", b"")
        location = started.headers["location"].removeprefix(f"http://{self.address}")
        joint = "&" if "?" in location else "?"
        path = f"{location}{joint}{urlencode({'digest': digest_of(content)})}"
        put = self.answer("PUT", path, content, "application/octet-stream")
        if put.status != 201:
            raise MismatchError(f"PUT {path} is {put.status}: {put.body[:300].decode(errors='replace')}")

    def put_manifest(self, repository: str, tag: str, body: bytes, media_type: str) -> None:
        """Push a manifest under a tag."""
        path = f"/v2/{repository}/manifests/{tag}"
        put = self.answer("PUT", path, body, media_type)
        if put.status != 201:
            raise MismatchError(f"PUT {path} is {put.status}: {put.body[:300].decode(errors='replace')}")
