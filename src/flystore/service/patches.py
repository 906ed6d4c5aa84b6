"""Applying RFC 6902 and RFC 7386 patches to plain JSON values.

A patch may come from anybody who may write, so what it costs is bounded: how many operations there are, how much they
copy, and how deep the outcome is nested.
"""

import copy
from typing import Any

from flystore.model.errors import Conflict, InvalidRequest, TooLarge
from flystore.model.late import late

jsonpatch = late("jsonpatch")
jsonpointer = late("jsonpointer")

MOST_OPERATIONS = 10_000
"""In one JSON patch."""

MOST_COPIED = 1 << 20
"""Values and letters that the ``copy`` operations of one JSON patch may copy: each may double what is there."""

MOST_NESTED = 200
"""Levels of nesting of what a patch leads to."""


def apply_patch(value: Any, patch: Any, *, merge: bool) -> Any:
    """Return `value` with `patch` applied; `value` itself stays as it was.

    Raises
    ------
    InvalidRequest
        If the patch is malformed, or its outcome is nested too deep.
    Conflict
        If it does not fit the value: a path that is not there, a test that fails.
    TooLarge
        If it has too many operations or copies too much.
    """
    try:
        patched = _merged(value, patch) if merge else _operated(value, patch)
        if _nests_deeper(patched, MOST_NESTED):
            raise RecursionError
    except RecursionError as error:
        raise InvalidRequest(
            f"with this patch, metadata would nest deeper than {MOST_NESTED}; flatten them", limit=MOST_NESTED
        ) from error
    return patched


def _operated(value: Any, patch: Any) -> Any:
    if not isinstance(patch, list):
        raise InvalidRequest("a JSON patch must be a list of operations")
    if len(patch) > MOST_OPERATIONS:
        raise TooLarge(
            f"a JSON patch of {len(patch)} operations; there may be {MOST_OPERATIONS}: send a merge patch, or replace "
            "the metadata",
            limit=MOST_OPERATIONS,
        )
    try:
        jsonpatch.JsonPatch(patch)  # all of it is well-formed before any of it is applied
        result, left = copy.deepcopy(value), MOST_COPIED
        for operation in patch:
            if operation["op"] == "copy":
                left -= _size(jsonpointer.JsonPointer(operation["from"]).resolve(result), left)
                if left < 0:
                    raise TooLarge(f"a JSON patch may copy {MOST_COPIED} values and letters", limit=MOST_COPIED)
            result = jsonpatch.JsonPatch([operation]).apply(result, in_place=True)
        return result
    except jsonpatch.InvalidJsonPatch as error:
        raise InvalidRequest(f"the JSON patch is malformed: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise Conflict(f"the JSON patch does not fit what is stored: {error}") from error
    except TypeError as error:
        raise InvalidRequest(f"the JSON patch is malformed: {error}") from error


def _merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), change)
    return result


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _size(value: Any, most: int) -> int:
    """Return how many values and letters there are; somewhat more than `most` if there are more."""
    size, todo = 0, [value]
    while todo and size <= most:
        some = todo.pop()
        size += 1 + (len(some) if isinstance(some, str) else 0)
        if isinstance(some, dict):
            size += sum(map(len, some))
        todo.extend(_inside(some))
    return size


def _nests_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [inner for some in level for inner in _inside(some)]
        if not level:
            return False
    return True
