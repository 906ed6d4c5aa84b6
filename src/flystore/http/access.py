"""Who may do what: one API key for a single-user service, anonymous reading if the operator says so.

Credentials are looked for in the order of the protocol's section 13.2: query, header, cookie. A bad
one is refused even where anonymous reading is allowed, so that a mistyped key is noticed.
"""

import hashlib
import hmac

import msgspec
from starlette.requests import HTTPConnection

from flystore.model.errors import InvalidRequest, NotPermitted, Unauthenticated

READ = frozenset({"read:metadata", "read:data"})
ALL = READ | {
    "create:node",
    "write:metadata",
    "write:data",
    "register",
    "delete:node",
    "delete:revision",
    "metrics",
}


KEY_TO_KEEP = "flystore.key_to_keep"
"""Key in a request's scope of an API key that came in the URL: a browser is to send it as a cookie from now on."""


_HELD = "flystore.scopes"


class Access(msgspec.Struct, frozen=True):
    """What this service lets callers do.

    Attributes
    ----------
    key_digest : bytes
        SHA-256 of the one key; the key itself is not kept.
    public : bool
        Whether anyone may read without a key.
    """

    key_digest: bytes
    public: bool = False

    @classmethod
    def of(cls, api_key: str, *, public: bool = False) -> "Access":
        return cls(_digest(api_key), public)

    def scopes(self, request: HTTPConnection) -> frozenset[str]:
        """Return what the caller of `request` may do.

        Raises
        ------
        Unauthenticated
            If it brings a wrong key.
        InvalidRequest
            If its Authorization header makes no sense.
        """
        key = _key_of(request)
        if key is None:
            return READ if self.public else frozenset()
        if not hmac.compare_digest(_digest(key), self.key_digest):
            raise Unauthenticated(
                "Invalid API key. Pass the key that the service was started with, or that it printed.",
                detail="Invalid API key",
            )
        if _key_in_query(request) is not None:
            request.scope[KEY_TO_KEEP] = key
        return ALL

    def knows(self, key: str) -> bool:
        """Return whether `key` is the one of this service."""
        return hmac.compare_digest(_digest(key), self.key_digest)

    def require(self, request: HTTPConnection, *needed: str) -> None:
        """Let the request pass if its caller has every scope in `needed`.

        Raises
        ------
        Unauthenticated, NotPermitted
        """
        held = request.scope.get(_HELD)
        if held is None:  # a route that hands on to another one has asked already
            held = request.scope[_HELD] = self.scopes(request)
        if held.issuperset(needed):
            return
        detail = f"Not enough permissions. Requires scopes {list(needed)}. Request had scopes {sorted(held)}"
        if held:
            raise NotPermitted(f"{detail}. Pass an API key.", needed=list(needed), detail=detail, status=401)
        raise Unauthenticated(f"{detail}. Pass an API key.", needed=list(needed), detail=detail)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key_in_query(request: HTTPConnection) -> str | None:
    text: bytes = request.scope["query_string"]
    if b"api_key" not in text and b"%" not in text:
        return None  # as in most requests: nothing is parsed for it
    found: str | None = request.query_params.get("api_key")
    return found


def _key_of(request: HTTPConnection) -> str | None:
    query = _key_in_query(request)
    if query is not None:
        return query
    header = request.headers.get("authorization")
    if header is not None:
        scheme, _, value = header.partition(" ")
        if scheme.lower() == "apikey" and value.strip():
            return value.strip()
        if scheme.lower() == "bearer":
            raise Unauthenticated("This service has no tokens; authenticate with an API key.")
        raise InvalidRequest("the Authorization header is not understood; it must be 'Apikey SECRET'", status=400)
    return request.cookies.get("tiled_api_key")
