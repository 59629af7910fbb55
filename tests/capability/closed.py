"""A registry that asks who is there: the real server with a second implementation of its one policy protocol.

A program, started like `lading`. Its bearer tokens stand in the file that CLOSED_TOKENS names, with an expiry and the
actions they allow in each repository; tests add to it while the server runs.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lading import app, logs, settings
from lading.auth.identity import Identity
from lading.auth.policy import Action
from lading.oci.errors import Unauthorized
from lading.web import server

SERVICE = "closed.example"
CHALLENGE = f'Bearer realm="https://{SERVICE}/token",service="{SERVICE}"'


@dataclass(frozen=True, slots=True)
class Bearer(Identity):
    """The one user there is, with the token of this request: a client gets new ones as it goes on."""

    token: str


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """Allows what a token says and nothing else; the base wants a token, whichever."""

    tokens: Path

    async def authorize(self, authorization: str | None, action: Action, repository: str | None) -> Identity:
        """Return the user, with the token."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized(_challenge(action, repository))
        known = self._read().get(token)
        if known is None or known["expires_at"] < time.time():
            raise Unauthorized(f'{_challenge(action, repository)},error="invalid_token"')
        if action != Action.PING and action not in known["rights"].get(repository or "*", ()):
            raise Unauthorized(f'{_challenge(action, repository)},error="insufficient_scope"')
        return Bearer("user", token)

    def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether the token that authorized this request allows this, too."""
        assert isinstance(identity, Bearer)
        return action in self._read()[identity.token]["rights"].get(repository, ())

    def _read(self) -> dict[str, Any]:
        tokens: dict[str, Any] = json.loads(self.tokens.read_text())
        return tokens


def _challenge(action: Action, repository: str | None) -> str:
    return CHALLENGE if repository is None else f'{CHALLENGE},scope="repository:{repository}:{action}"'


def main() -> int:
    """Serve as `lading serve --data DIR --host ADDRESS --port N --workers N` does."""
    flags = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    in_force = settings.load(
        None,
        {
            "data": Path(flags["--data"]),
            "http.host": flags["--host"],
            "http.port": int(flags["--port"]),
            "http.workers": int(flags["--workers"]),
        },
    )
    logs.configure(in_force.log.format)
    policy = TokenPolicy(Path(os.environ["CLOSED_TOKENS"]))
    service = server.Service(
        prepare=lambda alone: app.prepare(in_force, alone=alone),
        application=lambda settings: app.open_application(settings, policy=policy),
        announce=lambda _: None,
        reread=lambda: in_force,
    )
    return server.run(in_force, service)


if __name__ == "__main__":
    raise SystemExit(main())
