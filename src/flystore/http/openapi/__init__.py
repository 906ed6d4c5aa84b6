"""The OpenAPI document of all routes: one description, next to the routes, by family of routes.

Served at ``/openapi.json`` and for people at ``/docs``; kept in ``docs/reference/openapi.json``, where a test compares
it. ``python -m flystore.http.openapi`` prints it. A test fails if a route of the application is not in it.
"""

from typing import Any

from . import assets, browse, buffers, feed, nodes, runs, service, zarr
from .parts import JSON, UNCHANGED, refusal_components
from .schemas import schemas

__all__ = ["document"]

_FAMILIES = {
    "service": service,
    "browse": browse,
    "data": buffers,
    "nodes": nodes,
    "files": assets,
    "runs": runs,
    "feed": feed,
    "zarr": zarr,
}


def document(root_path: str = "") -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    root_path : str
        Where the service lies on its host, without a trailing slash.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flystore",
            "version": "1",
            "description": "Tiled's HTTP protocol 0.2.20 and routes beyond it. The version is that of the address.",
        },
        "servers": [{"url": root_path or "/"}],
        "tags": [{"name": name, "description": (family.__doc__ or "").strip()} for name, family in _FAMILIES.items()],
        "paths": _paths(),
        "components": {
            "schemas": schemas(),
            "responses": refusal_components(),
            "securitySchemes": {
                "header": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Apikey SECRET`",
                },
                "query": {"type": "apiKey", "in": "query", "name": "api_key"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "tiled_api_key"},
            },
        },
    }


def _paths() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, family in _FAMILIES.items():
        for path, methods in family.PATHS.items():
            for method, described in methods.items():
                answers = described["responses"]
                if method == "get" and JSON in answers.get("200", {}).get("content", {}):
                    # As `flystore.http.caching` does for all records.
                    answers = {**answers, **{str(status): answer for status, answer in UNCHANGED.items()}}
                found.setdefault(path, {})[method] = {"tags": [name], **described, "responses": answers}
    return found
