"""What the server says: events through structlog, and the access log as one prebuilt record per request.

Both go to standard output, to files or to the journal, and neither ever makes a request wait for who reads them.
"""

from lading.logs.access import AccessLog as AccessLog
from lading.logs.courier import in_background as in_background
from lading.logs.destination import Style as Style
from lading.logs.events import configure as configure
from lading.logs.events import event_logger as event_logger
from lading.logs.file import make_file as make_file
from lading.logs.output import MAX_LINE_BYTES as MAX_LINE_BYTES
from lading.logs.output import STDOUT as STDOUT
from lading.logs.output import Output as Output
