"""What `lading verify` can find: a code word for each kind, how bad it is, and what heals it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    DAMAGE = "damage"
    """Content or knowledge is lost, or will be."""
    WASTE = "waste"
    """Nothing is lost; room is taken by what nobody asks for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding."""

    severity: Severity
    heals: str


_PUSH = "Push an image that has it again: the registry sees that the bytes are gone, and takes them."
_SCRUB = "Have `lading scrub` take the wrong bytes away, then push an image that has it again."
_PUSH_MANIFEST = "Push it again: its wrong bytes are never served, and those of the push take their place."
_RESTORE = "Restore the database from a snapshot or a backup: no push can mend it."
_TAG = "Push the tag again, or delete it."


def _damage(heals: str) -> Kind:
    return Kind(Severity.DAMAGE, heals)


def _waste(heals: str) -> Kind:
    return Kind(Severity.WASTE, heals)


KINDS: Mapping[str, Kind] = {
    # The store
    "store-mismatch": _damage("Put the database and the objects of one and the same registry together."),
    # Objects
    "object-missing": _damage(_PUSH),
    "object-short": _damage(_PUSH),
    "object-long": _damage(_PUSH),
    "object-wrong": _damage(_SCRUB),
    "object-unreadable": _damage(
        "Look for what ails the disk; then have `lading scrub` take it away, and push its image again."
    ),
    "object-doomed": _damage(_RESTORE),
    "object-unreferenced": _waste("The collector removes it when it is a day old."),
    "file-stray": _waste("It is no file of Lading: move it away."),
    # Blobs
    "payload-wrong": _damage(_SCRUB),
    "size-wrong": _damage(_RESTORE),
    "blob-without-bytes": _damage(_RESTORE),
    "extent-doubled": _damage(_RESTORE),
    # Manifests and what they refer to
    "manifest-wrong": _damage(_PUSH_MANIFEST),
    "manifest-misread": _damage(_RESTORE),
    "descriptor-wrong": _damage("Delete the manifest by its digest, and push one that is right."),
    "reference-missing": _damage(_RESTORE),
    "reference-wrong": _damage(_RESTORE),
    "reference-to-nowhere": _damage(_RESTORE),
    "link-missing": _damage("Push the image to that repository again: its blobs are linked anew."),
    "link-to-nowhere": _damage(_RESTORE),
    # Tags and their history
    "tag-to-nowhere": _damage(_RESTORE),
    "tag-to-deleted": _damage(_TAG),
    "tag-to-other-repository": _damage(_TAG),
    "history-differs": _damage(_RESTORE),
    "history-gap": _damage(_RESTORE),
    # The database
    "database-damaged": _damage(_RESTORE),
    "row-to-nowhere": _damage(_RESTORE),
    "count-wrong": _damage(_RESTORE),
    "feed-gap": _damage(_RESTORE),
    # Upload sessions
    "session-short": _damage("Cancel the upload or let it expire; the client begins anew."),
    "session-wrong": _damage("Cancel the upload or let it expire; the client begins anew."),
    "session-expired": _waste("A running server ends it within the hour."),
    "staging-leftover": _waste("A server that starts removes it."),
}
