"""Query parameters with bounds: each is read once, here, and refused in words."""

import re
from typing import NamedTuple

from starlette.requests import HTTPConnection, Request

from flystore.model.errors import InvalidRequest, TooLarge, Unsupported
from flystore.model.queries import (
    AccessTags,
    FullText,
    In,
    KeysFilter,
    Like,
    NotIn,
    Query,
    Regex,
    SortKey,
    Specs,
    parse_filters,
)
from flystore.service import Limits

DEFAULT_PAGE, LARGEST_PAGE = 100, 300
_SORT = re.compile(r"^[+-]?[A-Za-z0-9_.]*$")


def integer(
    request: HTTPConnection,
    name: str,
    default: int | None = None,
    *,
    least: int = 0,
    most: int = 2**62,
) -> int | None:
    """Return an integer parameter.

    Raises
    ------
    InvalidRequest
        If it is no integer between `least` and `most`.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?\d{1,19}", text):
        raise InvalidRequest(f"{name}={text[:40]!r} is not an integer")
    value = int(text)
    if not least <= value <= most:
        raise InvalidRequest(f"{name}={value} must lie between {least} and {most}")
    return value


def needed_integer(request: Request, name: str) -> int:
    value = integer(request, name)
    if value is None:
        raise InvalidRequest(f"the parameter {name} is missing")
    return value


def flag(request: Request, name: str, default: bool) -> bool:
    text = request.query_params.get(name)
    if text is None:
        return default
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise InvalidRequest(f"{name}={text[:40]!r} is neither true nor false")


def integers(text: str, name: str) -> tuple[int, ...]:
    """Return ``"3,4"`` as numbers; empty is ``()``."""
    if not re.fullmatch(r"(\d{1,19}(,\d{1,19}){0,31})?", text):
        raise InvalidRequest(f"{name}={text[:60]!r} is not a list of numbers like 3,4")
    return tuple(int(part) for part in text.split(",")) if text else ()


class PageRequest(NamedTuple):
    """Which children are wanted, in which order."""

    queries: tuple[Query, ...]
    sort: tuple[SortKey, ...]
    offset: int | None
    cursor: int | None
    limit: int


def page_request(request: Request) -> PageRequest:
    offset = integer(request, "page[offset]")
    cursor = integer(request, "page[cursor]")
    if offset is not None and cursor is not None:
        raise InvalidRequest("Cannot specify both page[cursor] and page[offset]", status=400)
    limit = integer(request, "page[limit]", DEFAULT_PAGE, most=LARGEST_PAGE)
    assert limit is not None
    queries = tuple(parse_filters(request.query_params.multi_items()))
    sort = sort_keys(request)
    _require_few(request, queries, sort)
    return PageRequest(queries, sort, offset, cursor, limit)


def _require_few(request: Request, queries: tuple[Query, ...], sort: tuple[SortKey, ...]) -> None:
    """Refuse a question that would take a database longer than anybody waits, or that it cannot parse."""
    limits: Limits = request.app.state.limits
    terms, values = len(queries) + len(sort) + len(request.query_params.getlist("metadata")), 0
    for query in queries:
        match query:
            case FullText():
                terms += len(query.words)
            case Specs():
                terms += len(query.include) + len(query.exclude)
            case In() | NotIn():
                values += len(query.value)
            case KeysFilter():
                values += len(query.keys)
            case AccessTags():
                values += len(query.tags)
            case Like():
                terms += len(query.pieces)
            case Regex():
                raise Unsupported("search by regex is not offered; use like or fulltext", status=400)
    for found, limit, what in (
        (terms, limits.query_terms, "filters, words, specs, sort keys and metadata keys"),
        (values, limits.query_values, "values in the lists of its filters"),
    ):
        if found > limit:
            raise TooLarge(f"this question has {found} {what}; this service answers {limit} at once", limit=limit)


def sort_keys(request: Request) -> tuple[SortKey, ...]:
    """Return the sort keys. An empty key or a bare ``+``/``-`` is insertion order, legal only last."""
    found: list[SortKey] = []
    for text in request.query_params.getlist("sort"):
        if not _SORT.fullmatch(text):
            raise InvalidRequest(f"sort={text[:60]!r} is no key with an optional + or - in front")
        if text == "":
            continue
        descending = text.startswith("-")
        key = text.lstrip("+-")
        if found and found[-1].key == "":
            raise InvalidRequest("The default sorting key must come last.", status=400)
        if key in {earlier.key for earlier in found}:
            raise InvalidRequest(f"Duplicate sorting key: {key}", status=400)
        found.append(SortKey(key, descending))
    return tuple(found)
