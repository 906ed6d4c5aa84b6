"""The files behind nodes (protocol section 10)."""

from typing import Any

from .parts import (
    ASKED,
    JSON,
    OCTETS,
    PATH,
    TEXT,
    UNCHANGED,
    content,
    data,
    fixed,
    header,
    listed,
    operation,
    query,
    whole,
)

_READ = ("read:data",)
_ID = query("id", whole(0, 2**62), "Of the asset, as the node's data source has it.", required=True)
_REFUSED = (*ASKED, 403, 405, 410)

PATHS: dict[str, dict[str, Any]] = {
    "/api/v1/asset/bytes/{path}": {
        "get": operation(
            "asset_bytes",
            "Download a file, or ranges of it",
            {
                200: data(
                    (OCTETS,), "The file.", ETag="Quoted.", Accept_Ranges="`bytes`", Content_Disposition="Its name."
                ),
                206: data((OCTETS, "multipart/byteranges"), "The ranges.", Content_Range="Which bytes, of how many."),
                **UNCHANGED,
            },
            scopes=_READ,
            parameters=[
                PATH,
                _ID,
                query("relative_path", TEXT, "Which file of a directory, as the manifest has it."),
                header("Range", {"type": "string"}, "`bytes=0-99`"),
            ],
            refusals=(*_REFUSED, 416),
        )
    },
    "/api/v1/asset/manifest/{path}": {
        "get": operation(
            "asset_manifest",
            "List the files of a directory",
            {
                200: {
                    "description": "Their paths relative to it.",
                    "content": content(fixed({"manifest": listed(TEXT)}), JSON),
                }
            },
            scopes=_READ,
            parameters=[PATH, _ID],
            refusals=_REFUSED,
        )
    },
}
