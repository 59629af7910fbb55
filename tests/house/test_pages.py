"""The pages of this project: their links lead somewhere, and they leave nothing out."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
# What is not ours, or not written by hand.
OTHERS = frozenset({"data", "dist", "node_modules", "results"})
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> Iterator[Path]:
    """Yield every Markdown page of the working tree."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in OTHERS]
        yield from (Path(folder, name) for name in files if name.endswith(".md"))


def prose(page: Path) -> str:
    """Return a page without its code blocks, where brackets are no links and `#` is a comment."""
    return CODE_BLOCK.sub("", page.read_text("utf-8"))


def anchor(heading: str) -> str:
    """Return how a link names a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_relative_link_leads_to_something_that_exists() -> None:
    """A dead link is the first thing a newcomer finds."""
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in LINK.findall(prose(page))
        if "://" not in target and not _exists(page, target)
    ]

    assert not dead


def _exists(page: Path, target: str) -> bool:
    path, _, fragment = target.partition("#")
    place = page.parent / path if path else page
    if not place.exists():
        return False
    return not fragment or fragment in map(anchor, HEADING.findall(prose(place)))


def test_the_readme_shows_how_to_start_and_how_to_test() -> None:
    """These two commands are all that a stranger needs to believe the rest."""
    readme = (ROOT / "README.md").read_text("utf-8")

    assert "make serve" in readme
    assert "make test" in readme
    assert readme.index("make serve") < readme.index("docker push")


def test_every_folder_of_the_package_is_in_the_architecture() -> None:
    """A folder that the code map does not know is one that nobody decided on."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    package = ROOT / "src" / "lading"
    folders = [path.parent.relative_to(package) for path in package.rglob("__init__.py")]
    places = [f"{folder}/" for folder in folders if folder != Path()] + ["app.py"]

    assert not [place for place in places if f"**`{place}`**" not in page]


def test_the_index_lists_every_decision_once_and_in_order() -> None:
    """A decision that is not in the index is made again, differently."""
    index = (DECISIONS / "README.md").read_text("utf-8")
    decisions = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))

    assert [target for target in LINK.findall(index) if target[0].isdigit()] == decisions
    assert [name[:4] for name in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]
