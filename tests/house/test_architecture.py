"""The map of the code base names what is there, and names say what a module is about."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "src" / "lading"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
FORBIDDEN = frozenset({"utils", "common", "helpers", "misc", "shared", "types", "constants", "base", "manager"})


def folders() -> list[str]:
    """Return every package below ours, as the map writes it: `web/v2`."""
    return sorted(str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.glob("*/**/__init__.py"))


@pytest.mark.parametrize("folder", folders())
def test_the_map_names_every_folder(folder: str) -> None:
    """A newcomer finds a place by the map; what is not on it does not exist for them."""
    text = (TOP / "docs" / "architecture.md").read_text("utf-8")

    assert re.search(rf"(?<![\w/]){folder}/(?!\w)", text), f"docs/architecture.md says nothing of {folder}/"


def test_no_module_has_a_name_that_says_nothing() -> None:
    """Whatever fits nowhere else ends up in such a module, and then everything imports it."""
    found = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if FORBIDDEN & {part.strip("_") for part in (*path.relative_to(PACKAGE).parts[:-1], path.stem)}
    ]

    assert not found


def test_every_module_says_what_it_is() -> None:
    """The first line is what a reader decides by."""
    silent = [
        str(path.relative_to(TOP)) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]

    assert not silent


def test_a_package_file_defines_nothing() -> None:
    """An `__init__` that collects makes import cycles; it holds a docstring and at most re-exports."""
    found = [
        f"{path.relative_to(TOP)}:{node.lineno}"
        for path in MODULES
        if path.name == "__init__.py"
        for node in ast.parse(path.read_text("utf-8")).body[1:]
        if not isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert not found
