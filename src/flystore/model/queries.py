r"""Queries: which children of a container are wanted, and what that means.

A query is a frozen value; `matches` is its meaning, in plain Python, without I/O. The catalogue
answers the same queries from indexes and is held to this meaning by its contract suite.

Keys are dotted paths into metadata (``start.plan_name``); a metadata key that itself holds a dot
cannot be addressed. A key is *present* if the path leads somewhere, null included. Values compare
within their kind only: truth values are not numbers, numbers are not text; 1 equals 1.0. Text
compares by code point, with case. Where stock Tiled's two databases disagree with each other, the
strict reading is taken:

=================  =============================================================================
query              matches a node if
=================  =============================================================================
`Eq`               the value equals; ``Eq(key, None)``: it is present and null
`NotEq`            there is a value that is not null and not equal (lists and mappings are values)
`In`               it equals one of the values; of none: never
`NotIn`            there is a value that is not null and equals none; of none: always
`Comparison`       the value is of the same kind and on that side
`Contains`         it is a list with that member, or text with that part
`Like`             it is text of that pattern: ``%`` any characters, ``_`` one, ``\`` quotes the next
`KeyPresent`       the key is (not) present
`FullText`         every word occurs among the words of keys and values
`Specs`            it has all specs of `include` and none of `exclude`, by name
`AccessTags`       it carries one of the tags; of none: never
`StructureFamily`  it is of that family
`KeysFilter`       its own key is one of these
`Lookup`           its own key is this
`Verdict`          it is a run of that state of completeness
`And`              all of its queries match; of none: always
=================  =============================================================================
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from .errors import InvalidRequest, Unsupported
from .structures import Family, Spec

Scalar = None | bool | int | float | str

MISSING: Final = object()
"""What `value_at` returns where a key leads nowhere; None is a value."""


class Searchable(Protocol):
    """What a query looks at."""

    @property
    def key(self) -> str: ...
    @property
    def family(self) -> Family: ...
    @property
    def specs(self) -> Sequence[Spec]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def access_tags(self) -> Sequence[str]: ...


class Query(msgspec.Struct, frozen=True):
    """Base of all queries."""


class And(Query, frozen=True):
    """All of `queries`; ``And()`` matches everything."""

    queries: tuple[Query, ...] = ()


class Eq(Query, frozen=True):
    """The value at `key` equals `value`."""

    key: str
    value: Scalar

    def __post_init__(self) -> None:
        _keep_scalar(self, "eq")


class NotEq(Query, frozen=True):
    """There is a value at `key` and it does not equal `value`."""

    key: str
    value: Scalar

    def __post_init__(self) -> None:
        _keep_scalar(self, "noteq")


class Operator(StrEnum):
    """Sides of a comparison, as the protocol spells them."""

    LT = "lt"
    LE = "le"
    GT = "gt"
    GE = "ge"


class Comparison(Query, frozen=True):
    """The value at `key` is less or greater than `value`: number with number, text with text."""

    operator: Operator
    key: str
    value: int | float | str

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "operator", _operator(self.operator, "comparison"))
        _keep_scalar(self, "comparison")
        if self.value is None or isinstance(self.value, bool):
            raise InvalidRequest(f"comparison of {self.key!r}: {self.value!r} has no order; use a number or text")


class Contains(Query, frozen=True):
    """The list at `key` has the member `value`, or the text at `key` has the part `value`."""

    key: str
    value: Scalar

    def __post_init__(self) -> None:
        _keep_scalar(self, "contains")


class In(Query, frozen=True):
    """The value at `key` equals one of `value`."""

    key: str
    value: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        _keep_scalars(self, "in")


class NotIn(Query, frozen=True):
    """There is a value at `key` and it equals none of `value`."""

    key: str
    value: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        _keep_scalars(self, "notin")


class KeyPresent(Query, frozen=True):
    """The key is present, or with ``exists=False`` absent."""

    key: str
    exists: bool = True


class Like(Query, frozen=True):
    """The text at `key` fits `pattern`."""

    key: str
    pattern: str

    @property
    def pieces(self) -> tuple["Piece", ...]:
        """The pattern cut at its ``%``; a piece is characters, None standing for any one."""
        return _pieces(self.pattern)


Piece = tuple[str | None, ...]


class Regex(Query, frozen=True):
    """The text at `key` fits a regular expression. Parsed, and refused where it would be evaluated."""

    key: str
    pattern: str
    case_sensitive: bool = True


class FullText(Query, frozen=True):
    """Every word of `text` occurs among the words of keys and values, case ignored."""

    text: str

    def __post_init__(self) -> None:
        self.words  # noqa: B018  (raises on text that asks for something else than words)

    @property
    def words(self) -> frozenset[str]:
        return _wanted_words(self.text)


class Specs(Query, frozen=True):
    """All spec names of `include` are there and none of `exclude`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _keep_names(self, "include")
        _keep_names(self, "exclude")


