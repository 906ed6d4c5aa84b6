"""Arrays, tables, awkward and ragged nodes, containers: their data (protocol sections 5 to 8)."""

from collections.abc import Iterable
from typing import Any

from flystore.service.export import REGISTRY

from .parts import (
    ARROW,
    ASKED,
    BYTES,
    FLAG,
    JSON,
    MSGPACK,
    NOTHING,
    OCTETS,
    PATH,
    SENT,
    TEXT,
    UNCHANGED,
    ZIP,
    Schema,
    body,
    data,
    listed,
    operation,
    query,
    record,
    ref,
    whole,
)

_READ, _WRITE = ("read:data",), ("write:data",)
_REFUSED = (*ASKED, 403, 405, 406, 410)

_INTEGERS: Schema = {"type": "string", "pattern": "^(\\d{1,19}(,\\d{1,19}){0,31})?$"}
_PART = "(-?\\d{1,19}|(-?\\d{1,19})?:(-?\\d{1,19})?(:(-?\\d{1,19})?)?)"
_SLICE = query(
    "slice",
    {"type": "string", "pattern": f"^({_PART}(,{_PART}){{0,15}})?$"},
    "Numbers and `start:stop:step` by axis, joined by commas; empty is everything.",
)
_BLOCK = query("block", _INTEGERS, "Indices of a block by axis; empty for a scalar.", required=True)
_EXPECTED = query(
    "expected_shape",
    {"type": "string", "pattern": "^(scalar|(\\d{1,19}(,\\d{1,19}){0,31})?)$"},
    "Refuse to answer with another shape.",
)
_FORMAT = [
    query("format", TEXT, "Media types or file extensions, best first; goes before Accept."),
    query("filename", TEXT, "Answer as a download of this name."),
]
_PARTITION = query("partition", whole(0, 2**62), required=True)
_PERSIST = query("persist", {**FLAG, "default": True}, "If false, the body is looked at and nothing is stored.")
_COLUMNS = [
    query("column", listed(TEXT), "Columns; all if there are none."),
    query("field", listed(TEXT), "An older name of `column`."),
]
_FIELDS = [query("field", listed(TEXT), "Children; all if there are none.")]
_NAMES = body(listed(TEXT), JSON, MSGPACK)


def _media(*families: str) -> list[str]:
    formats = REGISTRY.formats()
    return list(dict.fromkeys(name for family in families for name in formats[family]))


def _read(
    name: str, summary: str, media: Iterable[str], parameters: list[dict[str, Any]], takes: Any = None, more: Any = ()
) -> dict[str, Any]:
    return operation(
        name,
        summary,
        {200: data(media, "The data.", ETag="Changes with the data."), **UNCHANGED},
        scopes=(*_READ, *more),
        parameters=[PATH, *parameters, *_FORMAT],
        takes=takes,
        refusals=_REFUSED if takes is None else (*_REFUSED, 408, 415),
    )


def _write(
    name: str,
    summary: str,
    parameters: list[dict[str, Any]],
    media: tuple[str, ...],
    answer: dict[str, Any] = NOTHING,
) -> dict[str, Any]:
    return operation(
        name,
        summary,
        {200: answer},
        scopes=_WRITE,
        parameters=[PATH, *parameters],
        takes=body(BYTES, *media),
        refusals=(*SENT, 403, 406),
    )


_ARRAYS = _media("array", "sparse")
_TABLES = _media("table")
_CONTAINERS = _media("container", "BlueskyRun", "xarray_dataset")
_RAGGED = _media("ragged")
_AWKWARD = _media("awkward")
_GROWTH = [
    query("offset", _INTEGERS, "Where the body goes, by axis."),
    query("shape", _INTEGERS, "Shape of the body."),
    query("extend", {**FLAG, "default": False}, "Let the array grow."),
    _PERSIST,
]

_ROWS = (ARROW, "application/vnd.apache.arrow.stream", OCTETS)
_APPENDED = {
    **NOTHING,
    "headers": {
        "X-Flystore-Possible-Repeat": {
            "description": "There if the body was that of the append before it: which rows are the same.",
            "schema": TEXT,
        }
    },
}

