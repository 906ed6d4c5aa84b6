"""What people type as the address of a service, and what is meant by it."""

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from flystore.model.errors import InvalidRequest

_API = "/api/v1"
_KEY_VARIABLES = ("FLYSTORE_API_KEY", "TILED_API_KEY")


class ServiceAddress(NamedTuple):
    """Where a service is and which of its nodes is meant.

    Attributes
    ----------
    base_url : str
        Without ``/api/v1`` and without a trailing slash: ``http://host:8000`` or, behind a proxy,
        ``https://host/data``.
    path : tuple of str
        Keys of the node; empty means the root.
    api_key : str or None
        The key written into the URL, None if there was none.
    """

    base_url: str
    path: tuple[str, ...]
    api_key: str | None

    @property
    def is_loopback(self) -> bool:
        """Whether the service is on this machine, as far as its name tells."""
        host = urlsplit(self.base_url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")


def parse_address(url: str) -> ServiceAddress:
    """Take apart a URL as a person typed it.

    Parameters
    ----------
    url : str
        ``http://host:8000``, with or without ``/api/v1`` or ``/api/v1/metadata/a/b``, with or without
        ``?api_key=SECRET``. Without a scheme http is meant.

    Raises
    ------
    InvalidRequest
        If it names no host, another scheme than http or https, or a port that is no port.
    """
    typed = url.strip()
    if "://" not in typed:
        typed = f"http://{typed}"
    try:
        parts = urlsplit(typed)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"{url!r} is not the URL of a service: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise InvalidRequest(
            f"{url!r} has the scheme {parts.scheme!r}; a service is reached by http:// or https://. "
            "To open a directory without a service, use open_store(DIRECTORY)."
        )
    if not host:
        raise InvalidRequest(f"{url!r} names no host; write it like http://localhost:8000")
    prefix, found, rest = parts.path.partition(_API)
    if found and rest and not rest.startswith("/"):
        raise InvalidRequest(f"{url!r}: after {_API} there must be a slash or nothing")
    segments = tuple(unquote(segment) for segment in rest.split("/") if segment)
    if segments and segments[0] != "metadata":
        raise InvalidRequest(
            f"{url!r} is the address of data or of another route; a node's address is …{_API}/metadata/<path>"
        )
    keys = [value for name, value in parse_qsl(parts.query) if name == "api_key"]
    shown_host = f"[{host}]" if ":" in host else host
    authority = shown_host if port is None else f"{shown_host}:{port}"
    base = f"{parts.scheme}://{authority}{(prefix if found else parts.path).rstrip('/')}"
    return ServiceAddress(base, segments[1:], keys[-1] if keys else None)


def api_key_from_environment(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the key in ``FLYSTORE_API_KEY``, else in ``TILED_API_KEY``, else None; empty counts as unset."""
    environ = os.environ if environ is None else environ
    for name in _KEY_VARIABLES:
        if environ.get(name):
            return environ[name]
    return None
