"""Every hot statement of the package, found by walking its modules."""

import importlib
import pkgutil
from collections.abc import Mapping

import lading.metadata
from lading.metadata.database import Prepared


def statements() -> Mapping[str, Prepared]:
    """Return each prepared statement by its place, as in `tags._PAGE`."""
    found = {}
    for module in pkgutil.iter_modules(lading.metadata.__path__):
        if module.ispkg or module.name == "migrations":
            continue
        imported = importlib.import_module(f"lading.metadata.{module.name}")
        found.update(
            {f"{module.name}.{name}": value for name, value in vars(imported).items() if isinstance(value, Prepared)}
        )
    return found
