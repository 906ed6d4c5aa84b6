"""Resource objects and links, with exactly the keys of the protocol's sections 2.2 and 2.5."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.requests import HTTPConnection, Request

from flystore.model.errors import InvalidRequest
from flystore.model.structures import DataSource, Family
from flystore.service import Entry

from .releases import WORDS, Words

if TYPE_CHECKING:
    from .selection import Selection

FIELDS = frozenset(
    {
        "metadata",
        "structure_family",
        "structure",
        "count",
        "sorting",
        "specs",
        "data_sources",
        "access_tags",
        "",
    }
)
EVERYTHING = FIELDS - {""}

_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")
"""What needs no look at the whole URL to be told from its other parts."""

_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")
"""Paths that are the same in a URL; no segment has a slash of its own."""


def base_url(request: Request) -> str:
    """Return the absolute URL of the API as this caller reaches it, without a trailing slash."""
    scope = request.scope
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        host = request.url.netloc
    return f"{scope.get('scheme', 'http')}://{host}{scope.get('root_path', '')}/api/v1"


def segments_of(path: str) -> tuple[str, ...]:
    """Return the segments of a node path; empty ones do not count, since stock clients send ``//run``."""
    return tuple(part for part in path.split("/") if part)


def path_of(request: HTTPConnection) -> tuple[str, ...]:
    return segments_of(request.path_params.get("path", ""))


def url_path(path: tuple[str, ...]) -> str:
    """Return a node path as part of a URL."""
    text = "/".join(path)
    return text if _PLAIN.fullmatch(text) else "/".join(quote(segment, safe="") for segment in path)


def wanted_fields(values: Iterable[str]) -> frozenset[str]:
    """Return the fields asked for; nothing asked means everything, only an empty one means none."""
    asked = frozenset(values)
    if not asked:
        return EVERYTHING
    unknown = asked - FIELDS
    if unknown:
        raise InvalidRequest(f"unknown fields {sorted(unknown)}; there are {sorted(EVERYTHING)}")
    return asked


def links(base: str, path: tuple[str, ...], family: Family, structure: Any) -> dict[str, str]:
    """Return the links of a node. Templates keep literal braces, which clients format."""
    where = url_path(path)
    found = {"self": f"{base}/metadata/{where}"}
    match family:
        case Family.ARRAY | Family.SPARSE:
            axes = ",".join(f"{{{axis}}}" for axis in range(len(structure["shape"]) if structure else 0))
            found["full"] = f"{base}/array/full/{where}"
            found["block"] = f"{base}/array/block/{where}?block={axes}"
        case Family.TABLE:
            found["full"] = f"{base}/table/full/{where}"
            found["partition"] = f"{base}/table/partition/{where}?partition={{index}}"
        case Family.RAGGED:
            axes = ",".join(
                f"{{{axis}}}" for axis, n in enumerate(structure["shape"] if structure else ()) if n is not None
            )
            found["full"] = f"{base}/ragged/full/{where}"
            found["block"] = f"{base}/ragged/block/{where}?block={axes}"
        case Family.AWKWARD:
            found["full"] = f"{base}/awkward/full/{where}"
            found["buffers"] = f"{base}/awkward/buffers/{where}"
        case Family.CONTAINER:
            found["full"] = f"{base}/container/full/{where}"
            found["search"] = f"{base}/search/{where}"
            found["search_deep"] = f"{base}/search-deep/{where}"
    return found


def data_source_to_wire(source: DataSource) -> dict[str, Any]:
    return {
        "id": source.id,
        "structure_family": source.family,
        "structure": source.structure,
        "mimetype": source.mimetype,
        "parameters": source.parameters,
        "properties": source.properties,
        "assets": [
            {
                "id": asset.id,
                "data_uri": asset.data_uri,
                "is_directory": asset.is_directory,
                "size": asset.size,
                "parameter": asset.parameter,
                "num": asset.num,
            }
            for asset in source.assets
        ],
        "management": source.management,
    }


class Rendering:
    """How one request wants its resources: which fields, links or not, a selection of the metadata."""

    def __init__(self, request: Request) -> None:
        query = request.query_params
        self.base = base_url(request)
        self._words: Words | None = request.scope.get(WORDS)
        self.fields = wanted_fields(query.getlist("fields"))
        self.with_links = not _flag(query.get("omit_links"))
        self.with_sources = _flag(query.get("include_data_sources")) or "data_sources" in query.getlist("fields")
        expression = query.get("select_metadata")
        steps = request.app.state.limits.selection_steps
        self.select = None if expression is None else _selection(expression, steps)

    @property
    def keys_only(self) -> bool:
        return self.fields == {""}

    @property
    def is_short(self) -> bool:
        """Whether a resource takes no longer than its node is large: it has no list of files, nothing is evaluated."""
        return not self.with_sources and self.select is None

    def resource(
        self,
        entry: Entry,
        *,
        count: int | None = None,
        sources: list[DataSource] | None = None,
        contents: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the resource object of one entry; what was not asked for is null.

        `contents`: resources of a container's children by key, None where a link in a file leads nowhere.
        """
        want = self.fields
        if self.keys_only:
            link = f"{self.base}/metadata/{url_path(entry.path)}"
            return {
                "id": entry.path[-1] if entry.path else "",
                "attributes": {**_NOTHING, "ancestors": list(entry.path[:-1])},
                "links": {"self": link} if self.with_links else None,
                "meta": None,
            }
        metadata = None
        if "metadata" in want:
            metadata = entry.metadata if self.select is None else {"selected": self.select(entry.metadata)}
        structure = None
        if entry.family is Family.CONTAINER:
            if want & {"structure", "count"}:
                structure = {"contents": contents, "count": count}
        elif "structure" in want:
            structure = entry.structure
        # Clients tell containers from the rest by the family, whatever else they ask for.
        within = entry.virtual or entry.column is not None
        told = entry.family is Family.CONTAINER or "structure_family" in want or count is not None
        attributes = {
            "ancestors": list(entry.path[:-1]),
            "structure_family": entry.family if told else None,
            "specs": [spec.to_wire() for spec in entry.specs] if "specs" in want else None,
            "metadata": metadata,
            "structure": structure,
            "access_tags": list(entry.access_tags) if "access_tags" in want and not within else None,
            "sorting": [{"key": "", "direction": 1}]
            if entry.family is Family.CONTAINER and "sorting" in want and entry.file is None
            else None,
            "data_sources": None if sources is None or entry.virtual else [data_source_to_wire(s) for s in sources],
        }
        return {
            "id": entry.path[-1] if entry.path else "",
            "attributes": attributes if self._words is None else self._words.attributes(attributes),
            "links": links(self.base, entry.path, entry.family, entry.structure) if self.with_links else None,
            "meta": None,
        }


def _selection(expression: str, most_steps: int) -> Selection:
    from .selection import Selection  # here, because few ask for it and JMESPath takes its time to load

    return Selection(expression, most_steps)


_NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "ancestors",
        "structure_family",
        "specs",
        "metadata",
        "structure",
        "access_tags",
        "sorting",
        "data_sources",
    )
)


def _flag(value: str | None) -> bool:
    if value is None or value.lower() in ("false", "0", ""):
        return False
    if value.lower() in ("true", "1"):
        return True
    raise InvalidRequest(f"{value!r} is neither true nor false")
