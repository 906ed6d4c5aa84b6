"""Forms: which flat buffers nested data consists of, and whether the buffers that came make such data.

A form is the description that the Awkward Array library makes (``Form.to_dict``); a buffer is named by the form key of
its part and what it holds: ``node1-offsets``. Buffers are checked when they arrive, so that what is stored can be read
by any library without looking beyond the end of one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flystore.model.errors import InvalidRequest, TooLarge
from flystore.storage import MOST_ENTRIES

MOST_DEPTH = 64

MOST_EMPTY = 1 << 24
"""Items that take no bytes, which nothing else would bound."""

_NUMBERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_PRIMITIVES = frozenset(["bool", *_NUMBERS.split()])
_MOMENT = re.compile(r"(datetime64|timedelta64)(\[\d{0,9}[a-zA-Z]{1,7}\])?")
_INTEGERS = {"i8": "<i1", "u8": "<u1", "i32": "<i4", "u32": "<u4", "i64": "<i8"}
_BUFFERS = {
    "NumpyArray": ("data",),
    "EmptyArray": (),
    "RegularArray": (),
    "ListOffsetArray": ("offsets",),
    "ListArray": ("starts", "stops"),
    "IndexedArray": ("index",),
    "IndexedOptionArray": ("index",),
    "ByteMaskedArray": ("mask",),
    "BitMaskedArray": ("mask",),
    "UnmaskedArray": (),
    "RecordArray": (),
    "UnionArray": ("tags", "index"),
}

Buffers = Mapping[str, bytes | memoryview]


def buffer_names(form: Any) -> dict[str, list[str]]:
    """Return the names of the buffers of a form, by form key, parts without buffers too.

    Raises
    ------
    InvalidRequest
        If it is no form, or two parts have one key.
    TooLarge
        If it has more parts than a zip has entries, or nests too deep.
    """
    names: dict[str, list[str]] = {}
    for number, part in enumerate(_parts(form, 0)):
        if number >= MOST_ENTRIES:
            raise TooLarge(f"this form has more than {MOST_ENTRIES} parts", limit=MOST_ENTRIES)
        kinds, key = _BUFFERS[part["class"]], part.get("form_key")
        if key is None and not kinds:
            continue
        if not isinstance(key, str) or key in names or "\0" in key:
            raise InvalidRequest(f"each part of a form that has buffers has a form_key of its own, not {key!r:.80}")
        names[key] = [f"{key}-{kind}" for kind in kinds]
    return names


def _parts(form: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth > MOST_DEPTH:
        raise TooLarge(f"this form nests deeper than {MOST_DEPTH} levels", limit=MOST_DEPTH)
    if not isinstance(form, dict) or form.get("class") not in _BUFFERS:
        raise InvalidRequest(f"this is not a part of a form: {form!r:.200}")
    yield form
    for inner in inner_forms(form):
        yield from _parts(inner, depth + 1)


def inner_forms(form: dict[str, Any]) -> list[Any]:
    """Return the forms that a form holds."""
    found = form.get("contents") if form["class"] in ("RecordArray", "UnionArray") else [form.get("content")]
    if form["class"] in ("NumpyArray", "EmptyArray"):
        return []
    if not isinstance(found, list):
        raise InvalidRequest("the contents of a form must be a list")
    return found


def dtype_of(form: dict[str, Any]) -> np.dtype:
    """Return the dtype of a part's values, little-endian.

    Raises
    ------
    InvalidRequest
    """
    name = form.get("primitive")
    if not isinstance(name, str) or not (name in _PRIMITIVES or _MOMENT.fullmatch(name)):
        raise InvalidRequest(f"{name!r:.80} is not a type of values")
    try:
        return np.dtype(name).newbyteorder("<")
    except TypeError as error:
        raise InvalidRequest(f"{name!r:.80} is not a type of values") from error


def inner_shape(form: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape that each item of a NumpyArray has.

    Raises
    ------
    InvalidRequest
    """
    shape = form.get("inner_shape") or []
    if not isinstance(shape, list) or len(shape) > 32 or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise InvalidRequest(f"{shape!r:.80} is not a shape")
    return tuple(shape)


def size_of(form: dict[str, Any]) -> int:
    """Return the length of each item of a RegularArray.

    Raises
    ------
    InvalidRequest
    """
    size = form.get("size")
    if not isinstance(size, int) or not 0 <= size < 1 << 48:
        raise InvalidRequest(f"{size!r:.80} is not the size of a RegularArray")
    return size


