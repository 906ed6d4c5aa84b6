"""Making, registering, changing and deleting nodes (protocol section 9)."""

from typing import Any

from .parts import (
    FLAG,
    JSON,
    MSGPACK,
    NOTHING,
    OBJECT,
    PATH,
    SENT,
    TEXT,
    body,
    fixed,
    listed,
    nullable,
    operation,
    query,
    record,
    ref,
)

_NEW = body(ref("NewNode"), JSON, MSGPACK)
_MADE = {200: record(ref("MadeNode"), "The node, which is there now.")}
_CHANGED = {200: record(fixed({"id": TEXT}), "The key of the node.")}
_REPLACED = {
    200: record(
        fixed({"id": TEXT, "metadata": OBJECT}, "metadata"),
        "The key of the node, and its metadata where they are not those that were sent.",
    )
}
_DROP = query("drop_revision", {**FLAG, "default": False}, "Keep no copy of the state before.")
_TAGS = nullable(listed(TEXT))

PATHS: dict[str, dict[str, Any]] = {
    "/api/v1/metadata/{path}": {
        "post": operation(
            "create",
            "Make a node below this one",
            _MADE,
            scopes=("write:metadata", "create:node"),
            parameters=[PATH],
            takes=_NEW,
            refusals=(*SENT, 403, 406),
        ),
        "patch": operation(
            "patch_metadata",
            "Change metadata and specs",
            _CHANGED,
            scopes=("write:metadata",),
            parameters=[PATH, _DROP],
            takes=body(
                fixed(
                    {
                        "content-type": {"enum": ["application/json-patch+json", "application/merge-patch+json"]},
                        "metadata": {"anyOf": [ref("JSONPatch"), OBJECT, {"type": "null"}]},
                        "specs": {"anyOf": [ref("JSONPatch"), ref("Specs"), {"type": "null"}]},
                        "access_tags": nullable(listed({})),
                    },
                    "metadata",
                    "specs",
                    "access_tags",
                    extra=True,
                ),
                JSON,
                MSGPACK,
            ),
            refusals=(*SENT, 406),
        ),
        "put": operation(
            "put_metadata",
            "Replace metadata and specs",
            _REPLACED,
            scopes=("write:metadata",),
            parameters=[PATH, _DROP],
            takes=body(
                fixed(
                    {"metadata": nullable(OBJECT), "specs": nullable(ref("Specs")), "access_tags": _TAGS},
                    "metadata",
                    "specs",
                    "access_tags",
                    extra=True,
                ),
                JSON,
                MSGPACK,
            ),
            refusals=SENT,
        ),
        "delete": operation(
            "delete",
            "Delete a node; files of others stay",
            {200: NOTHING},
            scopes=("delete:node", "delete:revision"),
            parameters=[
                PATH,
                query("recursive", {**FLAG, "default": False}, "With all that is below it."),
                query("external_only", {**FLAG, "default": True}, "Refuse if data would go that are kept here."),
            ],
            refusals=SENT,
        ),
    },
    "/api/v1/register/{path}": {
        "post": operation(
            "register",
            "Make a node whose data lie in files that others wrote",
            _MADE,
            scopes=("write:metadata", "create:node", "register"),
            parameters=[PATH],
            takes=_NEW,
            refusals=(*SENT, 403, 406),
        )
    },
    "/api/v1/data_source/{path}": {
        "put": operation(
            "put_data_source",
            "Say more about a node's files, or their structure anew",
            {200: NOTHING},
            scopes=("write:metadata", "register"),
            parameters=[
                PATH,
                query("patch_shape", TEXT, "Not looked at: for live subscribers."),
                query("patch_offset", TEXT, "Not looked at: for live subscribers."),
            ],
            takes=body(fixed({"data_source": ref("DataSource")}, extra=True), JSON, MSGPACK),
            refusals=(*SENT, 403, 406),
        )
    },
    "/api/v1/stream/close/{path}": {
        "delete": operation(
            "close_stream",
            "Say that nobody will add to this node",
            {200: NOTHING},
            scopes=("write:data",),
            parameters=[PATH],
            refusals=SENT,
        )
    },
}
