"""The bugs that the state machine has to find, each a build with an exact text replaced."""

from dataclasses import dataclass
from pathlib import Path

from tests.faults.controls import Control, Patch


@dataclass(frozen=True, slots=True)
class Planted:
    """One bug: in `file`, `good` becomes `bad`."""

    name: str
    file: str
    good: str
    bad: str

    def build(self, folder: Path) -> Path:
        """Make a tree with the bug in it, and return what goes on the import path."""
        return Control(self.name, (Patch(self.file, self.good, self.bad),)).build(folder)


PLANTS = (
    Planted(
        "paging off by one",
        "registry/tags.py",
        "Page(names[:entries], names[entries - 1] if more else None)",
        "Page(names[:entries], names[entries] if more else None)",
    ),
    Planted(
        "tag lost on delete",
        "metadata/tags.py",
        'sa.delete(tags).where(tags.c.repo_id == sa.bindparam("repo_id"), tags.c.name == sa.bindparam("name"))',
        'sa.delete(tags).where(tags.c.repo_id == sa.bindparam("repo_id"), tags.c.name >= sa.bindparam("name"))',
    ),
    Planted(
        "mount without link",
        "registry/blobs.py",
        "    link(tx, repository, linked.blob.id, digest, actor=actor, at_us=at_us, retention=retention)\n",
        "",
    ),
    Planted(
        "stale referrer",
        "metadata/manifests.py",
        "        manifests.c.subject_digest.is_not(None),\n        _LIVE,\n",
        "        manifests.c.subject_digest.is_not(None),\n",
    ),
    Planted(
        "range off by one",
        "oci/ranges.py",
        "last = min(_bounded(last_text), blob_bytes - 1) if last_text",
        "last = min(_bounded(last_text) + 1, blob_bytes - 1) if last_text",
    ),
)
