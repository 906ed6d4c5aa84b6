"""Values as devices put them into documents, and what it means that they came back.

`values` and `documents` are hypothesis strategies over everything the canonical encoding promises to
keep; `same` is the comparison the promise is made in: type, dtype, value, key order, NaN equal to NaN.
"""

import datetime
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

__all__ = [
    "arrays",
    "documents",
    "event_documents",
    "numpy_scalars",
    "plain",
    "run_documents",
    "same",
    "values",
]


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same in type, dtype, value and key order; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ma.MaskedArray):
        mask, other_mask = np.ma.getmaskarray(one), np.ma.getmaskarray(other)
        return same(mask, other_mask) and same(np.asarray(one.data), np.asarray(other.data))
    if isinstance(one, np.ndarray):
        return _same_arrays(one, other)
    if isinstance(one, np.generic):
        return one.dtype == other.dtype and _same_items(one, other)
    if isinstance(one, Mapping):
        return len(one) == len(other) and all(
            same(key, other_key) and same(one[key], other[other_key]) for key, other_key in zip(one, other, strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, datetime.datetime):
        return one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.utcoffset() == other.utcoffset()
    return bool(one == other)


def _same_arrays(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.hasobject:
        return all(map(same, one.ravel().tolist(), other.ravel().tolist()))
    return all(map(_same_items, one.ravel(), other.ravel()))


def _same_items(one: Any, other: Any) -> bool:
    if one.dtype.names is not None:
        return all(_same_field(one[name], other[name]) for name in one.dtype.names)
    if one.dtype.kind in "fcmM" and (np.isnat(one) if one.dtype.kind in "mM" else np.isnan(one)):
        return bool(np.isnat(other) if one.dtype.kind in "mM" else np.isnan(other))
    if one.dtype.kind in "SUV":  # numpy's == overlooks zeros at the end
        return bool(one.item() == other.item())
    return bool(one == other)


def _same_field(one: Any, other: Any) -> bool:
    return _same_arrays(one, other) if isinstance(one, np.ndarray) else _same_items(one, other)


def _simple_dtypes() -> st.SearchStrategy[np.dtype]:
    return st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(),
        hnp.unsigned_integer_dtypes(),
        hnp.floating_dtypes(),
        hnp.complex_number_dtypes(),
        hnp.datetime64_dtypes(),
        hnp.timedelta64_dtypes(),
        hnp.byte_string_dtypes(),
        hnp.unicode_string_dtypes(),
    )


_RECORDS = [
    np.dtype([("a", "|i1"), ("b", ">f8")]),
    np.dtype([("a", "|i1"), ("b", "<c16")], align=True),
    np.dtype([("pair", "<u2", (2,)), ("inner", [("s", "<U2"), ("t", "<M8[us]")])]),
    np.dtype({"names": ["late", "early"], "formats": ["<i4", "|S3"], "offsets": [8, 0], "itemsize": 16}),
]


def _dtypes() -> st.SearchStrategy[np.dtype]:
    return st.one_of(_simple_dtypes(), st.sampled_from(_RECORDS))


@functools.cache
def numpy_scalars() -> st.SearchStrategy[np.generic]:
    """Numpy scalars of every kind, text with zeros at its end and records included."""
    from_arrays = hnp.arrays(_dtypes(), (1,)).map(lambda array: array[0])
    return st.one_of(from_arrays, st.text(max_size=4).map(np.str_), st.binary(max_size=4).map(np.bytes_))


@functools.cache
def arrays() -> st.SearchStrategy[np.ndarray]:
    """Arrays of 0 to 3 axes, C and Fortran order, strided views, both byte orders, records, masked."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    whole = hnp.arrays(_dtypes(), shapes)
    objects = st.lists(st.one_of(st.none(), st.integers(), st.lists(st.integers(), max_size=3)), max_size=4)
    return st.one_of(
        whole,
        whole.map(np.asfortranarray).filter(lambda array: array.ndim > 0),
        whole.map(lambda array: array[..., ::2] if array.ndim else array),
        objects.map(_object_array),
        hnp.arrays(np.float64, (3,)).map(lambda array: np.ma.masked_invalid(array)),
    )


def _object_array(members: list[Any]) -> np.ndarray:
    array = np.empty(len(members), object)
    for index, member in enumerate(members):
        array[index] = member
    return array


@functools.cache
def plain() -> st.SearchStrategy[Any]:
    """Values that JSON knows, and bytes."""
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.text(st.characters(categories=["Cs", "Ll"]), max_size=4),
        st.binary(max_size=8),
    )


@st.composite
def _rich(draw: st.DrawFn) -> Any:
    # Composite for the sake of its repr: hypothesis prints strategies, and this one is long.
    return draw(_rich_values())


@functools.cache
def _rich_values() -> st.SearchStrategy[Any]:
    offsets = st.none() | st.integers(-1439, 1439).map(
        lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
    )
    return st.one_of(
        plain(),
        st.complex_numbers(),
        st.datetimes(timezones=offsets),
        st.dates(),
        st.times(),
        st.timedeltas(),
        st.binary(max_size=8).map(bytearray),
        numpy_scalars(),
        arrays(),
    )


@functools.cache
def values() -> st.SearchStrategy[Any]:
    """Anything a document may hold that has a type of its own in the encoding, nested."""
    hashable = st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.binary(max_size=4), st.dates()
    )
    return st.recursive(
        _rich(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=3).map(tuple),
            st.sets(hashable, max_size=4),
            st.frozensets(hashable, max_size=4),
            st.dictionaries(st.text(max_size=6), inner, max_size=4),
            st.dictionaries(hashable, inner, max_size=3),
        ),
        max_leaves=12,
    )


@functools.cache
def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with str keys: the least that makes a document."""
    return st.dictionaries(st.text(max_size=6), values(), max_size=6)


_NAMES = st.sampled_from(["det", "motor", "img", "time", "é", ""])


@st.composite
def event_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Events, most of them well formed: keys that change, fields that are absent, odd or too many."""
    keys = draw(st.lists(_NAMES, unique=True, max_size=4))
    doc: dict[str, Any] = {
        "uid": draw(st.uuids().map(str)),
        "descriptor": draw(st.sampled_from(["d1", "d2"])),
        "seq_num": draw(st.integers(1, 9)),
        "time": draw(st.floats(0, 2e9)),
        "data": {key: draw(values()) for key in keys},
        "timestamps": {key: draw(st.floats(0, 2e9)) for key in keys},
    }
    if draw(st.booleans()):
        doc["filled"] = {key: draw(st.booleans() | st.text(max_size=2)) for key in keys}
    for name in draw(st.lists(st.sampled_from([*doc, "extra"]), max_size=2)):
        if draw(st.booleans()):
            doc[name] = draw(st.sampled_from([None, [], {}, 1 << 70, "\ud800", ["det"], {1: 2}, np.int64(3)]))
        else:
            doc.pop(name, None)
    order = draw(st.permutations(list(doc)) | st.just(list(doc)))
    return {name: doc[name] for name in order}


def run_documents() -> st.SearchStrategy[list[tuple[str, dict[str, Any]]]]:
    """Sequences of (name, document), mostly events; not a valid run, and the encoding must not care."""
    other = st.tuples(st.sampled_from(["start", "descriptor", "event_page", "stop", "odd"]), documents())
    return st.lists(st.one_of(event_documents().map(lambda doc: ("event", doc)), other), max_size=12)
