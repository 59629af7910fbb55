"""The gate before every write: it asks who first, and lets reading through."""

import asyncio

import pytest

from lading.auth.gate import Gate
from lading.auth.identity import ANONYMOUS, Identity
from lading.auth.policy import Action, OpenPolicy
from lading.oci.errors import StoreUnavailable, Unauthorized


def closed() -> None:
    raise StoreUnavailable


@pytest.mark.parametrize("action", [Action.PING, Action.PULL, Action.CATALOG])
def test_reading_goes_on_behind_a_closed_gate(action: Action) -> None:
    """Pulls need no store that can be written."""
    gate = Gate(OpenPolicy(), closed)

    assert asyncio.run(gate.authorize(None, action, "team/app")) == ANONYMOUS
    assert gate.may(ANONYMOUS, action, "team/app")


@pytest.mark.parametrize("action", [Action.PUSH, Action.DELETE])
def test_nobody_writes_through_a_closed_gate(action: Action) -> None:
    """Nor is a HEAD's lease written, which asks whether its caller may push."""
    gate = Gate(OpenPolicy(), closed)

    with pytest.raises(StoreUnavailable):
        asyncio.run(gate.authorize(None, action, "team/app"))
    assert not gate.may(ANONYMOUS, action, "team/app")


def test_an_open_gate_decides_nothing() -> None:
    """It is the policy that says who may."""
    gate = Gate(_Nobody(), lambda: None)

    with pytest.raises(Unauthorized):
        asyncio.run(gate.authorize(None, Action.PUSH, "team/app"))
    assert not gate.may(ANONYMOUS, Action.PUSH, "team/app")


def test_a_stranger_is_not_told_that_the_gate_is_closed() -> None:
    """What ails a registry is for those who may use it."""
    with pytest.raises(Unauthorized):
        asyncio.run(Gate(_Nobody(), closed).authorize(None, Action.PUSH, "team/app"))


class _Nobody:
    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:
        raise Unauthorized('Basic realm="test"', f"{authorization} {action} {repository}")

    def may(self, identity: Identity, action: Action, repository: str) -> bool:  # noqa: ARG002
        return False
