"""Control builds: the product with one safety taken out. A test of this folder that passes on one of them is worthless.

Each is a copy of the source tree in which exact texts are replaced. A text that is not there once, and only once, is an
error: the control build has to follow the product.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True, slots=True)
class Patch:
    """One text of one file, and what takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Control:
    """A build that breaks a rule."""

    name: str
    patches: tuple[Patch, ...]

    def build(self, folder: Path) -> Path:
        """Make the tree below `folder`, and return the directory to import from."""
        tree = folder / f"control {self.name}"
        shutil.copytree(SOURCE, tree, ignore=shutil.ignore_patterns("__pycache__"))
        for patch in self.patches:
            path = tree / "lading" / patch.file
            text = path.read_text()
            found = text.count(patch.old)
            assert found == 1, f"control build {self.name}: {patch.file} has this text {found} times:\n{patch.old}"
            path.write_text(text.replace(patch.old, patch.new))
        return tree


NO_SYNC = Control(
    "fsync removed",
    (
        Patch(
            "storage/disk.py",
            "    try:\n        with here.timed(metrics.SYNC):\n            os.fsync(descriptor)\n    except",
            "    try:\n        with here.timed(metrics.SYNC):\n            os.fstat(descriptor)\n    except",
        ),
    ),
)
ROW_BEFORE_BYTES = Control(
    "row before bytes",
    (
        Patch(
            "registry/uploads.py",
            "object_key = await self._make_object(staging, digest)\n",
            'object_key = f"{digest.hex[:2]}/{digest.hex}.{upload_id}"\n',
        ),
        Patch(
            "registry/uploads.py",
            "                continue\n            if staging.committing:\n",
            "                continue\n            if content.object_key and used:\n"
            "                await staging.make_object(digest)\n            if staging.committing:\n",
        ),
    ),
)
DIGEST_NAMED_KEYS = Control(
    "digest-named keys",
    (
        Patch(
            "storage/disk.py",
            'object_key = f"{digest.hex[:2]}/{digest.hex}.{self._path.name}"\n',
            'object_key = f"{digest.hex[:2]}/{digest.hex}"\n',
        ),
    ),
)
NO_BOOT_RULE = Control(
    "boot rule removed",
    (Patch("metadata/uploads.py", "if digest is None or row_boot != boot_id:\n", "if digest is None:\n"),),
)
NO_LEASES = Control(
    "no leases",
    (
        Patch(
            "metadata/blobs.py",
            "    until_us = at_us + retention.lease_us\n    is_new =",
            "    until_us = at_us\n    is_new =",
        ),
        Patch(
            "metadata/blobs.py",
            "    until_us = at_us + retention.lease_us\n    _LEASE",
            "    until_us = at_us\n    _LEASE",
        ),
    ),
)
