"""What a document holds comes back as it was: type, dtype, value, key order.

If these fail, somebody's metadata or readings are stored as something else than what the device said,
or bytes from outside can end the service.
"""

import datetime
import enum
import json
import pathlib
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.encoding import MAX_DEPTH, Opaque, decode, decoded_size, encode
from flystore.model.errors import InvalidRequest
from flystore.testing.values import arrays, documents, numpy_scalars, same, values

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "encoding.json").read_text())


def _objects(*members):
    array = np.empty(len(members), object)
    for index, member in enumerate(members):
        array[index] = member
    return array


_UTC_PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))

VALUES = {
    "none": None,
    "true": True,
    "integer": -5,
    "largest plain integer": (1 << 64) - 1,
    "smallest plain integer": -(1 << 63),
    "float": 0.1,
    "minus zero": -0.0,
    "nan": float("nan"),
    "text": "Å µm 𝄞",
    "bytes": b"\x00\xff",
    "list": [1, "two", None],
    "mapping in key order": {"z": 1, "a": {"y": [], "b": {}}},
    "numpy float64": np.float64(1.5),
    "numpy int8": np.int8(-1),
    "numpy bool": np.True_,
    "numpy big-endian from an array": np.array([258], ">u2"),
    "numpy datetime64": np.datetime64("2024-02-29T12:00:00.5", "ms"),
    "numpy timedelta64 of 25 s": np.timedelta64(3, "25s"),
    "numpy NaT": np.datetime64("NaT"),
    "numpy text with a zero at its end": np.str_("a\0"),
    "numpy empty text": np.str_(""),
    "numpy empty bytes": np.bytes_(b""),
    "numpy raw bytes": np.void(b"\x01\x02"),
    "numpy record": np.array([(1, 2.5)], [("n", "<i4"), ("x", "<f8")])[0],
    "array": np.arange(6, dtype="<u2").reshape(2, 3),
    "array of no axes": np.array(7.0),
    "empty array": np.empty((0, 3), "<f4"),
    "Fortran array": np.asfortranarray(np.arange(6, dtype="<i8").reshape(2, 3)),
    "text array": np.array(["a", "bcd", ""]),
    "record array": np.array([(1, [2, 3], (4.0,))], [("a", "|u1"), ("b", "<i2", (2,)), ("c", [("d", "<f4")])]),
    "padded record array": np.zeros(1, np.dtype([("a", "|i1"), ("b", "<f8")], align=True)),
    "tuple": (1, (2, "x"), ()),
    "set": {3, 1, "b"},
    "frozenset": frozenset({b"x", None}),
    "complex": complex(1.0, -0.0),
    "naive datetime": datetime.datetime(2024, 2, 29, 23, 59, 59, 999999),
    "aware datetime": datetime.datetime(2024, 1, 1, 12, tzinfo=_UTC_PLUS_2),
    "date": datetime.date(1, 1, 1),
    "time of day": datetime.time(1, 2, 3, 4),
    "timedelta": datetime.timedelta(-1, 2, 3),
    "big integer": 1 << 64,
    "big negative integer": -(1 << 63) - 1,
    "bytearray": bytearray(b"ab"),
    "mapping with other keys": {1: "a", (2, 3): "b", None: {True: 1}},
    "odd text": "a\ud800",
    "odd key": {"\udcff": 1},
    "opaque": Opaque("module.Type", "<Type>"),
    "object array": _objects(None, "a", 1.5),
    "object array of lists": _objects([1, 2], [3, 4]),
    "masked array": np.ma.array([1.0, 2.0], mask=[False, True]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_stored_value_is_the_same_bytes_for_ever(name):
    assert encode(VALUES[name]).hex() == GOLDEN["values"][name]


@pytest.mark.parametrize("name", GOLDEN["values"])
def test_bytes_written_by_an_earlier_release_are_still_read(name):
    assert same(decode(bytes.fromhex(GOLDEN["values"][name])), VALUES[name])


@given(values())
def test_any_value_comes_back_the_same(value):
    assert same(decode(encode(value)), value)


@given(documents())
def test_any_document_comes_back_with_its_keys_in_order(doc):
    assert same(decode(encode(doc)), doc)


@given(arrays() | numpy_scalars())
def test_numpy_comes_back_with_its_dtype(value):
    assert same(decode(encode(value)), value)


@given(values())
def test_what_came_back_encodes_to_the_same_bytes(value):
    encoded = encode(value)
    assert encode(decode(encoded)) == encoded


@given(st.sets(st.integers() | st.text(max_size=3)))
def test_equal_sets_give_equal_bytes_however_they_were_filled(members):
    refilled = set()
    for member in reversed(list(members)):
        refilled.add(member)
    assert encode(refilled) == encode(members)


def test_arrays_come_back_writable_and_their_own():
    packed = encode([np.arange(4), np.arange(4)])
    one, other = decode(packed)
    one[0] = 9
    assert other[0] == 0
    assert one.base is None or one.base.nbytes <= one.nbytes


def test_arrays_keep_their_memory_order():
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert decode(encode(fortran)).flags.f_contiguous
    assert decode(encode(np.ascontiguousarray(fortran))).flags.c_contiguous


class _Colour(str, enum.Enum):  # noqa: UP042 - StrEnum has another __str__
    RED = "red"


class _Step(enum.IntEnum):
    UP = 3


class _Shouting(float):
    def __float__(self):
        return -1.0


class _OrderedList(list):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_Colour.RED, "red"),
        (_Step.UP, 3),
        (_Shouting(2.5), 2.5),
        (_OrderedList([1, (2,)]), [1, (2,)]),
        (memoryview(b"abc"), b"abc"),
        (pd.Timestamp("2024-01-01T00:00:01.5"), datetime.datetime(2024, 1, 1, 0, 0, 1, 500000)),
        (pd.Timedelta(seconds=1.5), datetime.timedelta(seconds=1.5)),
    ],
)
def test_subclasses_of_built_in_types_come_back_as_the_built_in(value, expected):
    assert same(decode(encode(value)), expected)


