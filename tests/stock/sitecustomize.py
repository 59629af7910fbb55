"""Puts uvicorn's own protocol class in the place of ours, in every process that is started with this on its PYTHONPATH.

The application is plain ASGI and owes nothing to our class: `make stock` runs the fast tests this way.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lading.web import worker

vars(worker)["Http"] = HttpToolsProtocol