def check_buffers(form: dict[str, Any], length: int, buffers: Buffers) -> None:
    """Let pass buffers that make `length` items of `form`; they may be longer than need be.

    Raises
    ------
    InvalidRequest
        If one is missing or too short, or points outside what it points into.
    """
    _require_few(form, length)
    match form["class"]:
        case "NumpyArray":
            _require_size(form, "data", length * _product(inner_shape(form)) * dtype_of(form).itemsize, buffers)
        case "EmptyArray":
            if length:
                raise InvalidRequest(f"an EmptyArray holds nothing, not {length} items")
        case "RegularArray":
            check_buffers(form["content"], length * size_of(form), buffers)
        case "ListOffsetArray":
            offsets = integers(form, "offsets", length + 1, buffers)
            if offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any():
                raise _wrong(form, "offsets", "do not ascend from 0 or more")
            check_buffers(form["content"], int(offsets[-1]), buffers)
        case "ListArray":
            starts, stops = integers(form, "starts", length, buffers), integers(form, "stops", length, buffers)
            if (starts < 0).any() or (stops < starts).any():
                raise _wrong(form, "starts", "are negative or behind its stops")
            check_buffers(form["content"], int(stops.max(initial=0)), buffers)
        case "IndexedArray" | "IndexedOptionArray":
            index = integers(form, "index", length, buffers)
            if form["class"] == "IndexedArray" and (index < 0).any():
                raise _wrong(form, "index", "is negative")
            check_buffers(form["content"], int(index.max(initial=-1)) + 1, buffers)
        case "ByteMaskedArray":
            _require_size(form, "mask", length, buffers)
            check_buffers(form["content"], length, buffers)
        case "BitMaskedArray":
            _require_size(form, "mask", -(-length // 8), buffers)
            check_buffers(form["content"], length, buffers)
        case "UnmaskedArray":
            check_buffers(form["content"], length, buffers)
        case "RecordArray":
            for inner in inner_forms(form):
                check_buffers(inner, length, buffers)
        case "UnionArray":
            _check_union(form, length, buffers)


def _require_few(form: dict[str, Any], length: int) -> None:
    kind = form["class"]
    empty = (
        (kind == "RegularArray" and size_of(form) == 0)
        or (kind == "NumpyArray" and 0 in inner_shape(form))
        or (kind == "RecordArray" and not inner_forms(form))
    )
    if empty and length > MOST_EMPTY:
        raise TooLarge(f"{length} items of no bytes; there may be {MOST_EMPTY}", limit=MOST_EMPTY)


def _check_union(form: dict[str, Any], length: int, buffers: Buffers) -> None:
    tags, index = integers(form, "tags", length, buffers), integers(form, "index", length, buffers)
    contents = inner_forms(form)
    if (tags < 0).any() or (tags >= len(contents)).any() or (index < 0).any():
        raise _wrong(form, "tags", "or index point outside its contents")
    for number, inner in enumerate(contents):
        check_buffers(inner, int(index[tags == number].max(initial=-1)) + 1, buffers)


def integers(form: dict[str, Any], kind: str, count: int, buffers: Buffers) -> np.ndarray:
    """Return the first `count` integers of a buffer of offsets, an index or the like.

    Raises
    ------
    InvalidRequest
        If it is missing or too short.
    """
    told = form.get(kind, "i64" if kind != "tags" else "i8")
    if told not in _INTEGERS:
        raise InvalidRequest(f"{told!r:.80} is not a type of {kind}")
    dtype = np.dtype(_INTEGERS[told])
    name = _require_size(form, kind, count * dtype.itemsize, buffers)
    return np.frombuffer(buffers[name], dtype, count)


def _require_size(form: dict[str, Any], kind: str, nbytes: int, buffers: Buffers) -> str:
    name = f"{form.get('form_key')}-{kind}"
    if name not in buffers:
        raise InvalidRequest(f"the buffer {name[:80]} is missing")
    if len(buffers[name]) < nbytes:
        raise InvalidRequest(
            f"the buffer {name[:80]} has {len(buffers[name])} bytes; {nbytes} are needed",
            announced=nbytes,
            found=len(buffers[name]),
        )
    return name


def _wrong(form: dict[str, Any], kind: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the {kind} of {form.get('form_key')!r:.80} {why}")


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
