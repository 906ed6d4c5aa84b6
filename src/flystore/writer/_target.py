"""Where a RunWriter ships to: what its first argument means."""

import os
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from flystore.model.errors import FlystoreError, InvalidRequest, Unavailable
from flystore.wire import HttpTransport, Transport, parse_address

_THIS_HOST = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "https": 443}


class Target(NamedTuple):
    """A service to ship to.

    Attributes
    ----------
    name : str
        What tells it from others, without any key: its base URL, or the directory of a store. Journals
        are marked with it.
    transport : Transport
    owned : bool
        True if the transport was made here and is to be closed here.
    problem : str or None
        Why nothing can ever be sent, for example a URL that is none.
    """

    name: str
    transport: Transport
    owned: bool
    problem: str | None = None


def target_of(where: Any, api_key: str | None) -> Target:
    """Return where `where` leads. A URL that makes no sense is no error here: documents must be kept.

    Raises
    ------
    InvalidRequest
        If `where` is neither a URL nor anything with a transport, or comes with a key it does not take.
    """
    if isinstance(where, str):
        try:
            transport = HttpTransport(where, api_key)
        except FlystoreError as error:
            shown = _without_secrets(where)
            problem = str(error).replace(where, shown)
            return Target(shown, Nowhere(shown, problem), True, problem)
        return Target(transport.base_url, transport, True)
    found = getattr(where, "transport", where)
    if not (hasattr(found, "request") and hasattr(found, "where")):
        raise InvalidRequest(
            f"RunWriter takes the URL of a service, a client from from_uri() or a store from open_store(), "
            f"not {type(where).__name__}"
        )
    if api_key is not None:
        raise InvalidRequest("api_key goes with a URL; a client or a store has its own")
    return Target(str(found.where), found, False)


def _without_secrets(url: str) -> str:
    """Return a URL that makes no sense as far as it is safe to show and to write down."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else parts.path
    except ValueError:
        shown = url.partition("?")[0].rpartition("@")[2]
    return shown or "(no address)"


def same_target(one: str, other: str) -> bool:
    """Return whether two targets, as journals are marked with them, are the same service.

    The ways to write this host count as one, as do a default port written or left out, a slash at the end
    and the API's own path. Of directories, symbolic links are followed.
    """
    return one == other or _plain(one) == _plain(other)


def is_local(target: str) -> bool:
    """Return whether a target means something else on each host: a loopback address, or a directory."""
    plain = _plain(target)
    return plain[0] == "directory" or (len(plain) > 1 and plain[1] == "localhost")


def _plain(target: str) -> tuple[str, ...]:
    if "://" not in target:
        return ("directory", os.path.realpath(target)) if os.path.isabs(target) else ("", target)
    try:
        parts = urlsplit(parse_address(target).base_url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except (FlystoreError, ValueError):
        return "", target
    host = "localhost" if host in _THIS_HOST else host
    return parts.scheme, host, str(port or _PORTS.get(parts.scheme)), parts.path.rstrip("/")


class Nowhere:
    """A transport to an address that is none: every request fails, saying why."""

    def __init__(self, where: str, reason: str) -> None:
        self.where = self.base_url = where
        self._reason = reason

    def _fail(self) -> NoReturn:
        raise Unavailable(self._reason)

    def request(self, *_: Any, **__: Any) -> NoReturn:
        self._fail()

    def readinto(self, *_: Any, **__: Any) -> NoReturn:
        self._fail()

    def stream(self, *_: Any, **__: Any) -> NoReturn:
        self._fail()

    def close(self) -> None:
        """Nothing is open."""
