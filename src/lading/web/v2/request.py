"""A request to /v2/, parsed: what a handler works with."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Scope

from lading.auth.identity import Identity
from lading.auth.policy import Action, Policy
from lading.oci.digest import Digest
from lading.oci.errors import DigestInvalid, PageSizeInvalid
from lading.registry.registry import Registry
from lading.web.bodies import Body

_MAX_N_DIGITS = 9


class Query:
    """The query, decoded once; unknown parameters are nobody's business."""

    def __init__(self, raw: bytes) -> None:
        # Bounded by the limit of the request target; bytes that are not UTF-8 become what no value of ours may contain.
        self._fields = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, errors="replace")

    def all(self, name: str) -> list[str]:
        """Return all values of a parameter."""
        return [value for key, value in self._fields if key == name]

    def first(self, name: str) -> str | None:
        """Return the first value of a parameter."""
        return next((value for key, value in self._fields if key == name), None)

    def digest(self, name: str = "digest") -> Digest | None:
        """Return the digest that a parameter gives; the same one twice is fine (regclient repeats it).

        Raises:
            DigestInvalid: malformed, or two different ones.

        """
        values = set(self.all(name))
        if len(values) > 1:
            raise DigestInvalid(f"the query gives {len(values)} different values of {name}")
        return Digest.parse(values.pop()) if values else None

    def entries(self, most: int) -> int:
        """Return the page size `n`, at most `most`.

        Raises:
            PageSizeInvalid: not a non-negative integer.

        """
        text = self.first("n")
        if text is None:
            return most
        if not (text.isascii() and text.isdigit()):
            raise PageSizeInvalid(detail={"n": text})
        digits = text.lstrip("0")
        return most if len(digits) > _MAX_N_DIGITS else min(int(digits or "0"), most)


@dataclass(slots=True)
class Request:
    """One request. `repository` and `target` are the path's parsed name and its undecided last part."""

    scope: Scope
    method: str
    repository: str
    target: str
    query: Query
    body: Body
    identity: Identity
    policy: Policy
    registry: Registry

    def header(self, name: bytes) -> str | None:
        """Return the first value of a header, by its lowercase name."""
        for key, value in self.scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return None

    def headers(self, name: bytes) -> Sequence[str]:
        """Return all values of a header."""
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]

    def has_already(self, digest: Digest) -> bool:
        """Tell whether the client says that it has this content (If-None-Match, RFC 9110 13.1.2)."""
        entries = [entry.strip().removeprefix("W/") for entry in ",".join(self.headers(b"if-none-match")).split(",")]
        return "*" in entries or f'"{digest}"' in entries

    @property
    def actor(self) -> str:
        """The caller's name, for the history."""
        return self.identity.name

    def may_pull(self, repository: str) -> bool:
        """Tell whether the caller may read another repository."""
        return self.policy.may(self.identity, Action.PULL, repository)

    def may_push(self) -> bool:
        """Tell whether the caller may write this repository."""
        return self.policy.may(self.identity, Action.PUSH, self.repository)
