"""A reply as the model foretells it, and the comparison with the one that came."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.capability.content import Json
from tests.wire import Reply


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a reply with several ranges: its bytes, and where the first of them is in the blob."""

    first: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """Status, headers (None: absent) and body; of an error its code, and the digests that its detail names.

    A body may be given as bytes, as a JSON document, or as the parts of a blob of `total` bytes. Where none is given
    there has to be none.
    """

    status: int
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    document: Json | None = None
    parts: Sequence[Part] = ()
    total: int = 0
    code: str = ""
    named: frozenset[str] = frozenset()

    def check(self, reply: Reply) -> None:
        """Compare; an AssertionError tells what was expected, and shows request and reply."""
        reply.expect(self.status, {"Docker-Distribution-Api-Version": "registry/2.0", **self.headers})
        assert reply.get("X-Request-Id"), f"a reply without a request id\n{reply}"
        if self.code:
            self._check_error(reply)
        elif self.document is not None:
            self._check_document(reply)
        elif self.parts:
            self._check_parts(reply)
        else:
            self._check_body(reply, self.body)

    def _check_error(self, reply: Reply) -> None:
        reply.expect_error(self.status, self.code)
        if self.named and not _is_head(reply):
            detail = reply.json()["errors"][0]["detail"]
            named = {digest for entry in detail for digest in entry.values()}
            assert named == self.named, f"the detail names {named}, expected {set(self.named)}\n{reply}"

    def _check_document(self, reply: Reply) -> None:
        if _is_head(reply):
            return
        found = reply.json()
        assert isinstance(found, dict), f"expected an object\n{reply}"
        assert _unordered(found) == _unordered(self.document), f"expected the document {self.document}\n{reply}"

    def _check_parts(self, reply: Reply) -> None:
        match = re.fullmatch(r"multipart/byteranges; boundary=([0-9a-zA-Z]+)", reply["Content-Type"])
        assert match, f"expected the type of a reply with several ranges\n{reply}"
        body = b""
        for part in self.parts:
            place = f"bytes {part.first}-{part.first + len(part.content) - 1}/{self.total}"
            head = f"\r\n--{match[1]}\r\nContent-Type: application/octet-stream\r\nContent-Range: {place}\r\n\r\n"
            body += head.encode() + part.content
        self._check_body(reply, body + f"\r\n--{match[1]}--\r\n".encode())

    def _check_body(self, reply: Reply, body: bytes) -> None:
        if self.status in {204, 304}:
            reply.expect(self.status, {"Content-Length": None})
            return
        reply.expect(self.status, {"Content-Length": str(len(body))})
        if not _is_head(reply):
            assert reply.body == body, f"expected a body of {len(body)} bytes: {body[:200]!r}\n{reply}"


def _unordered(document: Json | None) -> Json:
    """Return it with a list of referrers, which has no order in the specification, in one."""
    known = document or {}
    if not isinstance(known.get("manifests"), list):
        return known
    return {**known, "manifests": sorted(known["manifests"], key=lambda entry: str(entry.get("digest")))}


def _is_head(reply: Reply) -> bool:
    return reply.request.startswith("HEAD ")
