"""About, metadata, search, distinct (protocol sections 3 and 4)."""

from typing import Any

from flystore.http.parameters import DEFAULT_PAGE, LARGEST_PAGE
from flystore.http.resources import FIELDS
from flystore.model.queries import VERDICTS, Operator
from flystore.model.structures import Family

from .parts import (
    ASKED,
    FLAG,
    NOTHING,
    NULL,
    OBJECT,
    PATH,
    SENT,
    TEXT,
    Schema,
    fixed,
    listed,
    nullable,
    operation,
    query,
    record,
    ref,
    whole,
)

_READ = ("read:metadata",)
_TEXTS = listed(TEXT)
_JSON_TEXTS = listed({"type": "string", "contentMediaType": "application/json"})
_TRUTHS = listed({"enum": ["true", "false"]})

_QUERIES: dict[str, dict[str, Schema]] = {
    "fulltext": {"text": _TEXTS},
    "lookup": {"key": _TEXTS},
    "keys_filter": {"keys": _JSON_TEXTS},
    "regex": {"key": _TEXTS, "pattern": _TEXTS, "case_sensitive": _TRUTHS},
    "eq": {"key": _TEXTS, "value": _JSON_TEXTS},
    "noteq": {"key": _TEXTS, "value": _JSON_TEXTS},
    "comparison": {"operator": listed({"enum": list(map(str, Operator))}), "key": _TEXTS, "value": _JSON_TEXTS},
    "contains": {"key": _TEXTS, "value": _JSON_TEXTS},
    "in": {"key": _TEXTS, "value": _JSON_TEXTS},
    "notin": {"key": _TEXTS, "value": _JSON_TEXTS},
    "keypresent": {"key": _TEXTS, "exists": _TRUTHS},
    "like": {"key": _TEXTS, "pattern": _JSON_TEXTS},
    "specs": {"include": _JSON_TEXTS, "exclude": _JSON_TEXTS},
    "access_tags_filter": {"tags": _JSON_TEXTS},
    "structure_family": {"value": listed({"enum": list(map(str, Family))})},
    "verdict": {"state": listed({"enum": list(VERDICTS)})},
}

FILTERS = [
    query(f"filter[{name}][condition][{field}]", schema)
    for name, fields in _QUERIES.items()
    for field, schema in fields.items()
]
"""The fields of a filter belong together one to one; filters of different names must all match."""

VIEW = [
    query(
        "fields",
        listed({"enum": sorted(FIELDS)}),
        "Members to fill in; all if it is absent, none if it is empty. `count` alone, in a search: the count only.",
    ),
    query("select_metadata", TEXT, 'A JMESPath expression; `metadata` becomes `{"selected": …}`.'),
    query("max_depth", whole(0, 5), "How deep contents of groups within files are shown inline."),
    query("omit_links", FLAG),
    query("include_data_sources", FLAG),
]
PAGE = [
    query("page[offset]", whole(0, 2**62), "Not together with `page[cursor]`."),
    query("page[cursor]", whole(0, 2**62), "As `links.next` has it."),
    query("page[limit]", {**whole(0, LARGEST_PAGE), "default": DEFAULT_PAGE}),
]
SORT = query(
    "sort",
    listed({"type": "string", "pattern": "^[+-]?[A-Za-z0-9_.]*$"}),
    "Keys of metadata, `-` in front for descending; `id` is the node's key, a bare `-` the order of making, reversed.",
)

PAGE_LINKS = fixed({"self": TEXT, "first": TEXT, "next": nullable(TEXT)})
PAGE_ANSWER = fixed(
    {"data": listed(ref("Resource")), "error": NULL, "links": PAGE_LINKS, "meta": fixed({"count": whole()})}
)

