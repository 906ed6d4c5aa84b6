"""Routes about the service itself (protocol section 14)."""

from typing import Any

from .parts import JSON, OBJECT, TEXT, content, fixed, operation

_READY = fixed({"status": {"enum": ["ready", "read-only"]}, "reason": TEXT}, "reason")
_PAGE = {200: {"description": "A page for people.", "content": {"text/html": {}}}}

PATHS: dict[str, dict[str, Any]] = {
    "/": {
        "get": operation(
            "home", "Greet whoever opens the address", {200: {"description": "Text.", "content": {"text/plain": {}}}}
        )
    },
    "/healthz": {
        "get": operation(
            "health",
            "Say whether the service stores what it is sent",
            {
                200: {"description": "It does.", "content": content(_READY, JSON)},
                503: {"description": "It only reads: restart it.", "content": content(_READY, JSON)},
            },
        )
    },
    "/openapi.json": {
        "get": operation(
            "openapi", "This document", {200: {"description": "OpenAPI 3.1.", "content": content(OBJECT, JSON)}}
        )
    },
    "/docs": {"get": operation("docs", "This document as a page to read and try routes", _PAGE)},
    "/api/v1/docs": {"get": operation("api_docs", "This document as a page to read and try routes", _PAGE)},
}
