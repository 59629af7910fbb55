"""May they: the one place that decides access (I7), asked once for each route, and again for a mount's source."""

from enum import StrEnum
from typing import Protocol

from lading.auth.identity import ANONYMOUS, Identity


class Action(StrEnum):
    """What a route does to a repository, in the words of the token scope grammar."""

    PING = "ping"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"


class Policy(Protocol):
    """Decides what the sender of one request may do. Nothing here waits: what it needs was loaded before."""

    def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:
        """Return who is asking, or refuse.

        `authorization` is the raw header value; `repository` is None for PING and CATALOG.

        Raises:
            Unauthorized: credentials are missing, wrong or too weak; carries the challenge.
            Denied: the caller is known and can never do this.

        """
        ...

    def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether `identity`, as `authorize` returned it, may do `action`.

        Asked beside the route's own action: PULL for a mount's source and the catalog, PUSH for the lease of a HEAD.
        """
        ...


class OpenPolicy:
    """Everybody may do everything, under the name `anonymous`."""

    def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:  # noqa: ARG002
        """Return the anonymous identity."""
        return ANONYMOUS

    def may(self, identity: Identity, action: Action, repository: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True
