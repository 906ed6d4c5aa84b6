"""The service over HTTP: the Tiled protocol and what it lacks.

A route parses, calls one use case of `flystore.service`, and renders. No SQL, no file formats.
"""

from .access import Access
from .app import build_app
from .connections import server_settings

__all__ = ["Access", "build_app", "server_settings"]
