"""Errors as answers: one table from `kind` to status, one body for all of them.

The body is ``{"detail": text, "error": {"kind", "message", "facts"}}``: `detail` is what clients of
the protocol show, `error` is for programs. The stock client repeats any 5xx for 45 s, so a
caller's fault is always 4xx.
"""

import logging
import secrets

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flystore.model import errors
from flystore.model.errors import FlystoreError

from .measuring import KIND
from .negotiation import json_response
from .resources import base_url

log = logging.getLogger("flystore.http")

_STATUS: dict[type[FlystoreError], int] = {
    errors.NotFound: 404,
    errors.MissingAsset: 422,
    errors.InvalidRequest: 422,
    errors.TooLarge: 400,
    errors.Unsupported: 406,
    errors.Conflict: 409,
    errors.Unauthenticated: 401,
    errors.NotPermitted: 403,
    errors.OutsideRoots: 403,
    errors.Unreadable: 422,
    errors.NotReady: 503,
    errors.Unavailable: 503,
    errors.DiskFull: 507,
    errors.JournalFull: 507,
    errors.Damaged: 500,
    FlystoreError: 500,
}
"""The nearest class in an error's ancestry decides."""


def status_of(error: FlystoreError) -> int:
    for cls in type(error).__mro__:
        if cls in _STATUS:
            return _STATUS[cls]
    return 500


def answer(error: FlystoreError, root: str | None = None) -> Response:
    """Return the answer to a request that failed with `error`.

    Its facts ``status`` and ``detail`` are for here: another status, and what clients expect to be shown.
    """
    status = error.facts.get("status") or status_of(error)
    facts = {key: value for key, value in error.facts.items() if key not in ("status", "detail")}
    headers = {}
    if status == 503:
        headers["Retry-After"] = "1"
    if status == 408:
        headers["Connection"] = "close"  # the rest of the body may never come
    if status == 401:
        needed = error.facts.get("needed")
        headers["WWW-Authenticate"] = f'Bearer scope="{" ".join(needed)}"' if needed else "Bearer"
        if root is not None:
            headers["X-Tiled-Root"] = root
    content = {
        "detail": error.facts.get("detail", error.message),
        "error": {"kind": error.kind, "message": error.message, "facts": facts},
    }
    return json_response(content, status, headers)


def on_exception(request: Request, error: Exception) -> Response:
    """Return the answer to a request that raised `error`, whatever it is; its kind is noted for the log."""
    if isinstance(error, FlystoreError):
        request.scope[KIND] = error.kind
        return answer(error, base_url(request))
    if isinstance(error, HTTPException):
        return _refused(request, error)
    request.scope[KIND] = "defect"
    return _unexpected(request, error)


def _refused(request: Request, error: HTTPException) -> Response:
    """Answer what the router itself refuses: unknown route, wrong method."""
    kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "invalid-request")
    message = error.detail
    if error.status_code == 404:
        message = f"there is no route {request.url.path}"
    content = {"detail": message, "error": {"kind": kind, "message": message, "facts": {}}}
    return json_response(content, error.status_code, dict(error.headers or {}))


def _unexpected(request: Request, error: Exception) -> Response:
    """Answer a defect of ours: details go to the log under an id that the caller can quote."""
    reference = request.scope.get("flystore.request_id") or secrets.token_hex(8)
    log.error("request %s: %s %s failed", reference, request.method, request.url.path, exc_info=error)
    message = f"Internal server error; the operator finds it in the log under {reference}."
    return json_response(
        {
            "detail": message,
            "error": {"kind": "defect", "message": message, "facts": {"request_id": reference}},
        },
        500,
    )
