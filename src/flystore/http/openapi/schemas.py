"""Shapes that several routes have in common (protocol sections 1.5 and 2)."""

from typing import Any

from flystore.model.structures import ARROW_SCHEMA_PREFIX, Family, Management
from flystore.service.requests import MAX_AXES, MAX_SPECS

from .parts import ANY, FLAG, OBJECT, TEXT, Schema, fixed, kinds_of_errors, listed, nullable, ref, whole

_INT64 = whole(-(2**63), 2**63 - 1)
_LENGTH = whole(0, 2**63 - 1)
_AXES = listed(_LENGTH, maxItems=MAX_AXES)
_DIMS = nullable(listed(TEXT, maxItems=MAX_AXES))
_CHUNKS = listed(listed(_LENGTH), maxItems=MAX_AXES)
_URL = {"type": "string", "format": "uri-reference"}

KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": "^[^/\\u0000-\\u001f]+$",
    "not": {"enum": [".", ".."]},
}
"""One segment of a node's path."""


def _array(**more: Schema) -> Schema:
    return fixed(
        {"data_type": ref("DType"), "chunks": _CHUNKS, "shape": _AXES, "dims": _DIMS, "resizable": FLAG, **more},
        "dims",
        "resizable",
    )


def _structures() -> dict[str, Schema]:
    return {
        "BuiltinDType": fixed(
            {
                "endianness": {"enum": ["big", "little", "not_applicable"]},
                "kind": {"enum": list("tbiufcmMSUV"), "description": "numpy's letter"},
                "itemsize": {**whole(0, 2**31 - 1), "description": "bytes"},
                "dt_units": nullable({"type": "string", "pattern": "^\\[\\d{0,9}[a-zA-Z]{1,7}\\]$"}),
            },
            "dt_units",
        ),
        "StructDType": fixed(
            {
                "itemsize": whole(0, 2**31 - 1),
                "fields": listed(
                    fixed({"name": TEXT, "dtype": ref("DType"), "shape": nullable(_AXES)}, "shape"), minItems=1
                ),
            },
            "itemsize",
        ),
        "DType": {"anyOf": [ref("BuiltinDType"), ref("StructDType")]},
        "ArrayStructure": {**_array(), "description": "`chunks` lists every chunk; each axis' sum is its length."},
        "SparseStructure": {
            **fixed(
                {
                    "data_type": ref("BuiltinDType"),
                    "coord_data_type": nullable(ref("BuiltinDType")),
                    "chunks": _CHUNKS,
                    "shape": _AXES,
                    "dims": _DIMS,
                    "resizable": FLAG,
                    "layout": {"const": "COO"},
                },
                "coord_data_type",
                "dims",
                "resizable",
                "layout",
            ),
            "description": "Coordinates and values of what is not zero.",
        },
        "RaggedStructure": {
            **fixed(
                {
                    "data_type": ref("BuiltinDType"),
                    "shape": listed(nullable(_LENGTH), minItems=1, maxItems=MAX_AXES),
                    "size": _LENGTH,
                    "chunks": nullable(listed(nullable(listed(_LENGTH)))),
                    "dims": _DIMS,
                    "resizable": FLAG,
                },
                "chunks",
                "dims",
                "resizable",
            ),
            "description": "null marks a ragged axis.",
        },
        "AwkwardStructure": {
            **fixed({"length": _LENGTH, "form": OBJECT}),
            "description": "`form` as the Awkward Array library writes it.",
        },
        "TableStructure": {
            **fixed(
                {
                    "arrow_schema": {"type": "string", "pattern": f"^{ARROW_SCHEMA_PREFIX}[A-Za-z0-9+/=]*$"},
                    "npartitions": whole(0),
                    "columns": listed(TEXT),
                    "resizable": FLAG,
                },
                "resizable",
            ),
            "description": "`arrow_schema` is an Arrow IPC schema message.",
        },
        "ContainerStructure": {
            **fixed(
                {
                    "contents": nullable(
                        {"type": "object", "additionalProperties": nullable(ref("Resource"))},
                    ),
                    "count": nullable(whole(0)),
                }
            ),
            "description": "`contents` are there for groups within files; null for all others.",
        },
        "Structure": {
            "anyOf": [
                ref(name)
                for name in (
                    "ArrayStructure",
                    "TableStructure",
                    "ContainerStructure",
                    "RaggedStructure",
                    "SparseStructure",
                    "AwkwardStructure",
                )
            ]
            + [{"type": "object", "maxProperties": 0, "description": "of a node of the family bytes"}]
        },
    }


