"""Descriptors: how a manifest names other content (image-spec "OCI Content Descriptors")."""

from dataclasses import dataclass
from typing import Self

from lading.oci.digest import Digest
from lading.oci.errors import DigestInvalid, ManifestInvalid

MAX_CONTENT_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Content by media type, digest and size in bytes; `has_urls` when it may be fetched from elsewhere."""

    media_type: str
    digest: Digest
    content_bytes: int
    has_urls: bool = False

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """Return the descriptor that the decoded JSON `value` holds; `where` names it in errors, as in `layers[2]`.

        Raises:
            ManifestInvalid: not an object, or a required field is missing or of the wrong kind.

        """
        if not isinstance(value, dict):
            raise ManifestInvalid(f"{where} must be a descriptor, an object with mediaType, digest and size")
        media_type, digest, size, urls = (value.get(key) for key in ("mediaType", "digest", "size", "urls"))
        if not isinstance(media_type, str) or not media_type:
            raise ManifestInvalid(f"{where}.mediaType must be a non-empty string")
        if type(size) is not int or not 0 <= size <= MAX_CONTENT_BYTES:
            raise ManifestInvalid(f"{where}.size must be an integer from 0 to {MAX_CONTENT_BYTES}")
        if not isinstance(digest, str):
            raise ManifestInvalid(f"{where}.digest must be a string")
        if urls is not None and not (isinstance(urls, list) and all(isinstance(url, str) for url in urls)):
            raise ManifestInvalid(f"{where}.urls must be a list of strings")
        try:
            return cls(media_type, Digest.parse(digest), size, bool(urls))
        except DigestInvalid as error:
            raise ManifestInvalid(f"{where}.digest: {error}", detail=error.detail) from error
