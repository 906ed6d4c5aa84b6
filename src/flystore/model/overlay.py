"""The overlay: what people edited of a node that was made from documents.

The documents go on being what they are. An edit is kept as the difference that it made to what was shown, key by
key, and laid over what the documents lead to, today and whenever they are worked out again. An object is edited key
by key; anything else, lists too, is one value.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .errors import InvalidRequest
from .structures import Spec


class Put(msgspec.Struct, frozen=True, tag="put", tag_field="edit"):
    """A key that has this value, whatever documents say."""

    value: Any


class Removed(msgspec.Struct, frozen=True, tag="removed", tag_field="edit"):
    """A key that is not shown, whatever documents say."""


class Within(msgspec.Struct, frozen=True, tag="within", tag_field="edit"):
    """An object of which some keys were edited; the others follow the documents.

    Attributes
    ----------
    keys : dict
        The edit of each key, in the order in which they came.
    made : bool
        It is there, if need be empty, even where documents have none.
    """

    keys: dict[str, "Edit"]
    made: bool = False


Edit = Put | Removed | Within

_ABSENT: Final = object()


class Overlay(msgspec.Struct, frozen=True, omit_defaults=True):
    """What people edited of one node: one edit, or all of them together.

    Attributes
    ----------
    metadata : Within
        Its metadata.
    specs : tuple of Spec or None
        Its specs; None: those of the documents.
    access_tags : tuple of str or None
        Its access tags; None: never edited.
    """

    metadata: Within = Within({})
    specs: tuple[Spec, ...] | None = None
    access_tags: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was edited."""
        return not self.metadata.keys and self.specs is None and self.access_tags is None

    def then(self, later: "Overlay") -> "Overlay":
        """Return this edit and, after it, `later` as one.

        ``a.then(b).over(x) == b.over(a.over(x))`` for any metadata `x`.
        """
        both = _then(self.metadata, later.metadata)
        assert isinstance(both, Within)
        return Overlay(
            both,
            self.specs if later.specs is None else later.specs,
            self.access_tags if later.access_tags is None else later.access_tags,
        )

    def over(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return `metadata`, as documents lead to it, with what was edited; new objects where they differ."""
        return _within(self.metadata, metadata)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Within:
    """Return the edit that leads from the metadata `before` to `after`.

    ``Overlay(difference(a, b)).over(a) == b``; numbers differ by type, too: 1, 1.0 and true are three values.

    Raises
    ------
    InvalidRequest
        If they are nested too deep.
    """
    try:
        return _difference(before, after, made=False)
    except RecursionError as error:
        raise InvalidRequest("metadata is nested too deep to be stored; flatten it") from error


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], *, made: bool) -> Within:
    keys: dict[str, Edit] = {key: Removed() for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key, _ABSENT)
        if isinstance(value, Mapping) and (known is _ABSENT or isinstance(known, Mapping)):
            edit = _difference(known if isinstance(known, Mapping) else {}, value, made=known is _ABSENT)
            if edit.keys or edit.made:
                keys[key] = edit
        elif known is _ABSENT or not _same(known, value):
            keys[key] = Put(value)
    return Within(keys, made)


def _same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are the same, with the types of their numbers and the order of their keys."""
    return one == other and repr(one) == repr(other)


def _then(first: Edit | None, later: Edit) -> Edit:
    if first is None or not isinstance(later, Within):
        return later
    if isinstance(first, Within):
        keys = dict(first.keys)
        for key, edit in later.keys.items():
            keys[key] = _then(keys.get(key), edit)
        # An object that the first edit led to is there after the second, even if that emptied it.
        return Within(keys, first.made or later.made or bool(_within(first, {})))
    # What documents say of this key is not seen any more, so it needs none of them.
    value = _applied(later, first.value if isinstance(first, Put) else _ABSENT)
    return Removed() if value is _ABSENT else Put(value)


def _applied(edit: Edit, value: Any) -> Any:
    """Return a value, `_ABSENT` if there is none, as it is after an edit."""
    if isinstance(edit, Put):
        return edit.value
    if isinstance(edit, Removed):
        return _ABSENT
    if isinstance(value, Mapping):
        return _within(edit, value)
    made = _within(edit, {})
    return made if made or edit.made else value


def _within(edit: Within, value: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(value)
    for key, change in edit.keys.items():
        found = _applied(change, result.get(key, _ABSENT))
        if found is _ABSENT:
            result.pop(key, None)
        else:
            result[key] = found
    return result