_ABOUT = fixed(
    {
        "api_version": {"const": 0},
        "library_version": TEXT,
        "formats": {"type": "object", "additionalProperties": listed(TEXT)},
        "aliases": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": listed(TEXT)},
        },
        "queries": listed(TEXT),
        "authentication": fixed({"required": FLAG, "providers": listed(OBJECT), "links": nullable(OBJECT)}),
        "links": fixed({"self": TEXT, "documentation": TEXT}),
        "meta": fixed({"root_path": TEXT}),
    }
)
_VALUES = nullable(listed(fixed({"value": {}, "count": nullable(whole())})))
_REVISION = fixed(
    {
        "revision_number": whole(),
        "attributes": fixed(
            {
                "metadata": OBJECT,
                "specs": ref("Specs"),
                "access_tags": listed(TEXT),
                "time_updated": {"type": "string", "format": "date-time"},
            }
        ),
    }
)
_REVISIONS = fixed({"data": listed(_REVISION), "error": NULL, "links": PAGE_LINKS, "meta": fixed({"count": whole()})})


def _metadata(name: str, *path: dict[str, Any]) -> dict[str, Any]:
    answer = fixed({"data": ref("Resource"), "error": NULL, "links": NULL, "meta": OBJECT})
    return operation(
        name,
        "Describe a node",
        {200: record(answer, "The node.")},
        scopes=_READ,
        parameters=[*path, *VIEW, query("root_path", FLAG, "Put the root path into `meta`.")],
        refusals=ASKED,
    )


PATHS: dict[str, dict[str, Any]] = {
    "/api/v1": {"get": operation("to_about", "Lead to the about page", {307: {"description": "To `/api/v1/`."}})},
    "/api/v1/": {"get": operation("about", "Say what this service is and has", {200: record(_ABOUT, "About.")})},
    "/api/v1/metadata": {"get": _metadata("root_metadata")},
    "/api/v1/metadata/{path}": {"get": _metadata("metadata", PATH)},
    "/api/v1/search/{path}": {
        "get": operation(
            "search",
            "List the children of a container that match",
            {200: record(PAGE_ANSWER, "A page of them; the last has no `next`.")},
            scopes=_READ,
            parameters=[PATH, *VIEW, *PAGE, SORT, *FILTERS],
            refusals=ASKED,
        )
    },
    "/api/v1/search-deep/{path}": {
        "get": operation(
            "search_deep",
            "List what matches at any depth below a container",
            {200: record(PAGE_ANSWER, "A page of them; the last has no `next`.")},
            scopes=_READ,
            parameters=[
                PATH,
                *(one for one in VIEW if one["name"] != "max_depth"),
                query("max_depth", whole(1, 64), "How deep to look; 1: children only."),
                *PAGE,
                query("sort", listed({"const": ""}), "Not possible here."),
                *FILTERS,
            ],
            refusals=ASKED,
        )
    },
    "/api/v1/revisions/{path}": {
        "get": operation(
            "revisions",
            "List what a node's metadata was before each change, oldest first",
            {200: record(_REVISIONS, "A page of them; the last has no `next`.")},
            scopes=_READ,
            parameters=[PATH, *PAGE],
            refusals=(*ASKED, 405),
        ),
        "delete": operation(
            "delete_revision",
            "Forget one revision",
            {200: NOTHING},
            scopes=("delete:revision",),
            parameters=[PATH, query("number", whole(0, 2**62), "Its `revision_number`.", required=True)],
            refusals=SENT,
        ),
    },
    "/api/v1/distinct/{path}": {
        "get": operation(
            "distinct",
            "List the values that metadata, families and specs of the children have",
            {
                200: record(
                    fixed(
                        {
                            "metadata": nullable({"type": "object", "additionalProperties": _VALUES}),
                            "structure_families": _VALUES,
                            "specs": _VALUES,
                        }
                    ),
                    "What was asked for; the rest is null.",
                )
            },
            scopes=_READ,
            parameters=[
                PATH,
                query("metadata", listed({"type": "string", "minLength": 1}), "Keys of metadata."),
                query("structure_families", FLAG),
                query("specs", FLAG),
                query("counts", FLAG),
                *FILTERS,
            ],
            refusals=ASKED,
        )
    },
}