class AccessTags(Query, frozen=True):
    """One of `tags` is there."""

    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        _keep_names(self, "tags")


class StructureFamily(Query, frozen=True):
    """The node is of the family `value`."""

    value: Family

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "value", _family(self.value, "structure_family"))


class KeysFilter(Query, frozen=True):
    """The node's own key is one of `keys`."""

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        _keep_names(self, "keys")


class Lookup(Query, frozen=True):
    """The node's own key is `key`."""

    key: str


INTERRUPTED = "interrupted"
VERDICTS = ("complete", "running", INTERRUPTED, "gaps", "retaken", "extra", "unreadable")
"""The states of a run."""


class Verdict(Query, frozen=True):
    """The node is a run whose state of completeness is `state`.

    Attributes
    ----------
    state : str
        The first word of a verdict: ``complete``, ``running``, ``interrupted``, ``gaps``, …
    silent_since : float
        Unix seconds. A run that is still open and was last heard of before this is ``interrupted``,
        whatever its documents say; 0 makes none so.
    """

    state: str
    silent_since: float = 0.0

    def __post_init__(self) -> None:
        if self.state not in VERDICTS:
            raise InvalidRequest(f"a run is {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}, never {self.state!r:.40}")


def matches(query: Query, node: Searchable, *, verdict: str | None = None) -> bool:
    """Return whether `query` matches `node`.

    Parameters
    ----------
    verdict
        State of the run that `node` is, silence taken into account; None for other nodes.

    Raises
    ------
    Unsupported
        If the query (a `Regex`) has no meaning here.
    """
    if isinstance(query, And):
        return all(matches(part, node, verdict=verdict) for part in query.queries)
    if isinstance(query, Verdict):
        return verdict is not None and verdict == query.state
    try:
        meaning = _MEANINGS[type(query)]
    except KeyError:
        raise Unsupported(f"search by {type(query).__name__.lower()} is not offered; use like or fulltext") from None
    return meaning(query, node)


def flatten(query: Query | Iterable[Query]) -> list[Query]:
    """Return the queries that must all match, `And` taken apart."""
    if isinstance(query, And) or not isinstance(query, Query):
        parts = query.queries if isinstance(query, And) else query
        return [inner for part in parts for inner in flatten(part)]
    return [query]