class _Odd:
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        if self.text is None:
            raise RuntimeError("not connected")
        return self.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_Odd("<odd>"), "<odd>"),
        (_Odd(None), "<repr raised RuntimeError>"),
        (_Odd("\ud800"), "?"),
        (pathlib.PurePosixPath("/data"), "PurePosixPath('/data')"),
        (pd.NaT, "NaT"),
        (np.array([(None,)], [("o", object)])[0], "(None,)"),
    ],
)
def test_a_value_that_no_rule_covers_is_kept_as_its_type_and_repr(value, text):
    kept = decode(encode({"x": [value]}))["x"][0]
    assert isinstance(kept, Opaque)
    assert text in kept.text
    assert kept.type_name.rpartition(".")[2] == type(value).__name__


def test_an_array_of_items_without_bytes_is_kept_as_opaque():
    assert isinstance(decode(encode(np.zeros(3, "V0"))), Opaque)


def test_what_nests_too_deep_is_kept_as_opaque_from_there_on():
    value = bottom = []
    for _ in range(3 * MAX_DEPTH):
        bottom.append([])
        bottom = bottom[0]
    kept, depth = decode(encode(value)), 0
    while isinstance(kept, list):
        kept, depth = kept[0], depth + 1
    assert depth == MAX_DEPTH
    assert isinstance(kept, Opaque)


def test_a_list_that_holds_itself_does_not_end_the_acquisition():
    endless = [1]
    endless.append(endless)
    assert decode(encode(endless))[0] == 1


# --- hostile input --------------------------------------------------------------------------------


def _decode_or_refuse(data):
    """Only `InvalidRequest` may come out, and the memory asked for is in proportion to the input."""
    tracemalloc.start()
    try:
        decode(data)
    except InvalidRequest:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 200_000 + 200 * len(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_decoded(data):
    _decode_or_refuse(data)


@given(st.integers(0, 127), st.binary(max_size=60))
def test_random_bytes_in_any_extension_type_are_refused_or_decoded(code, payload):
    _decode_or_refuse(bytes([0xC7, len(payload), code]) + payload)


@given(values(), st.data())
def test_a_mutated_encoding_is_refused_or_decoded(value, data):
    encoded = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(encoded))


