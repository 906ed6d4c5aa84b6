"""What zarr-python reads from our documents and chunks is what numpy has, in both formats.

If these fail, a program that opens an array as Zarr computes with other values than were measured.
"""

import itertools
import json
import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from flystore.model.errors import Unsupported
from flystore.service.zarr_format import (
    V2,
    V3,
    Form,
    array_v2,
    array_v3,
    encoded,
    grid_of,
    is_possible,
    region_of,
    shown_dtype,
)

BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0, "typesize": 2}
DTYPES = [
    *("?", "i1", "<u2", ">i4", "<u8", "<f2", ">f4", "<f8", "<c8", ">c16"),
    *("<M8[ns]", ">M8[10us]", "<M8[D]", "<m8[s]", "M8", "<U3", ">U5", "U0", "S4", "S0", "V3"),
    [("a", ">i4"), ("b", "<f8")],
    [("s", "S3"), ("u", "<U2"), ("when", "<M8[ms]")],
]
NESTED = [("s", "S3"), ("n", [("x", ">i2"), ("when", "<M8[ms]")])]


def stored(values, form, version):
    """Return an array as a store that zarr-python reads, made only of our documents and chunks."""
    content = {}
    if version == V2:
        content[".zarray"] = json.dumps(array_v2(form, values.shape)).encode()
    else:
        dims = [f"dim{axis}" for axis in range(values.ndim)]
        content["zarr.json"] = json.dumps(array_v3(form, values.shape, dims, {})).encode()
    counts = [-(-n // c) for n, c in zip(values.shape, form.chunks, strict=True)]
    for index in itertools.product(*map(range, counts)):
        region = region_of(values.shape, form.chunks, index)
        name = (".".join(map(str, index)) or "0") if version == V2 else "/".join(("c", *map(str, index)))
        content[name] = encoded(values[region], form)
    buffer = default_buffer_prototype().buffer
    return MemoryStore({name: buffer.from_bytes(body) for name, body in content.items()}, read_only=True)


def read(values, form, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some data types of format 3 are not settled; zarr says so
        return zarr.open_array(stored(values, form, version), mode="r", zarr_format=version)[...]


def same(found, values):
    expected = np.asarray(values)
    assert found.shape == expected.shape
    if expected.dtype.itemsize == 0:
        return not np.any(found != expected)
    same_order = np.asarray(found).astype(expected.dtype)
    return same_order.tobytes() == expected.tobytes()


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7))
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    if dtype.kind in "US" or dtype.fields is not None:
        count = int(np.prod(shape))
        return np.array(draw(st.lists(items(dtype), min_size=count, max_size=count)), dtype).reshape(shape)
    content = draw(st.binary(min_size=dtype.itemsize, max_size=64))
    values = np.resize(np.frombuffer(content, "u1"), (*shape, dtype.itemsize))
    return np.ndarray(shape, dtype, np.ascontiguousarray(values % 2 if dtype.kind == "b" else values))


def items(dtype):
    if dtype.fields is not None:
        return st.tuples(*(items(dtype.fields[name][0]) for name in dtype.names))
    if dtype.kind == "U":
        return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=dtype.itemsize // 4)
    if dtype.kind == "S":
        return st.binary(max_size=dtype.itemsize).map(lambda text: text.replace(b"\0", b"."))
    if dtype.kind == "M":
        return st.integers(0, 2**40).map(lambda number: np.datetime64(number, "ms"))
    if dtype.kind == "f":
        return st.floats(width=8 * dtype.itemsize)
    return st.integers(-(2 ** (8 * dtype.itemsize - 1)), 2 ** (8 * dtype.itemsize - 1) - 1)


@settings(deadline=None)
@given(arrays(), st.data())
@pytest.mark.parametrize("version", [V2, V3])
def test_zarr_reads_what_numpy_has(version, values, data):
    chunks = tuple(data.draw(st.integers(1, 9)) for _ in values.shape)
    form = Form.plain(chunks, shown_dtype(values.dtype, version))
    assert same(read(values, form, version), values)


def test_fields_that_have_fields_are_read_in_format_3_and_refused_in_format_2():
    values = np.array([(b"ab", (7, "2026-11-22"))] * 3, NESTED)
    assert same(read(values, Form.plain((2,), shown_dtype(values.dtype, V3)), V3), values)
    with pytest.raises(Unsupported):
        shown_dtype(values.dtype, V2)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.dtype("<u2"), hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)), st.data())
