"""Queries as people write them: ``Key("plan_name") == "scan"``."""

from collections.abc import Iterable
from typing import Any

import msgspec

from flystore.model.queries import (
    And,
    Comparison,
    Contains,
    Eq,
    In,
    KeyPresent,
    Like,
    NotEq,
    NotIn,
    Operator,
    Query,
)


class Key:
    """A metadata key to compare with, dots going down: ``Key("sample.name") == "Au"``.

    Comparisons give queries for `search`. In a catalogue of runs a key without ``start.`` or ``stop.``
    in front means one of the start document.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Key({self.name!r})"

    def __eq__(self, value: Any) -> Query:  # type: ignore[override]
        return Eq(self.name, value)

    def __ne__(self, value: Any) -> Query:  # type: ignore[override]
        return NotEq(self.name, value)

    def __lt__(self, value: Any) -> Query:
        return Comparison(Operator.LT, self.name, value)

    def __le__(self, value: Any) -> Query:
        return Comparison(Operator.LE, self.name, value)

    def __gt__(self, value: Any) -> Query:
        return Comparison(Operator.GT, self.name, value)

    def __ge__(self, value: Any) -> Query:
        return Comparison(Operator.GE, self.name, value)

    def one_of(self, values: Iterable[Any]) -> Query:
        """Return the query: equal to one of `values`."""
        return In(self.name, tuple(values))

    def none_of(self, values: Iterable[Any]) -> Query:
        """Return the query: there, and equal to none of `values`."""
        return NotIn(self.name, tuple(values))

    def contains(self, value: Any) -> Query:
        """Return the query: a list with this member, or text with this part."""
        return Contains(self.name, value)

    def like(self, pattern: str) -> Query:
        """Return the query: text that fits `pattern`, ``%`` for any characters and ``_`` for one."""
        return Like(self.name, pattern)

    def exists(self, exists: bool = True) -> Query:
        """Return the query: the key is there, or is not."""
        return KeyPresent(self.name, exists)


def with_prefix(query: Query, prefixes: tuple[str, ...]) -> Query:
    """Return a query on run metadata: a key that starts with none of `prefixes` gets the first.

    Own keys (`Lookup`, `KeysFilter`) are not metadata and stay.
    """
    if isinstance(query, And):
        return And(tuple(with_prefix(part, prefixes) for part in query.queries))
    key = getattr(query, "key", None)
    if key is None or ("value" not in query.__struct_fields__ and not _is_keyed(query)):
        return query
    return msgspec.structs.replace(query, key=prefixed(key, prefixes))


def _is_keyed(query: Query) -> bool:
    return isinstance(query, (KeyPresent, Like)) or "pattern" in query.__struct_fields__


def prefixed(key: str, prefixes: tuple[str, ...]) -> str:
    """Return a metadata key with the first of `prefixes` in front unless it has one of them."""
    if not prefixes or key.startswith(prefixes):
        return key
    return prefixes[0] + key