@given(values(), st.data())
def test_a_truncated_encoding_is_refused(value, data):
    encoded = encode(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(InvalidRequest):
        decode(encoded[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x02",
        b"\xdd\x00\xff\xff\xff" + b"\xdd\x00\xff\xff\xff" * 50,
    ],
)
def test_a_length_that_promises_more_than_there_is_costs_no_memory(data):
    _decode_or_refuse(data)
    with pytest.raises(InvalidRequest):
        decode(data)


def _ext(code, payload):
    return b"\xc9" + len(payload).to_bytes(4, "big") + bytes([code]) + payload


@pytest.mark.parametrize(
    "described",
    [
        "O",
        "|O",
        "T",
        "<f8,<f8",
        "(1000000000,)f8",
        "<M8[ns], O",
        "<i3",
        "<M8[parsec]",
        "<f8\0",
        {"names": ["a"], "formats": [["|O", []]], "offsets": [0], "itemsize": 8},
        {"names": ["a"], "formats": [["<f8", [1 << 40]]], "offsets": [0], "itemsize": 8},
        {"names": ["a", "a"], "formats": [["<f4", []], ["<f4", []]], "offsets": [0, 4], "itemsize": 8},
        {"names": ["a"]},
        7,
        None,
    ],
)
def test_a_dtype_that_no_array_was_written_with_is_refused(described):
    with pytest.raises(InvalidRequest):
        decode(_ext(2, encode([described, [1], "C", b"\0" * 8])))


@pytest.mark.parametrize(
    ("code", "content"),
    [
        (2, ["<f8", [-1], "C", b"\0" * 8]),
        (2, ["<f8", [1 << 62, 1 << 62], "C", b"\0" * 8]),
        (2, ["<f8", [2], "C", b"\0" * 8]),
        (2, ["<f8", [1.0], "C", b"\0" * 8]),
        (2, ["<f8", [1], "K", b"\0" * 8]),
        (2, ["<f8", [1], "C", "text"]),
        (2, ["|V0", [1 << 40], "C", b""]),
        (2, ["<U0", [1 << 40], "C", b""]),
        (2, ["<f8", [1], "C"]),
        (3, {"a": 1}),
        (3, 5),
        (4, [[1]]),
        (10, [1e400, 0, 0]),
        (10, [10**10, 0, 0]),
        (13, ["key without value"]),
        (13, [[], 1]),
        (15, [1, 2]),
        (16, [[3], "C", [1]]),
        (16, [[1], "C", {"a": 1}]),
        (17, [1, 2]),
        (17, [np.zeros(2), np.zeros(3, bool)]),
        (99, []),
    ],
)
def test_an_extension_type_whose_content_lies_is_refused(code, content):
    _decode_or_refuse(_ext(code, encode(content)))
    with pytest.raises(InvalidRequest):
        decode(_ext(code, encode(content)))


@pytest.mark.parametrize("depth", [200, 5_000, 1_000_000])
def test_nested_containers_are_refused(depth):
    _decode_or_refuse(b"\x91" * depth + b"\x90")
    with pytest.raises(InvalidRequest):
        decode(b"\x91" * depth + b"\x90")


def test_nested_extension_types_are_refused_and_not_copied_at_each_level():
    data = encode([0] * 100_000)
    for _ in range(200):
        data = _ext(3, b"\x91" + data)
    _decode_or_refuse(data)
    with pytest.raises(InvalidRequest):
        decode(data)


def test_bytes_after_the_value_are_refused():
    with pytest.raises(InvalidRequest):
        decode(encode(1) + b"\0")


@settings(max_examples=20)
@given(values())
def test_any_buffer_will_do(value):
    encoded = encode(value)
    assert same(decode(memoryview(encoded)), value)
    assert same(decode(bytearray(encoded)), value)


@given(st.lists(st.lists(st.floats() | st.integers(2**33, 2**60) | st.integers(0, 9), max_size=30), max_size=5))
def test_each_number_of_a_document_is_counted_before_it_is_decoded(rows):
    encoded = encode(rows)
    numbers, lists = sum(map(len, rows)), len(rows) + 1
    assert decoded_size([encoded], 0, 10**9) == len(encoded) + 40 * numbers + 72 * lists
