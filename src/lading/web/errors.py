"""Errors as replies: the OCI envelope, for everything under /v2/. Nobody else renders one."""

from lading.oci.errors import RegistryError
from lading.web.replies import Reply, json_reply

API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")
"""On every answer of the API, errors included: scripts and old clients look for it."""


def render(error: RegistryError) -> Reply:
    """Return the reply that an error is (distribution-spec "Error Codes")."""
    entry: dict[str, object] = {"code": error.code, "message": str(error)}
    if error.detail is not None:
        entry["detail"] = error.detail
    return json_reply(error.status, {"errors": [entry]}, dict(error.headers))
