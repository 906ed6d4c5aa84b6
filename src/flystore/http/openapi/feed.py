"""What changes, in the order of commits: asked for, waited for, or pushed."""

from typing import Any

from .parts import ASKED, FLAG, OBJECT, PATH, TEXT, fixed, listed, nullable, operation, query, record, whole

_ENTRY = fixed(
    {
        "path": listed(TEXT),
        "what": {"enum": ["created", "updated", "deleted", "rows", "data", "closed"]},
        "detail": OBJECT,
        "run": nullable(TEXT),
        "position": whole(1),
        "token": {"type": "string", "description": "Where to go on behind this very change."},
    }
)
_PAGE = record(
    fixed(
        {
            "entries": listed(_ENTRY),
            "next": {"type": "string", "description": "The token to go on from."},
            "more": {**FLAG, "description": "There is more already."},
            "lagged": nullable(fixed({"after": TEXT})),
            "run_open": {"type": ["boolean", "null"], "description": "More documents are to come; null: no run."},
        }
    ),
    "Changes. With `follow=true` the answer does not end: each line of it (`application/x-ndjson`) is such an object, "
    "and one without entries is a sign of life. A WebSocket at the same address gets the same objects as messages.",
)
_QUERY = [
    query("after", TEXT, "A token, or `now`; left out, all since the store was made."),
    query("limit", whole(1, 1000), "Changes in one answer."),
    query("wait", whole(0, 60), "Seconds to wait for the first change."),
    query("lag", whole(1, 100_000), "More changes than this are skipped, and said to be: `lagged`."),
    query("follow", {**FLAG, "default": False}, "Go on for ever."),
    query("beat", whole(1, 60), "With `follow`: seconds between signs of life."),
]


def _asked(name: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "get": operation(
            name,
            "Tell what changed, beyond a token",
            {200: _PAGE},
            scopes=("read:metadata",),
            parameters=[*parameters, *_QUERY],
            refusals=(*ASKED, 403, 409),
        )
    }


PATHS: dict[str, dict[str, Any]] = {
    "/api/v1/feed": _asked("feed_of_all"),
    "/api/v1/feed/{path}": _asked("feed", PATH),
}
