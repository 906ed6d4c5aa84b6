"""A directory opened in this process: the service and its client, with no server between them.

What is promised: everything is the service's own (the same routes, checks and errors, only no socket), so
what works here works over HTTP and the other way round. The directory is one that ``flystore serve`` can
be started with, before or after.
"""

from ._parts import needing_server_parts
from ._store import open_store

__all__ = ["needing_server_parts", "open_store"]