def _nodes() -> dict[str, Schema]:
    family: Schema = {"enum": list(map(str, Family))}
    links = {
        "self": _URL,
        "full": TEXT,
        "block": {"type": "string", "description": "A template: `{0}`, `{1}` … stand for indices of a block."},
        "partition": {"type": "string", "description": "A template: `{index}` stands for the partition."},
        "buffers": TEXT,
        "search": TEXT,
        "search_deep": TEXT,
    }
    asset = {
        "data_uri": TEXT,
        "is_directory": FLAG,
        "parameter": nullable(TEXT),
        "num": nullable({**_INT64, "description": "An ordering key, not an index."}),
        "size": nullable({**_INT64, "description": "bytes"}),
        "id": nullable(_INT64),
    }
    source = {
        "structure_family": ref("Family"),
        "structure": nullable(ref("Structure")),
        "id": nullable(_INT64),
        "mimetype": nullable(TEXT),
        "parameters": OBJECT,
        "properties": OBJECT,
        "assets": listed(ref("Asset")),
        "management": {"enum": list(map(str, Management))},
    }
    return {
        "Family": family,
        "Spec": fixed({"name": TEXT, "version": nullable(TEXT)}, "version"),
        "Specs": listed(ref("Spec"), maxItems=MAX_SPECS),
        "Asset": fixed(asset, *(name for name in asset if name != "data_uri")),
        "DataSource": fixed(source, *(name for name in source if name != "structure_family")),
        "Links": fixed(links, *(name for name in links if name != "self")),
        "Attributes": fixed(
            {
                "ancestors": listed(TEXT),
                "structure_family": nullable(ref("Family")),
                "specs": nullable(ref("Specs")),
                "metadata": nullable(OBJECT),
                "structure": nullable(ref("Structure")),
                "access_tags": nullable(listed(TEXT)),
                "sorting": nullable(listed(fixed({"key": TEXT, "direction": {"enum": [1, -1]}}))),
                "data_sources": nullable(listed(ref("DataSource"))),
            }
        ),
        "Resource": fixed(
            {
                "id": {"type": "string", "description": "The last segment of the path; empty for the root."},
                "attributes": ref("Attributes"),
                "links": nullable(ref("Links")),
                "meta": nullable(OBJECT),
            }
        ),
        "NewNode": {
            **fixed(
                {
                    "id": nullable({**KEY, "description": "The key; one is made up if there is none."}),
                    "structure_family": ref("Family"),
                    "metadata": OBJECT,
                    "data_sources": nullable(listed(ref("DataSource"), maxItems=1)),
                    "specs": nullable(ref("Specs")),
                    "access_tags": nullable(listed(TEXT)),
                    "ancestors": {"type": "array", "description": "Not looked at."},
                },
                "id",
                "data_sources",
                "specs",
                "access_tags",
                "ancestors",
                extra=True,
            ),
            "description": "All families but containers need one data source.",
        },
        "MadeNode": fixed(
            {
                "id": TEXT,
                "links": ref("Links"),
                "data_sources": listed(ref("DataSource")),
                "access_tags": listed(TEXT),
                "metadata": OBJECT,
            },
            "metadata",
        ),
    }


def _errors() -> dict[str, Schema]:
    return {
        "Error": fixed(
            {
                "detail": {"type": "string", "description": "The message, where clients of Tiled look for it."},
                "error": fixed(
                    {
                        "kind": {"enum": kinds_of_errors(), "description": "Never changes; for programs."},
                        "message": {"type": "string", "description": "For people: what, where, what to do next."},
                        "facts": {"type": "object", "description": "The same for programs."},
                    }
                ),
            }
        )
    }


def schemas() -> dict[str, Any]:
    """Return all shapes by their names."""
    return {**_errors(), **_structures(), **_nodes(), "JSONPatch": _JSON_PATCH}


_JSON_PATCH: Schema = listed(
    fixed(
        {
            "op": {"enum": ["add", "remove", "replace", "move", "copy", "test"]},
            "path": TEXT,
            "from": TEXT,
            "value": ANY,
        },
        "from",
        "value",
    )
)