def value_at(metadata: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key, or `MISSING`."""
    found: Any = metadata
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return MISSING
        found = found[part]
    return found


def equal(found: Any, wanted: Scalar) -> bool:
    """Return whether a metadata value equals a scalar of the same kind; 1 equals 1.0, not True."""
    kind = _kind(wanted)
    return kind == _kind(found) and bool(found == wanted)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, (int, float)):
        return "number"
    return "text" if isinstance(value, str) else "other"


# --- meanings ---------------------------------------------------------------------------------


def _eq(query: Eq, node: Searchable) -> bool:
    return equal(value_at(node.metadata, query.key), query.value)


def _not_eq(query: NotEq, node: Searchable) -> bool:
    found = value_at(node.metadata, query.key)
    return found is not MISSING and found is not None and not equal(found, query.value)


def _in(query: In, node: Searchable) -> bool:
    found = value_at(node.metadata, query.key)
    return any(equal(found, value) for value in query.value)


def _not_in(query: NotIn, node: Searchable) -> bool:
    if not query.value:
        return True
    found = value_at(node.metadata, query.key)
    return found is not MISSING and found is not None and not any(equal(found, v) for v in query.value)


def _comparison(query: Comparison, node: Searchable) -> bool:
    found = value_at(node.metadata, query.key)
    if _kind(found) != _kind(query.value):
        return False
    match query.operator:
        case Operator.LT:
            return bool(found < query.value)
        case Operator.LE:
            return bool(found <= query.value)
        case Operator.GT:
            return bool(found > query.value)
        case Operator.GE:
            return bool(found >= query.value)


def _contains(query: Contains, node: Searchable) -> bool:
    found = value_at(node.metadata, query.key)
    if isinstance(found, str):
        return isinstance(query.value, str) and query.value in found
    return isinstance(found, (list, tuple)) and any(equal(member, query.value) for member in found)


def _like(query: Like, node: Searchable) -> bool:
    found = value_at(node.metadata, query.key)
    return isinstance(found, str) and _fits(query.pieces, found)


def _key_present(query: KeyPresent, node: Searchable) -> bool:
    return (value_at(node.metadata, query.key) is not MISSING) == query.exists


def _full_text(query: FullText, node: Searchable) -> bool:
    return query.words <= words_of(node.metadata)


def _specs(query: Specs, node: Searchable) -> bool:
    names = {spec.name for spec in node.specs}
    return names.issuperset(query.include) and names.isdisjoint(query.exclude)


def _access_tags(query: AccessTags, node: Searchable) -> bool:
    return not set(node.access_tags).isdisjoint(query.tags)


def _structure_family(query: StructureFamily, node: Searchable) -> bool:
    return node.family == query.value


def _keys_filter(query: KeysFilter, node: Searchable) -> bool:
    return node.key in query.keys


def _lookup(query: Lookup, node: Searchable) -> bool:
    return node.key == query.key


_MEANINGS: dict[type[Query], Callable[[Any, Searchable], bool]] = {
    Eq: _eq,
    NotEq: _not_eq,
    In: _in,
    NotIn: _not_in,
    Comparison: _comparison,
    Contains: _contains,
    Like: _like,
    KeyPresent: _key_present,
    FullText: _full_text,
    Specs: _specs,
    AccessTags: _access_tags,
    StructureFamily: _structure_family,
    KeysFilter: _keys_filter,
    Lookup: _lookup,
}


def _keep_scalar(query: Any, name: str) -> None:
    msgspec.structs.force_setattr(query, "value", _scalar(query.value, f"{name} of {query.key!r}"))


def _keep_scalars(query: Any, name: str) -> None:
    where = f"{name} of {query.key!r}"
    if isinstance(query.value, str) or not isinstance(query.value, Iterable):
        raise InvalidRequest(f"{where}: the value must be a list, not {query.value!r}")
    msgspec.structs.force_setattr(query, "value", tuple(_scalar(value, where) for value in query.value))


def _keep_names(query: Any, field: str) -> None:
    names = getattr(query, field)
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest(f"{type(query).__name__}: {field} must be a list of strings, not {names!r:.80}")
    msgspec.structs.force_setattr(query, field, tuple(names))


def _scalar(value: Any, where: str) -> Scalar:
    if hasattr(value, "dtype") and hasattr(value, "item") and value.ndim == 0:
        value = value.item()  # a numpy number, as people have them in hand
    if _kind(value) == "other":
        raise InvalidRequest(f"{where}: search compares text, numbers, truth values and null, not {value!r:.80}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{where}: metadata holds no {value}; NaN and the infinities are null there")
    return value


# --- patterns ---------------------------------------------------------------------------------


@lru_cache(256)
def _pieces(pattern: str) -> tuple[Piece, ...]:
    pieces: list[list[str | None]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            pieces.append([])
        elif character == "_":
            pieces[-1].append(None)
        else:
            pieces[-1].append(next(characters, "\\") if character == "\\" else character)
    return tuple(tuple(piece) for piece in pieces)


@lru_cache(256)
def _compiled(piece: Piece) -> re.Pattern[str]:
    return re.compile("".join("." if c is None else re.escape(c) for c in piece), re.DOTALL)


def _fits(pieces: tuple[Piece, ...], text: str) -> bool:
    """Return whether `text` is the pieces with anything between them.

    The leftmost place of each piece in turn is as good as any other, so nothing is tried twice:
    a regular expression with as many ``.*`` could take for ever on hostile text.
    """
    if len(pieces) == 1:
        return _compiled(pieces[0]).fullmatch(text) is not None
    first = _compiled(pieces[0]).match(text)
    if first is None:
        return False
    at = first.end()
    for piece in pieces[1:-1]:
        found = _compiled(piece).search(text, at)
        if found is None:
            return False
        at = found.end()
    tail = len(text) - len(pieces[-1])
    return tail >= at and _compiled(pieces[-1]).fullmatch(text, tail) is not None


# --- words ------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+")
_WORD_LENGTH = 64
"""Words are compared by their first 64 characters."""


def words_in(text: str) -> set[str]:
    """Return the words of a text: runs of letters and digits of any script, case folded."""
    return {word[:_WORD_LENGTH] for word in _WORD.findall(text.casefold())}


def words_of(metadata: Mapping[str, Any]) -> set[str]:
    """Return the words of all keys and values of metadata, at any depth.

    Text anywhere counts, numbers and truth values where they are not members of a list (a list of
    a million positions is no text), null never.
    """
    words: set[str] = set()
    todo: list[Any] = [metadata]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                words |= words_in(str(key))
                if isinstance(inner, bool):
                    words.add(str(inner).lower())
                elif isinstance(inner, (int, float)):
                    words |= words_in(msgspec.json.encode(inner).decode())
                else:
                    todo.append(inner)
        elif isinstance(value, (list, tuple)):
            todo.extend(member for member in value if isinstance(member, (str, Mapping, list, tuple)))
        elif isinstance(value, str):
            words |= words_in(value)
    return words


@lru_cache(256)
def _wanted_words(text: str) -> frozenset[str]:
    if text.count('"') % 2:
        raise InvalidRequest(f"fulltext: a quotation mark is not closed in {text!r:.80}")
    parts = [part for part in text.split() if part != "AND"]
    for part in parts:
        if part in ("OR", "NOT"):
            raise InvalidRequest(
                f"fulltext: all words must occur, {part} is not offered; search twice, "
                f"or write {part.lower()!r} to look for the word"
            )
        if part.endswith("*"):
            raise InvalidRequest(f"fulltext: {part!r:.80} asks for the beginning of a word; give whole words")
    words = frozenset(word for part in parts for word in words_in(part))
    if not words:
        raise InvalidRequest(f"fulltext: there is no word in {text!r:.80}")
    return words


# --- sorting ----------------------------------------------------------------------------------


class SortKey(msgspec.Struct, frozen=True):
    """One key to sort by.

    Attributes
    ----------
    key : str
        ``""``: order of insertion; ``"id"``: the node's own key; otherwise a dotted metadata key,
        with or without ``metadata.`` before it. Nodes without it come last.
    """

    key: str
    descending: bool = False

    @property
    def metadata_key(self) -> str:
        return self.key.removeprefix("metadata.")


# --- on the wire ------------------------------------------------------------------------------

_PARAMETER = re.compile(r"filter\[(\w+)\]\[condition\]\[(\w+)\]")


class _Field(msgspec.Struct, frozen=True):
    """A query's field: how its text is read and written, and what stands in if it is left out."""

    read: Callable[[str, str], Any]
    write: Callable[[Any], str]
    default: Any = msgspec.UNSET


def _json(text: str, where: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{where}: {text!r:.80} is not JSON ({error})") from error
    except RecursionError as error:
        raise InvalidRequest(f"{where}: nested too deep") from error


def _json_text(text: str, where: str) -> str:
    value = _json(text, where)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: {text!r:.80} must be a JSON string, in quotes")
    return value


def _json_list(text: str, where: str) -> tuple[Any, ...]:
    value = _json(text, where)
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: {text!r:.80} must be a JSON list")
    return tuple(value)


def _json_names(text: str, where: str) -> tuple[str, ...]:
    names = _json_list(text, where)
    if not all(isinstance(name, str) for name in names):
        raise InvalidRequest(f"{where}: {text!r:.80} must be a JSON list of strings")
    return names


def _truth(text: str, where: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise InvalidRequest(f"{where}: {text!r:.80} is neither true nor false")


def _operator(text: str, where: str) -> Operator:
    try:
        return Operator(text)
    except ValueError as error:
        raise InvalidRequest(f"{where}: {text!r:.80} must be one of lt, le, gt, ge") from error


def _family(text: str, where: str) -> Family:
    try:
        return Family(text)
    except ValueError as error:
        raise InvalidRequest(f"{where}: {text!r:.80} must be one of {', '.join(Family)}") from error


def _write_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{value!r:.80} holds half a character, which no URL can carry") from error


_TEXT = _Field(lambda text, where: text, str)
_JSON = _Field(_json, _write_json)
_JSON_TEXT = _Field(_json_text, _write_json)
_JSON_LIST = _Field(_json_list, _write_json)
_JSON_NAMES = _Field(_json_names, _write_json)
_TRUE = _Field(_truth, _write_json, default=True)
_OPERATOR = _Field(_operator, str)
_FAMILY = _Field(_family, str)

_WIRE: dict[str, tuple[type[Query], dict[str, _Field]]] = {
    "fulltext": (FullText, {"text": _TEXT}),
    "lookup": (Lookup, {"key": _TEXT}),
    "keys_filter": (KeysFilter, {"keys": _JSON_NAMES}),
    "regex": (Regex, {"key": _TEXT, "pattern": _TEXT, "case_sensitive": _TRUE}),
    "eq": (Eq, {"key": _TEXT, "value": _JSON}),
    "noteq": (NotEq, {"key": _TEXT, "value": _JSON}),
    "comparison": (Comparison, {"operator": _OPERATOR, "key": _TEXT, "value": _JSON}),
    "contains": (Contains, {"key": _TEXT, "value": _JSON}),
    "in": (In, {"key": _TEXT, "value": _JSON_LIST}),
    "notin": (NotIn, {"key": _TEXT, "value": _JSON_LIST}),
    "keypresent": (KeyPresent, {"key": _TEXT, "exists": _TRUE}),
    "like": (Like, {"key": _TEXT, "pattern": _JSON_TEXT}),
    "specs": (Specs, {"include": _JSON_NAMES, "exclude": _JSON_NAMES}),
    "access_tags_filter": (AccessTags, {"tags": _JSON_NAMES}),
    "structure_family": (StructureFamily, {"value": _FAMILY}),
    "verdict": (Verdict, {"state": _TEXT}),
}

QUERY_NAMES = tuple(_WIRE)
"""Names of the filters, as the protocol's about page lists them, and ``verdict``."""


def parse_filters(params: Iterable[tuple[str, str]]) -> list[Query]:
    """Return the queries among URL parameters, `Verdict` without a time of silence.

    Parameters
    ----------
    params
        Decoded (name, value) pairs in order; those that are no filter, or one of an unknown name,
        are passed over.

    Raises
    ------
    InvalidRequest
        If a field is missing, occurs more often than its fellows, or cannot be read.
    """
    given: dict[str, dict[str, list[str]]] = {}
    for name, value in params:
        found = _PARAMETER.fullmatch(name)
        if found is not None and found[1] in _WIRE:
            given.setdefault(found[1], {}).setdefault(found[2], []).append(value)
    return [query for name, columns in given.items() for query in _parse(name, columns)]


def _parse(name: str, columns: dict[str, list[str]]) -> list[Query]:
    make, fields = _WIRE[name]
    used = {field: columns[field] for field in fields if field in columns}
    for field, kind in fields.items():
        if field not in used and kind.default is msgspec.UNSET:
            raise InvalidRequest(f"filter {name}: the field {field!r} is missing; it needs {', '.join(fields)}")
    counts = {field: len(values) for field, values in used.items()}
    if len(set(counts.values())) > 1:
        raise InvalidRequest(f"filter {name}: fields belong together one to one, but there are {counts}")
    queries = []
    for row in zip(*used.values(), strict=True):
        values = {
            field: fields[field].read(text, f"filter {name}, {field}") for field, text in zip(used, row, strict=True)
        }
        queries.append(make(**values))
    return queries


def encode_filters(query: Query | Iterable[Query]) -> list[tuple[str, str]]:
    """Return the URL parameters that `parse_filters` reads back; one pair a field of each query."""
    names = {make: (name, fields) for name, (make, fields) in _WIRE.items()}
    params: list[tuple[str, str]] = []
    for part in flatten(query):
        name, fields = names[type(part)]
        for field, kind in fields.items():
            params.append((f"filter[{name}][condition][{field}]", kind.write(getattr(part, field))))
    return params
