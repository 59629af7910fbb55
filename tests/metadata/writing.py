"""A process that writes, for the tests: python -m tests.metadata.writing DATABASE ACTOR COUNT together|singly.

It appends COUNT rows to the feed, all at once or each after the one before it, and prints the numbers they got.
"""

import asyncio
import sys
from pathlib import Path

import sqlalchemy as sa

from lading.metadata import feed, schema
from lading.metadata.database import Database


def append(tx: sa.Connection, actor: str) -> int:
    """Append a row; return its number."""
    feed.append(tx, feed.Kind.TAG_SET, repository="team/app", actor=actor, at_us=1)
    seq = tx.execute(sa.select(sa.func.max(schema.feed.c.seq))).scalar_one()
    assert isinstance(seq, int)
    return seq


async def main(path: Path, actor: str, count: int, way: str) -> None:
    """Write, and print the numbers in the order of asking."""
    database = Database(path)
    if way == "together":
        numbers = await asyncio.gather(*(database.write(append, actor) for _ in range(count)))
    else:
        numbers = [await database.write(append, actor) for _ in range(count)]
    sys.stdout.write(" ".join(map(str, numbers)))
    sys.stdout.flush()
    database.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
