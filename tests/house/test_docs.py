"""The manual says what the code does."""

from pathlib import Path

from lading.settings import Setting, catalog, load

SETTINGS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


def test_every_setting_is_in_the_manual_with_its_variable_and_default() -> None:
    """A setting that nobody can look up is not one; a default that changed in the code only is a lie."""
    rows = [line for line in SETTINGS_PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]

    assert rows == [_row(setting) for setting in catalog()]


def _row(setting: Setting) -> str:
    return f"| `{setting.path}` | `{setting.variable}` | `{setting.default}` | {setting.meaning} |"


def test_the_example_file_in_the_manual_is_valid(tmp_path: Path) -> None:
    """An example is what people copy."""
    _, _, rest = SETTINGS_PAGE.read_text("utf-8").partition("```yaml\n")
    file = tmp_path / "lading.yaml"
    file.write_text(rest.partition("```")[0])

    settings = load(file, {}, environ={})

    assert (settings.data, settings.http.port, settings.uploads.ttl_seconds) == (Path("/srv/registry"), 5001, 86400)
