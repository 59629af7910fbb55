"""Digests: `algorithm:hex`, of the two algorithms that image-spec registers and we store."""

import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from lading.oci.errors import DigestInvalid, DigestUnsupported

_ALGORITHM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*")


class Algorithm(IntEnum):
    """A digest algorithm, by the number that the database stores."""

    SHA256 = 1
    SHA512 = 2

    @property
    def text(self) -> str:
        """The name in a digest."""
        return self.name.lower()

    @property
    def digest_bytes(self) -> int:
        """The length of a raw digest."""
        return 32 if self is Algorithm.SHA256 else 64

    @classmethod
    def parse(cls, text: str) -> "Algorithm":
        """Return the algorithm of that name.

        Raises:
            DigestInvalid: not one that we store.

        """
        for algorithm in cls:
            if algorithm.text == text:
                return algorithm
        if _ALGORITHM.fullmatch(text):
            raise DigestUnsupported(f"digest algorithm {text} is not supported; use sha256 or sha512")
        raise DigestInvalid("that is no digest algorithm; use sha256 or sha512", detail={"algorithm": text})


_HEX = {Algorithm.SHA256: re.compile(r"[0-9a-f]{64}"), Algorithm.SHA512: re.compile(r"[0-9a-f]{128}")}


@dataclass(frozen=True, slots=True)
class Digest:
    """The address of content: its algorithm and the raw digest bytes."""

    algorithm: Algorithm
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the digest written as `sha256:<64 lowercase hex>` or `sha512:<128 lowercase hex>`.

        Raises:
            DigestInvalid: malformed, uppercase, of the wrong length, or of an algorithm we do not store.

        """
        name, colon, encoded = text.partition(":")
        if not colon:
            raise DigestInvalid("a digest is written algorithm:hex, as in sha256:9f86d0...", detail={"digest": text})
        algorithm = Algorithm.parse(name)
        if _HEX[algorithm].fullmatch(encoded) is None:
            raise DigestInvalid(
                f"a {algorithm.text} digest has {algorithm.digest_bytes * 2} lowercase hexadecimal digits",
                detail={"digest": text},
            )
        return cls(algorithm, bytes.fromhex(encoded))

    @classmethod
    def of(cls, content: bytes, algorithm: Algorithm = Algorithm.SHA256) -> Self:
        """Return the digest of `content`."""
        return cls(algorithm, hashlib.new(algorithm.text, content).digest())

    @property
    def hex(self) -> str:
        """The encoded part."""
        return self.raw.hex()

    def __str__(self) -> str:
        return f"{self.algorithm.text}:{self.raw.hex()}"


class RunningDigest:
    """A digest in the making: of the `seen_bytes` bytes that it was fed with so far."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.seen_bytes = 0
        self._hasher = hashlib.sha256() if algorithm is Algorithm.SHA256 else hashlib.sha512()

    def update(self, buffer: bytes | memoryview) -> None:
        """Take more content; over 2 KiB at a time, other threads run meanwhile."""
        self._hasher.update(buffer)
        self.seen_bytes += len(buffer)

    def digest(self) -> Digest:
        """Return the digest of what was seen."""
        return Digest(self.algorithm, self._hasher.digest())


EMPTY_SHA256 = Digest.of(b"")
EMPTY_SHA512 = Digest.of(b"", Algorithm.SHA512)


def is_empty_content(digest: Digest) -> bool:
    """Tell whether this is the digest of zero bytes."""
    return digest in (EMPTY_SHA256, EMPTY_SHA512)
