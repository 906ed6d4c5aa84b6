"""Routes about the service itself (protocol section 14)."""

from typing import Any

from .parts import JSON, OBJECT, TEXT, content, fixed, operation

_READY = fixed({"status": {"enum": ["ready"]}})
_NOT_READY = fixed({"status": {"enum": ["read-only", "not-ready"]}, "reason": TEXT})
_METRICS = {200: {"description": "Prometheus' text format 0.0.4.", "content": {"text/plain": {}}}}
_ALIVE = {200: {"description": "It runs.", "content": content(fixed({"status": {"enum": ["alive"]}}), JSON)}}
_FOR_METRICS: dict[str, Any] = {"scopes": ("metrics",), "refusals": (400, 401)}
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
            "Say whether the catalogue answers and the storage can be written",
            {
                200: {"description": "Both, as of the last second.", "content": content(_READY, JSON)},
                503: {"description": "read-only: restart it.", "content": content(_NOT_READY, JSON)},
            },
        )
    },
    "/healthz/live": {"get": operation("alive", "Say that the process runs", _ALIVE)},
    "/metrics": {"get": operation("metrics", "Tell what this process counted", _METRICS, **_FOR_METRICS)},
    "/api/v1/metrics": {"get": operation("api_metrics", "Tell what this process counted", _METRICS, **_FOR_METRICS)},
    "/openapi.json": {
        "get": operation(
            "openapi", "This document", {200: {"description": "OpenAPI 3.1.", "content": content(OBJECT, JSON)}}
        )
    },
    "/docs": {"get": operation("docs", "This document as a page to read and try routes", _PAGE)},
    "/api/v1/docs": {"get": operation("api_docs", "This document as a page to read and try routes", _PAGE)},
}
