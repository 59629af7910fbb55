"""A database on an event loop, for the length of one function."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from lading.metadata.database import Database

T = TypeVar("T")


def run(path: Path, function: Callable[[Database], Awaitable[T]]) -> T:
    """Open the database, await the function on a new loop, close the database, and return what it returned."""

    async def whole() -> T:
        database = Database(path)
        try:
            return await function(database)
        finally:
            database.close()

    return asyncio.run(whole())
