"""May they: the one place that decides access (I7), asked once for each route, and again for a mount's source."""

from enum import StrEnum
from typing import Protocol

from lading.auth.identity import ANONYMOUS, Identity
from lading.auth.passwords import CHALLENGE, Credentials, Logins
from lading.oci.errors import Unauthorized


class Action(StrEnum):
    """What a route does to a repository, in the words of the token scope grammar."""

    PING = "ping"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CATALOG = "catalog"


READING = frozenset({Action.PULL, Action.CATALOG})


class Policy(Protocol):
    """Decides what the sender of one request may do."""

    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:
        """Return who is asking, or refuse. It may wait for the check of a password, at most some seconds.

        `authorization` is the raw header value, of many headers their list; `repository` is None for PING and CATALOG.
        PING is also asked for a request that leads nowhere, so that strangers do not learn even that.

        Raises:
            Unauthorized: credentials are missing, wrong or too weak; carries the challenge.
            Denied: the caller is known and can never do this.
            TooManyLogins, Busy: it cannot be told now.

        """
        ...

    def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether `identity`, as `authorize` returned it, may do `action`. Nothing here waits.

        Asked beside the route's own action: PULL for a mount's source and the catalog, PUSH for the lease of a HEAD.
        """
        ...


class OpenPolicy:
    """Everybody may do everything, under the name `anonymous`."""

    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:  # noqa: ARG002
        """Return the anonymous identity."""
        return ANONYMOUS

    def may(self, identity: Identity, action: Action, repository: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True


class UsersPolicy:
    """Users may do everything; everybody else may read, or nothing."""

    def __init__(self, logins: Logins, *, anonymous_pull: bool) -> None:
        self._logins = logins
        self._anonymous_may = READING if anonymous_pull else frozenset()

    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:  # noqa: ARG002
        """Return the user, or the anonymous identity where that suffices; wrong credentials are never ignored.

        PING always wants a login: it is where docker learns that there are passwords, and where it checks one.
        """
        credentials = None if authorization is None else Credentials.parse(authorization)
        if credentials is not None:
            return await self._logins.identify(credentials)
        if action in self._anonymous_may:
            return ANONYMOUS
        raise Unauthorized(CHALLENGE)

    def may(self, identity: Identity, action: Action, repository: str) -> bool:  # noqa: ARG002
        """Tell whether it is a user, or reading that anybody may."""
        return identity != ANONYMOUS or action in self._anonymous_may