@pytest.mark.parametrize(
    "codecs",
    [
        (),
        ({"id": "zstd", "level": 1},),
        (BLOSC,),
        ({"id": "zlib", "level": 4},),
        ({"id": "shuffle", "elementsize": 2}, {"id": "zlib", "level": 1}),
        ({"id": "shuffle", "elementsize": 2}, {"id": "zlib", "level": 1}, {"id": "fletcher32"}),
        ({"id": "fletcher32"},),
        ({"id": "zstd", "level": 3}, {"id": "fletcher32"}),
        (BLOSC, {"id": "crc32c"}),
    ],
    ids=lambda codecs: "+".join(codec["id"] for codec in codecs) or "plain",
)
def test_zarr_undoes_every_codec_in_the_formats_that_have_it(codecs, values, data):
    chunks = tuple(data.draw(st.integers(1, 7)) for _ in values.shape)
    form = Form(chunks, "<u2", codecs)
    versions = [version for version in (V2, V3) if is_possible(form, version)]
    assert versions
    for version in versions:
        assert same(read(values, form, version), values)


@pytest.mark.parametrize("name", ["zlib", "shuffle", "fletcher32"])
def test_format_3_has_no_name_for_what_only_format_2_knows(name):
    assert not is_possible(Form((2,), "<u2", ({"id": name},)), V3)


def test_format_3_has_one_byte_order_for_all_fields():
    mixed = np.dtype([("a", ">i4"), ("b", "<f8")])
    assert not is_possible(Form.plain((2,), mixed), V3)
    assert is_possible(Form.plain((2,), shown_dtype(mixed, V3)), V3)


@pytest.mark.parametrize("dtype", ["g", "G", "V0", [("a", "<f4", (2,))]])
def test_what_zarr_has_no_type_for_is_refused(dtype):
    with pytest.raises(Unsupported):
        shown_dtype(np.dtype(dtype), V2)


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 40)), min_size=1, max_size=3),
    st.integers(1, 2000),
    st.booleans(),
)
def test_the_grid_does_not_follow_from_how_many_rows_there_are(axes, more, growing):
    shape, chunks = zip(*axes, strict=True)
    grown = (shape[0] + more, *shape[1:])
    dtype = np.dtype("<f8")
    assert grid_of(shape, chunks, dtype, growing=growing) == grid_of(grown, chunks, dtype, growing=growing)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=4),
    st.integers(1, 64),
    st.booleans(),
)
def test_a_chunk_is_never_too_large_to_send(axes, itemsize, growing):
    shape, chunks = zip(*axes, strict=True) if axes else ((), ())
    grid = grid_of(shape, chunks, np.dtype(f"S{itemsize}"), growing=growing)
    assert all(n >= 1 for n in grid)
    assert itemsize * np.prod(grid, dtype=object) <= 2**26


def test_a_chunk_beyond_the_end_is_none():
    assert region_of((5,), (2,), (2,)) == (slice(4, 5),)
    assert region_of((5,), (2,), (3,)) is None
    assert region_of((0, 3), (2, 3), (0, 0)) is None
    assert region_of((), (), ()) == ()


def test_a_chunk_that_is_not_there_does_not_look_like_a_measured_value():
    """Of floats and times; there is no such value among whole numbers, and no such chunk is left out."""
    fills = {
        kind: array_v3(Form.plain((2,), np.dtype(kind)), (2,), ["x"], {})["fill_value"]
        for kind in ("<f8", "<c8", "<M8[ns]")
    }
    assert fills == {"<f8": "NaN", "<c8": ["NaN", "NaN"], "<M8[ns]": "NaT"}