PATHS: dict[str, dict[str, Any]] = {
    "/api/v1/array/full/{path}": {
        "get": _read("array_full", "Read an array or a slice of it", _ARRAYS, [_SLICE, _EXPECTED]),
        "put": _write("put_array_full", "Write an array", [_PERSIST], (OCTETS, ARROW)),
        "patch": _write(
            "patch_array_full",
            "Write a part of an array, which may grow",
            _GROWTH,
            (OCTETS,),
            record(ref("ArrayStructure"), "The structure afterwards."),
        ),
    },
    "/api/v1/array/block/{path}": {
        "get": _read("array_block", "Read a block of an array", _ARRAYS, [_BLOCK, _SLICE, _EXPECTED]),
        "put": _write("put_array_block", "Write a block of an array", [_BLOCK, _SLICE, _PERSIST], (OCTETS, ARROW)),
    },
    "/api/v1/table/partition/{path}": {
        "get": _read("table_partition", "Read a table", _TABLES, [_PARTITION, *_COLUMNS]),
        "post": _read(
            "table_partition_of", "Read columns that the body names", _TABLES, [_PARTITION, *_COLUMNS], _NAMES
        ),
        "put": _write("put_table_partition", "Write a table", [_PARTITION], _ROWS),
        "patch": _write("patch_table_partition", "Append rows", [_PARTITION], _ROWS, _APPENDED),
    },
    "/api/v1/table/full/{path}": {
        "get": _read("table_full", "Read a table", _TABLES, _COLUMNS),
        "post": _read("table_full_of", "Read columns that the body names", _TABLES, _COLUMNS, _NAMES),
        "put": _write("put_table", "Write a table", [], _ROWS),
    },
    "/api/v1/container/full/{path}": {
        "get": _read("container_full", "Export a container", _CONTAINERS, _FIELDS, more=("read:metadata",)),
        "post": _read(
            "container_full_of",
            "Export the children that the body names",
            _CONTAINERS,
            _FIELDS,
            _NAMES,
            more=("read:metadata",),
        ),
    },
    "/api/v1/node/full/{path}": {
        "get": _read(
            "node_full",
            "As the route of the node's family: table or container",
            _media("table", "container", "BlueskyRun", "xarray_dataset"),
            _COLUMNS,
        ),
        "post": _read(
            "node_full_of",
            "The same, of names in the body",
            _media("table", "container", "BlueskyRun", "xarray_dataset"),
            _COLUMNS,
            _NAMES,
        ),
    },
    "/api/v1/awkward/full/{path}": {
        "get": _read("awkward_full", "Read an awkward array", _AWKWARD, []),
        "put": _write("put_awkward", "Write an awkward array", [], (ZIP,)),
    },
    "/api/v1/awkward/buffers/{path}": {
        "get": _read(
            "awkward_buffers",
            "Read the buffers of parts of an awkward array",
            (*_AWKWARD,),
            [query("form_key", listed(TEXT), "Parts of the form; all if there are none.")],
        ),
        "post": _read(
            "awkward_buffers_of",
            "Read the buffers of the parts that the body names",
            (ZIP,),
            [query("form_key", listed(TEXT))],
            _NAMES,
        ),
    },
    "/api/v1/ragged/full/{path}": {
        "get": _read("ragged_full", "Read a ragged array or a slice of it", _RAGGED, [_SLICE]),
        "put": _write("put_ragged_full", "Write a ragged array", [_PERSIST], (ZIP,)),
        "patch": _write(
            "patch_ragged",
            "Add rows to a ragged array",
            _GROWTH,
            (ZIP,),
            record(ref("RaggedStructure"), "The structure afterwards."),
        ),
    },
    "/api/v1/ragged/block/{path}": {
        "put": _write("put_ragged_block", "Write a block of a ragged array", [_BLOCK, _PERSIST], (ZIP,)),
    },
}
