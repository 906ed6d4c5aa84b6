"""A directory opened in this process: the service and its client, with no server between them.

What is promised: everything is the service's own (the same routes, checks and errors, only no socket), so
what works here works over HTTP and the other way round. The directory is one that ``flystore serve`` can
be started with, before or after.
"""

from typing import TYPE_CHECKING, Any

from ._parts import needing_server_parts

if TYPE_CHECKING:
    from ._store import open_store

__all__ = ["needing_server_parts", "open_store"]


def __getattr__(name: str) -> Any:
    if name == "open_store":  # not before it is used: a service has no use of the client
        from ._store import open_store

        return open_store
    raise AttributeError(f"module 'flystore.embedded' has no attribute {name!r}")
