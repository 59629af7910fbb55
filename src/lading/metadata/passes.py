"""Jobs that go through everything in small pieces: how far each is, and when it last came to the end."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.schema import insert, passes

TRIM_HISTORY = "trim history"
"""Its position is a moment: a move of a tag that ended before it may be gone."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Where a job is. `position` is what it meant by it; `finished_us` is None before it first came to the end."""

    position: int
    started_us: int
    finished_us: int | None

    @property
    def is_over(self) -> bool:
        """Whether the one that was begun last has come to the end."""
        return self.finished_us is not None and self.finished_us >= self.started_us


def find(tx: sa.Connection, name: str) -> Pass | None:
    """Return where the job is; None before its first piece."""
    row = tx.execute(
        sa.select(passes.c.position, passes.c.started_us, passes.c.finished_us).where(passes.c.name == name)
    ).first()
    return None if row is None else Pass(*row)


def save(tx: sa.Connection, name: str, state: Pass) -> None:
    """Remember where the job is."""
    statement = insert(passes).values(
        name=name, position=state.position, started_us=state.started_us, finished_us=state.finished_us
    )
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={key: statement.excluded[key] for key in ("position", "started_us", "finished_us")},
        )
    )
