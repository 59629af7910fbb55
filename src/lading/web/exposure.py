"""The door without a lock: refused beyond this machine, unless the operator said that it is meant."""

from collections.abc import Iterable

from lading.logs import event_logger
from lading.oci.errors import Exposed
from lading.settings import Auth, Settings
from lading.web.sockets import Address


def check(auth: Auth, addresses: Iterable[Address]) -> None:
    """Hold where the server listens against who may do what.

    Raises:
        Exposed: others than this machine could reach it, and there is no authentication.

    """
    exposed = _exposed(addresses)
    if exposed and auth.htpasswd is None and not auth.open:
        raise Exposed(
            f"without authentication everybody who reaches {', '.join(exposed)} could pull, push and delete",
            "make a user, and give the file to the server:\n"
            "    lading htpasswd users.htpasswd NAME\n"
            "    lading serve --htpasswd users.htpasswd ...\n"
            "or say that everybody may: lading serve --open ...",
        )


def warn(settings: Settings, addresses: Iterable[Address]) -> None:
    """Log what an operator must know of a server that others than this machine reach."""
    exposed = _exposed(addresses)
    if not exposed:
        return
    if settings.auth.htpasswd is None:
        event_logger().warning(
            "everybody who can reach this address may pull, push and delete: there is no authentication",
            addresses=exposed,
        )
    elif settings.http.tls_certificate is None:
        event_logger().warning(
            "passwords and content cross the network in clear text unless a proxy in front adds TLS", addresses=exposed
        )


def _exposed(addresses: Iterable[Address]) -> list[str]:
    return [str(address) for address in addresses if not address.is_local]
