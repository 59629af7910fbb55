"""The gate before every write: while the store is not ours to write to, nobody may, whatever the policy says."""

from collections.abc import Callable

from lading.auth.identity import Identity
from lading.auth.policy import Action, Policy
from lading.oci.errors import RegistryError

_WRITES = frozenset({Action.PUSH, Action.DELETE})


class Gate:
    """A policy behind the gate. `confirm_writable` raises while nothing may be written; reading goes on."""

    def __init__(self, policy: Policy, confirm_writable: Callable[[], None]) -> None:
        self._policy = policy
        self._confirm_writable = confirm_writable

    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:
        """Return who is asking, or refuse: first as the policy does, so that strangers learn nothing here.

        Raises:
            RegistryError: as the policy does, or because nothing may be written now.

        """
        identity = await self._policy.authorize(authorization, action, repository)
        if action in _WRITES:
            self._confirm_writable()
        return identity

    def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether `identity` may do it, now."""
        if action in _WRITES:
            try:
                self._confirm_writable()
            except RegistryError:
                return False
        return self._policy.may(identity, action, repository)
