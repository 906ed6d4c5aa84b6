"""Applying RFC 6902 and RFC 7386 patches to plain JSON values."""

from typing import Any

import jsonpatch
import jsonpointer

from flystore.model.errors import Conflict, InvalidRequest


def apply_patch(value: Any, patch: Any, *, merge: bool) -> Any:
    """Return `value` with `patch` applied; `value` itself stays as it was.

    Raises
    ------
    InvalidRequest
        If the patch is malformed.
    Conflict
        If it does not fit the value: a path that is not there, a test that fails.
    """
    if merge:
        return _merged(value, patch)
    if not isinstance(patch, list):
        raise InvalidRequest("a JSON patch must be a list of operations")
    try:
        return jsonpatch.JsonPatch(patch).apply(value)
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
