"""One service as the client sees it: records, pages, and what a resource's answer holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from flystore.model.errors import FlystoreError, InvalidRequest, Unavailable
from flystore.model.structures import Family, Spec
from flystore.wire import MSGPACK_MIMETYPE, Params, Transport, api_path

LARGEST_PAGE = 300
"""What the protocol allows in one page."""

Path = tuple[str, ...]


class Item(msgspec.Struct, frozen=True):
    """A resource as the service describes it.

    Attributes
    ----------
    path : tuple of str
        From the root; empty for the root itself.
    structure : dict or None
        The wire form; None if it was not asked for.
    """

    path: Path
    family: Family
    specs: tuple[Spec, ...]
    metadata: dict[str, Any]
    structure: dict[str, Any] | None

    @property
    def key(self) -> str:
        return self.path[-1] if self.path else ""

    def has_spec(self, name: str) -> bool:
        return any(spec.name == name for spec in self.specs)


def item_from_wire(resource: Any) -> Item:
    """Return the item in a resource object.

    Raises
    ------
    Unavailable
        If it is no resource object: something other than the service answered.
    """
    try:
        attributes = resource["attributes"]
        segments = (*attributes["ancestors"], resource["id"])
        family = attributes["structure_family"]
        return Item(
            tuple(segment for segment in segments if segment),
            Family(family),
            tuple(Spec(spec["name"], spec.get("version")) for spec in attributes.get("specs") or ()),
            attributes.get("metadata") or {},
            attributes.get("structure"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"the service describes a node in a way this client does not know: {error!r}") from error


class Session:
    """Requests that several kinds of node share.

    Parameters
    ----------
    transport : Transport
        Closed with the session.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def record(
        self,
        path: str,
        params: Params | None = None,
        *,
        method: str = "GET",
        body: Any = None,
    ) -> Any:
        """Return the record that a route answers with."""
        headers = {"Accept": MSGPACK_MIMETYPE}
        payload = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            payload = msgspec.json.encode(body)
        return self.transport.request(method, path, params=params, headers=headers, body=payload).decode()

    def item(self, path: Path) -> Item:
        """Return the item at `path`.

        Raises
        ------
        NotFound
            If nothing is there, or the caller may not see it.
        """
        for segment in path:
            if segment in (".", ".."):
                raise InvalidRequest(f"{segment!r} cannot be a key")
        answer = self.record(node_route("metadata", path))
        return item_from_wire(_member(answer, "data"))

    def search(
        self, path: Path, params: Sequence[tuple[str, Any]], *, offset: int = 0, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the resource objects of a container's children, page after page.

        Parameters
        ----------
        params
            Filters, sorting and fields; sent with every page.
        limit : int, optional
            None means all that there are.
        """
        if limit is not None and limit <= 0:
            return
        size = LARGEST_PAGE if limit is None else min(limit, LARGEST_PAGE)
        page: list[tuple[str, Any]] = [("page[offset]", offset), ("page[limit]", size)]
        left = limit
        while True:
            answer = self.record(node_route("search", path), [*page, *params])
            for resource in _member(answer, "data"):
                yield resource
                if left is not None:
                    left -= 1
                    if left == 0:
                        return
            link = (answer.get("links") or {}).get("next")
            if not link:
                return
            # The link's host may be a name that only the service's side of a proxy knows.
            page = [pair for pair in parse_qsl(urlsplit(link).query) if pair[0].startswith("page[")]

    def count(self, path: Path, params: Sequence[tuple[str, Any]]) -> int:
        """Return how many children a container has under the filters in `params`."""
        answer = self.record(node_route("search", path), [*params, ("fields", "count")])
        return int(_member(answer, "meta")["count"])

    def close(self) -> None:
        self.transport.close()


def node_route(verb: str, path: Path) -> str:
    """Return a route's path for a node; the root's ends with a slash, as the protocol wants it."""
    return api_path(verb, *(path or ("",)))


def _member(answer: Any, name: str) -> Any:
    if not isinstance(answer, Mapping) or name not in answer:
        raise Unavailable(f"the answer has no {name!r}; is this a flystore or Tiled service?")
    return answer[name]


def is_missing(error: FlystoreError) -> bool:
    """Return whether an error means that there is nothing there, and not that a file is away."""
    return error.kind == "not-found"
