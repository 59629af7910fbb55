"""The registry: its nouns, each with its verbs."""

from dataclasses import dataclass

from lading.registry.blobs import Blobs
from lading.registry.history import History
from lading.registry.manifests import Manifests
from lading.registry.pulls import Pulls
from lading.registry.referrers import Referrers
from lading.registry.repositories import Repositories
from lading.registry.tags import Tags
from lading.registry.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Registry:
    """The use cases, as the ways in call them."""

    blobs: Blobs
    uploads: Uploads
    manifests: Manifests
    pulls: Pulls
    tags: Tags
    referrers: Referrers
    repositories: Repositories
    history: History
