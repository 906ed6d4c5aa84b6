"""The socket of the service, bound and listening before anything else is done."""

import errno
import socket

from flystore.model.errors import Misconfigured

BACKLOG = 2048
"""Connections that may wait; they do while a large store is migrated at start."""


def listener_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at `host` and `port`.

    Parameters
    ----------
    host : str
        Name or address of this machine; ``0.0.0.0`` is every network.
    port : int
        0 takes a free one; `socket.socket.getsockname` says which.

    Raises
    ------
    Misconfigured
        If the port is taken or not permitted, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise _no_address(host) from error
    listener = socket.socket(family, kind, protocol)
    try:
        # Otherwise the port stays taken for a minute after the last service ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from error
    return listener


def _explained(error: OSError, host: str, port: int) -> Misconfigured:
    if error.errno == errno.EADDRINUSE:
        return Misconfigured(
            f"port {port} at {host} is taken by another program; end that one, or choose another with "
            "--port (0 takes a free one)",
            port=port,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Misconfigured(
            f"port {port} needs rights that this user does not have; choose one from 1024 on with --port",
            port=port,
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return _no_address(host)
    return Misconfigured(
        f"the service cannot listen at {host}, port {port}: {error.strerror}; choose others with --host and --port"
    )


def _no_address(host: str) -> Misconfigured:
    return Misconfigured(
        f"{host!r} is no address of this machine; --host 127.0.0.1 is for this machine alone, 0.0.0.0 for "
        "every network it is in",
        host=host,
    )
