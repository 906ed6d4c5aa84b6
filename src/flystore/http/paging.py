"""Answers that are a page of something: the envelope and its links."""

from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from .parameters import PageRequest
from .resources import base_url, path_of, url_path


def paged(
    request: Request, route: str, wanted: PageRequest, data: list[Any], count: int, onward: dict[str, int]
) -> dict[str, Any]:
    """Return the envelope of a page; `onward` has the page parameters of the next one, empty at the end.

    The links carry page parameters only: the client adds its filters and sorting again.
    """
    here = f"{base_url(request)}/{route}/{url_path(path_of(request))}"
    limit = wanted.limit
    own = {"page[limit]": limit}
    if wanted.cursor is not None:
        own = {"page[cursor]": wanted.cursor, **own}
    if wanted.offset is not None:
        own = {"page[offset]": wanted.offset, **own}
    if limit == 0:
        onward = {}  # who follows pages of nothing never comes to an end: `keys().head(0)` of the stock client
    links = {
        "self": f"{here}?{_query(own)}",
        "first": f"{here}?{_query({'page[limit]': limit})}",
        "next": f"{here}?{_query({**onward, 'page[limit]': limit})}" if onward else None,
    }
    return {"data": data, "error": None, "links": links, "meta": {"count": count}}


def _query(parameters: dict[str, Any]) -> str:
    return urlencode(parameters, safe="[]")
