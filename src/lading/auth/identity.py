"""Who is asking: the name that history and feed rows keep."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller, by the name that is written into the history."""

    name: str


ANONYMOUS = Identity("anonymous")
