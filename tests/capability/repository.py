"""One repository of a running registry, and the steps that most tests begin with."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from tests.capability.content import OCI_INDEX, OCI_MANIFEST, Image, digest_of, encode, new_image
from tests.wire import Body, Headers, Reply, Wire


def new_name() -> str:
    """Return a valid name that no other test uses."""
    return f"test-{uuid.uuid4().hex}"


def with_digest(location: str, digest: str) -> str:
    """Add the digest to an upload's location, whether or not that has a query."""
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


@dataclass(frozen=True, slots=True)
class Repository:
    """The repository `name`; the steps assert that they succeed, `request` asserts nothing."""

    wire: Wire
    name: str
    headers: tuple[tuple[str, str], ...] = ()

    def url(self, tail: str) -> str:
        """Return the target of `tail` below this repository."""
        return f"/v2/{self.name}/{tail}"

    def request(
        self, method: str, tail: str, *, headers: Headers = (), body: Body | None = None, chunked: bool = False
    ) -> Reply:
        """Send one request to a target below this repository."""
        return self.send(method, self.url(tail), headers=headers, body=body, chunked=chunked)

    def send(
        self, method: str, target: str, *, headers: Headers = (), body: Body | None = None, chunked: bool = False
    ) -> Reply:
        """Send one request to any target, with this repository's own headers added."""
        fields = [*self.headers, *(headers.items() if isinstance(headers, dict) else headers)]
        return self.wire.request(method, target, headers=fields, body=body, chunked=chunked)

    def start_upload(self) -> str:
        """Start an upload session and return its location."""
        return self.request("POST", "blobs/uploads/", body=b"").expect(202)["Location"]

    def upload_range(self, location: str) -> str:
        """Return the Range that the session reports."""
        return self.send("GET", location).expect(204)["Range"]

    def push_blob(self, content: bytes, algorithm: str = "sha256") -> str:
        """Push a blob with POST and PUT, and return its digest."""
        digest = digest_of(content, algorithm)
        self.send("PUT", with_digest(self.start_upload(), digest), body=content).expect(201)
        return digest

    def push_blobs(self, image: Image) -> None:
        """Push everything an image's manifest names."""
        for content in (image.config, *image.layers):
            self.push_blob(content)

    def put_manifest(self, tag_or_digest: str, document: object, media_type: str | None = OCI_MANIFEST) -> Reply:
        """PUT a manifest, given as bytes or as a document; None sends no Content-Type."""
        body = document if isinstance(document, bytes) else encode(document)
        headers = {"Content-Type": media_type} if media_type else {}
        return self.request("PUT", f"manifests/{tag_or_digest}", headers=headers, body=body)

    def push_image(self, tag: str | None = None, image: Image | None = None) -> Image:
        """Push an image with all that it names, by `tag` or by digest only."""
        image = image or new_image()
        self.push_blobs(image)
        self.put_manifest(tag or image.digest, image.manifest).expect(201)
        return image

    def push_index(self, document: object, tag: str | None = None) -> bytes:
        """Push an index whose children are there, and return its bytes."""
        body = encode(document)
        self.put_manifest(tag or digest_of(body), body, OCI_INDEX).expect(201)
        return body

    def tags(self) -> list[str]:
        """Return the tags of the first page."""
        tags: list[str] = self.request("GET", "tags/list").expect(200).json()["tags"]
        return tags

    def set_tags(self, digest: str, body: bytes, tags: Sequence[str]) -> None:
        """Point many tags at one manifest, some dozens with each request."""
        for at in range(0, len(tags), 40):
            query = "&".join(f"tag={tag}" for tag in tags[at : at + 40])
            self.put_manifest(f"{digest}?{query}", body).expect(201)
