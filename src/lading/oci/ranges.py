"""Byte ranges: `Range` of a blob read (RFC 9110, 14), and `Content-Range` and `Range` of an upload session."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from lading.oci.errors import RangeUnsatisfiable

MAX_RANGES = 100
_MAX_DIGITS = 19
_ONE_RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
_CHUNK = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\*|\d{1,19}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes `first` to `last`, both inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_range(header: str, blob_bytes: int) -> tuple[ByteRange, ...]:
    """Return the ranges of `header` that the blob satisfies, clamped to it; empty when the header is to be ignored.

    Another unit, a malformed set, ranges that overlap or do not ascend, or more of them than podman ever asks for (100)
    are ignored, as RFC 9110 14.2 allows: otherwise a short request could ask for a blob a hundred times.
    An inverted range (`5-2`) is unsatisfiable here: the conformance suite expects 416.

    Raises:
        RangeUnsatisfiable: well-formed, and no range touches the blob.

    """
    unit, equals, ranges = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return ()
    parts = [part.strip() for part in ranges.split(",")]
    if len(parts) > MAX_RANGES:
        return ()
    satisfied: list[ByteRange] = []
    for part in parts:
        match = _ONE_RANGE.fullmatch(part)
        if match is None or match.groups() == ("", ""):
            return ()
        found = _resolve(match.group(1), match.group(2), blob_bytes)
        if found is not None:
            satisfied.append(found)
    if not satisfied:
        raise RangeUnsatisfiable(blob_bytes)
    if any(later.first <= earlier.last for earlier, later in pairwise(satisfied)):
        return ()
    return tuple(satisfied)


def _resolve(first_text: str, last_text: str, blob_bytes: int) -> ByteRange | None:
    if not first_text:
        suffix_bytes = min(_bounded(last_text), blob_bytes)
        return ByteRange(blob_bytes - suffix_bytes, blob_bytes - 1) if suffix_bytes else None
    first = _bounded(first_text)
    last = min(_bounded(last_text), blob_bytes - 1) if last_text else blob_bytes - 1
    return ByteRange(first, last) if first <= last else None


def _bounded(digits: str) -> int:
    """Read a number; one past any file offset counts as the largest."""
    stripped = digits.lstrip("0")
    return 2**63 - 1 if len(stripped) > _MAX_DIGITS else int(stripped or "0")


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Which bytes of the blob a PATCH or PUT body claims to be (distribution-spec `Content-Range: <first>-<last>`)."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """The number of bytes the body must have."""
        return self.last - self.first + 1

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """Return the chunk's range, or None when `header` is none: `0-99`; leniently also `bytes 0-99/*`."""
        match = _CHUNK.fullmatch(header.strip())
        if match is None:
            return None
        first, last = int(match.group(1)), int(match.group(2))
        return cls(first, last) if first <= last else None


def upload_range(offset: int) -> str:
    """Return the `Range` of a session with `offset` bytes: inclusive and without a unit, `0-0` while it is empty.

    docker scans it as `%d-%d` and writes `last - first + 1` into its manifest as the layer's size; `bytes=` or `0--1`
    breaks its push.
    """
    return f"0-{max(offset - 1, 0)}"
