"""From an address to a node."""

from typing import Any

from flystore.wire import HttpTransport, Transport, parse_address

from ._node import node_of
from ._session import Session


def from_uri(uri: str, api_key: str | None = None, *, timeout: float | None = None) -> Any:
    """Connect to a service and return its root, or the node whose address is given.

    Parameters
    ----------
    uri : str
        ``http://localhost:8000``, or a node's address ``http://…/api/v1/metadata/<path>``. A key may be
        in it: ``?api_key=…``.
    api_key : str, optional
        Wins over one in the URI; without either ``FLYSTORE_API_KEY`` and ``TILED_API_KEY`` are looked at.
    timeout : float, optional
        Seconds without a byte from the service after which a request fails; None means 120.

    Returns
    -------
    CatalogOfRuns, Container, Run, Stream, Array, Table …
        What is at that address; the root of a flystore service is a `CatalogOfRuns`.

    Raises
    ------
    Unavailable
        If the service cannot be reached.
    Unauthenticated
        If it wants a key, or another one.
    NotFound
        If it has no such node.
    InvalidRequest
        If `uri` is not the address of a service.
    """
    address = parse_address(uri)
    key = api_key or address.api_key
    transport = (
        HttpTransport(address.base_url, key)
        if timeout is None
        else HttpTransport(address.base_url, key, timeout=timeout)
    )
    try:
        return from_transport(transport, address.path)
    except BaseException:
        transport.close()
        raise


def from_transport(transport: Transport, path: tuple[str, ...] = ()) -> Any:
    """Return the node at `path` of the service that `transport` reaches; the empty path is the root."""
    session = Session(transport)
    return node_of(session, session.item(path))
