"""The settings: what there is to set, and what is in force. Nothing here knows who uses one."""

from lading.settings.sections import Auth as Auth
from lading.settings.sections import Settings as Settings
from lading.settings.sections import default_workers as default_workers
from lading.settings.sources import Setting as Setting
from lading.settings.sources import Trace as Trace
from lading.settings.sources import catalog as catalog
from lading.settings.sources import load as load
from lading.settings.sources import trace as trace
