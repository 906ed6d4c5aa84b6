"""What Tiled's protocol lacks: documents in batches, frame maps, verdicts."""

from typing import Any

from flystore.model.frames import FRAMES_MIMETYPE
from flystore.model.queries import VERDICTS

from .parts import (
    ASKED,
    BYTES,
    FLAG,
    JSON,
    MSGPACK,
    NUMBER,
    OBJECT,
    PATH,
    RUN,
    SENT,
    TEXT,
    UNCHANGED,
    body,
    content,
    data,
    fixed,
    in_path,
    listed,
    nullable,
    operation,
    query,
    record,
    whole,
)

_SCOPES = ("write:metadata", "write:data", "create:node", "register")
_ACK = record(
    fixed({"watermark": whole(), "epoch": whole(), "verdict": nullable(TEXT), "followed": FLAG}),
    "How far the documents are durable: the ordinal of the next one; and whether somebody waits for it.",
)
_FIRST = query("first", whole(0, 2**62), "Ordinal of the first document.")
_FRAMES = body(BYTES, FRAMES_MIMETYPE)

_VERDICT = record(
    fixed(
        {
            "uid": TEXT,
            "state": {"enum": list(VERDICTS)},
            "line": {"type": "string", "description": "The same for people."},
            "writer": {"enum": ["documents", "protocol"]},
            "documents": nullable(OBJECT),
            "files": listed(
                fixed(
                    {
                        "path": TEXT,
                        "status": TEXT,
                        "announced": whole(),
                        "readable": whole(),
                        "unverified": FLAG,
                        "checked": nullable({**NUMBER, "description": "Unix seconds"}),
                        "why": TEXT,
                    }
                )
            ),
            "notes": listed(TEXT),
        }
    ),
    "What is complete and what is missing.",
)

_VALID = {
    200: {
        "description": "Whether it is valid, and what was found.",
        "content": content(fixed({"valid": FLAG, "notes": listed(TEXT)}), JSON),
    }
}
_VALIDATE = [
    RUN,
    query("fix", {**FLAG, "default": False}, "Correct structures by what the files hold; by POST only."),
    query("read", {**FLAG, "default": False}, "Read all data."),
]
_MAY_VALIDATE = ("read:data", "read:metadata", "write:metadata")

PATHS: dict[str, dict[str, Any]] = {
    "/api/v1/ingest/{uid}": {
        "post": operation(
            "ingest",
            "Store a batch of documents whole or not at all",
            {200: _ACK},
            scopes=_SCOPES,
            parameters=[
                in_path("uid", "The run's uid."),
                {**_FIRST, "required": True},
                query("epoch", whole(0, 2**62), "Grows with each writer that takes over.", required=True),
            ],
            takes=_FRAMES,
            refusals=SENT,
        )
    },
    "/api/v1/ingest-orphans": {
        "post": operation(
            "ingest_orphans",
            "Keep documents that belong to no run",
            {200: _ACK},
            scopes=_SCOPES,
            parameters=[query("journal", TEXT, "Identity of the journal they come from."), _FIRST],
            takes=_FRAMES,
            refusals=SENT,
        )
    },
    "/api/v1/documents/{path}": {
        "get": operation(
            "documents",
            "Read the documents of a run",
            {
                200: data(
                    (FRAMES_MIMETYPE, "application/json-seq"),
                    "The documents, in their order.",
                    x_flystore_reconstructed="`true` if they were worked out from what a stock writer left.",
                ),
                **UNCHANGED,
            },
            scopes=("read:metadata", "read:data"),
            parameters=[
                RUN,
                query("first", whole(0, 2**62), "Ordinal of the first document wanted; of frames only."),
                query("follow", {**FLAG, "default": False}, "Go on until the run ends; of frames only."),
                query("beat", whole(1, 60), "With `follow`: seconds between signs of life, frames without content."),
                query("format", TEXT, "`application/json-seq` for lines of JSON; goes before Accept."),
                query("fill", {"enum": ["", "false", "no", "0"]}, "External data are not put into documents."),
                query("filename", TEXT, "Answer as a download of this name; of lines only."),
            ],
            refusals=(*ASKED, 406),
        )
    },
    "/api/v1/frames/{path}": {
        "get": operation(
            "frames",
            "Say which event and which frame each row of an external array is",
            {200: record({"type": "object", "required": ["stream"]}, "The frame map, as runs of rows.")},
            scopes=("read:metadata",),
            parameters=[PATH],
            refusals=(*ASKED, 403),
        )
    },
    "/api/v1/verdict/{path}": {
        "get": operation(
            "verdict",
            "Say what of a run is complete and what is missing",
            {200: _VERDICT},
            scopes=("read:metadata",),
            parameters=[RUN, query("look", {**FLAG, "default": False}, "Open the files first.")],
            refusals=ASKED,
        )
    },
    "/custom/validate/{path}": {
        "get": operation(
            "look_through",
            "Compare a run with its files",
            _VALID,
            scopes=_MAY_VALIDATE,
            parameters=_VALIDATE,
            refusals=(*ASKED, 403, 405),
        ),
        "post": operation(
            "validate",
            "Compare a run with its files, and correct it",
            _VALID,
            scopes=_MAY_VALIDATE,
            parameters=_VALIDATE,
            takes=body(fixed({"ignore_errors": nullable(listed(TEXT))}, "ignore_errors", extra=True), JSON, MSGPACK),
            refusals=(*SENT, 403),
        ),
    },
    "/api/v1/close/{path}": {
        "post": operation(
            "close_run",
            "Declare a run interrupted that lost its writer",
            {200: _VERDICT},
            scopes=("write:metadata",),
            parameters=[RUN],
            takes=body(fixed({"reason": {"type": "string", "pattern": "\\S"}}, extra=True), JSON, MSGPACK),
            refusals=SENT,
        )
    },
}
