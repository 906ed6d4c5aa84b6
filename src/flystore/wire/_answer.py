"""Answers, and how a failed one becomes an error."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from flystore.model import errors
from flystore.model.errors import FlystoreError, Unavailable, error_of_kind

MSGPACK_MIMETYPE = "application/x-msgpack"

Body = bytes | bytearray


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes
    ----------
    status : int
        Below 400; failures are raised.
    headers : Mapping
        Names in lower case.
    body : bytes or bytearray
        Decompressed.
    """

    status: int
    headers: Mapping[str, str]
    body: Body

    def decode(self) -> Any:
        """Return the record in the body, from msgpack or JSON as its Content-Type says.

        Raises
        ------
        Unavailable
            If it is neither: something other than the service answered.
        """
        mimetype = self.headers.get("content-type", "").split(";")[0].strip()
        try:
            if mimetype == MSGPACK_MIMETYPE:
                return msgspec.msgpack.decode(self.body)
            if mimetype in ("application/json", ""):
                return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"an answer labelled {mimetype} does not decode: {error}") from error
        raise Unavailable(
            f"an answer of type {mimetype or 'unknown'} came where a record was expected; is the URL "
            "that of a flystore or Tiled service, and not of a web page or a proxy's log-in?",
            content_type=mimetype,
        )


def api_path(*segments: str) -> str:
    """Return ``/api/v1/<segment>/…`` with each segment percent-encoded; none gives ``/api/v1/``."""
    return "/api/v1/" + "/".join(quote(segment, safe="") for segment in segments)


def encode_params(params: Mapping[str, Any] | Iterable[tuple[str, Any]] | None) -> str:
    """Return a query string without its question mark; lists repeat the name, None is left out."""
    if not params:
        return ""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items() if isinstance(params, Mapping) else params:
        values = value if isinstance(value, (list, tuple)) else (value,)
        pairs.extend((name, _text(one)) for one in values if one is not None)
    return urlencode(pairs, quote_via=quote, safe="[],:")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_BY_STATUS: dict[int, type[FlystoreError]] = {
    401: errors.Unauthenticated,
    403: errors.NotPermitted,
    404: errors.NotFound,
    405: errors.Unsupported,
    406: errors.Unsupported,
    409: errors.Conflict,
    410: errors.NotFound,
    412: errors.Conflict,
    413: errors.TooLarge,
    415: errors.Unsupported,
    416: errors.OutOfBounds,
    429: errors.Unavailable,
}


def raise_for_error(status: int, headers: Mapping[str, str], body: Body, what: str) -> None:
    """Raise the error that an answer reports; return if it reports none.

    Parameters
    ----------
    what : str
        The request in words, for answers that say nothing themselves: ``GET http://…``.
    """
    if status < 400:
        return
    content = _json_object(body)
    reported = content.get("error")
    if isinstance(reported, dict) and isinstance(reported.get("kind"), str):
        facts = reported.get("facts")
        message = str(reported.get("message") or content.get("detail") or "")
        raise error_of_kind(reported["kind"], message, _usable(facts if isinstance(facts, dict) else {}))
    detail = _sentence(content.get("detail")) or body[:200].decode("utf-8", "replace").strip()
    raise _by_status(status, headers)(
        f"{detail or 'no reason given'} ({what} was answered with {status}{_advice(status)})", status=status
    )


def _by_status(status: int, headers: Mapping[str, str]) -> type[FlystoreError]:
    if status == 503 and "retry-after" in headers:
        return errors.NotReady
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return errors.Unavailable if status >= 500 else errors.InvalidRequest


def _advice(status: int) -> str:
    if status == 401:
        return "; pass api_key=…, or set FLYSTORE_API_KEY"
    if status >= 500:
        return "; try again later, or ask whoever runs the service to look into its log"
    return ""


def _json_object(body: Body) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _usable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what cannot be a keyword of the error's constructor."""
    return {name: value for name, value in facts.items() if name not in ("self", "message", "cls")}


def _sentence(detail: Any) -> str:
    """Return a `detail` as text; the protocol's list of validation failures becomes one line."""
    if isinstance(detail, list):
        return "; ".join(_failure(entry) for entry in detail)
    return detail if isinstance(detail, str) else ""


def _failure(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    place = ".".join(str(part) for part in entry.get("loc", ()))
    return f"{place}: {entry.get('msg', 'not valid')}" if place else str(entry.get("msg", "not valid"))
