"""`open_store`: service, application and client on one directory."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flystore.client import from_transport
from flystore.model.errors import Misconfigured
from flystore.wire import InProcessTransport

from ._parts import needing_server_parts

if TYPE_CHECKING:
    from flystore.service import Service


def open_store(
    directory: Path | str,
    *,
    read: Sequence[Path | str] = (),
    maps: Sequence[str] = (),
    create: bool = True,
    storage: str | None = None,
) -> Any:
    """Open a directory as ``flystore serve`` would, in this process, and return a client of it.

    Parameters
    ----------
    directory : Path or str
        Where the catalogue and the data are kept; made if it does not exist, migrated if it is older.
    read : sequence of Path or str
        Directories, or places in buckets (``s3://bucket/prefix``), whose files may be read: where detectors
        write. Empty means that only what the store itself keeps can be read.
    maps : sequence of str
        ``FROM=TO``: what writers call a place, and what this machine calls it.
    create : bool
        Make a store where there is none; False raises.
    storage : str, optional
        ``s3://bucket/prefix`` for arrays and tables, reached by the ``AWS_…`` variables; None: the directory.

    Returns
    -------
    client
        What `from_uri` returns; it may do everything. It owns the store: use it in a ``with`` block or
        call its `close`. A `RunWriter` takes it in place of a URL.

    Raises
    ------
    Misconfigured
        If the directory cannot be written or lies on a network file system, a root is no directory, a map
        makes no sense, the bucket refuses or is another store's, or the server parts are not installed; says what
        to do.
    Unavailable
        If the bucket does not answer.

    Notes
    -----
    Several processes of one machine, ``flystore serve`` among them, may have one directory open: what one
    has stored the others see at their next request. Their writes take turns, one transaction at a time; a
    write that had no turn within 30 s raises `Unavailable`, and a RunWriter tries again.

    Examples
    --------
    >>> with open_store("~/data/store", read=["/data"]) as store:  # doctest: +SKIP
    ...     RE.subscribe(RunWriter(store))
    ...     (uid,) = RE(bp.count([det], 10))
    ...     store[uid]["primary"].read()
    """
    with needing_server_parts("open_store"):
        from flystore.http import Access, build_app
        from flystore.service import Service
        from flystore.storage import PathMap, read_root
    place = _place(directory)
    service = Service.open(
        place,
        read=[root.expanduser() if isinstance(root, Path) else root for root in map(read_root, read)],
        maps=[PathMap.parse(text) for text in maps],
        create=create,
        storage=storage,
    )
    key = secrets.token_hex(32)  # nobody else gets it: there is no socket to send it to
    try:
        transport = _StoreTransport(build_app(service, Access.of(key)), key, place, service)
    except BaseException:
        service.close()
        raise
    try:
        return from_transport(transport)
    except BaseException:
        transport.close()
        raise


def _place(directory: Path | str) -> Path:
    if not str(directory):
        raise Misconfigured("open_store was given an empty directory name; name one, '.' is the current one")
    if "://" in str(directory):
        raise Misconfigured(
            f"{str(directory)!r} is an address and no directory; to reach a running service use from_uri"
        )
    return Path(directory).expanduser().absolute()


class _StoreTransport(InProcessTransport):
    """A transport that owns the service behind it."""

    def __init__(self, app: Any, api_key: str, directory: Path, service: "Service") -> None:
        # RunWriter marks its journals with `where`: the directory, so that the next process finds them.
        super().__init__(app, api_key, where=str(directory))
        self._service = service

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._service.close()
