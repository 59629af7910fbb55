"""Repository names and tags: the grammar of distribution-spec "Pulling manifests", anchored and bounded."""

import re
from dataclasses import dataclass
from typing import Self

from lading.oci.errors import NameInvalid, TagInvalid

MAX_NAME_CHARACTERS = 255
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


def parse_repository_name(text: str) -> str:
    """Return `text` when it names a repository.

    Raises:
        NameInvalid: outside the grammar, or longer than 255 characters (clients cap host and name together there).

    """
    if len(text) > MAX_NAME_CHARACTERS:
        raise NameInvalid(f"a repository name has at most {MAX_NAME_CHARACTERS} characters, this one has {len(text)}")
    if _NAME.fullmatch(text) is None:
        raise NameInvalid(
            "a repository name is lowercase letters and digits in components joined by '/', "
            "with single '.', '_', '__' or dashes inside a component",
            detail={"name": text},
        )
    return text


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, of 1 to 128 characters."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the tag.

        Raises:
            TagInvalid: outside the grammar. Reads answer ManifestUnknown in its place, as nothing can have that name.

        """
        if _TAG.fullmatch(text) is None:
            raise TagInvalid(
                "a tag is 1 to 128 letters, digits, '_', '.' or '-', and does not begin with '.' or '-'",
                detail={"tag": text},
            )
        return cls(text)

    def __str__(self) -> str:
        return self.name
