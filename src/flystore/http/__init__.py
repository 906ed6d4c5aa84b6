"""The service over HTTP: the Tiled protocol and what it lacks.

A route parses, calls one use case of `flystore.service`, and renders. No SQL, no file formats.
"""

from .access import Access
from .app import build_app
from .connections import server_settings
from .measuring import REQUEST_ID, Watching

__all__ = ["REQUEST_ID", "Access", "Watching", "build_app", "server_settings"]
