"""Arrays that stock writers register come back as the registered shape says, whatever the files look like.

If these fail, runs written by TiledWriter read differently here than from the server they were made for.
"""

import os

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import (
    InvalidRequest,
    MissingAsset,
    OutOfBounds,
    OutsideRoots,
    TooLarge,
    Truncated,
    Unreadable,
    Unsupported,
)
from flystore.model.structures import ArrayStructure, Asset, DataSource, Family
from flystore.readers import open_registered
from flystore.storage import Roots


def reader_of(tmp_path, names, shape, dtype="<i4", mimetype="application/x-hdf5", properties=None, **parameters):
    structure = ArrayStructure.of(dtype, shape)
    if mimetype == "application/x-hdf5":
        parameters.setdefault("dataset", "d")
    source = DataSource(
        Family.ARRAY,
        mimetype,
        structure.to_wire(),
        parameters,
        properties or {},
        # Listed in another order than their numbers.
        tuple(Asset(f"file://localhost{tmp_path}/{name}", num=i) for i, name in enumerate(names))[::-1],
    )
    return open_registered(source, structure, Roots([tmp_path]))


def hdf5(tmp_path, *arrays, **kwargs):
    names = []
    for i, values in enumerate(arrays):
        names.append(f"{i}.h5")
        with h5py.File(tmp_path / names[-1], "w") as file:
            file.create_dataset("d", data=values, **kwargs)
    return names


def values_of(*shape):
    return np.arange(np.prod(shape), dtype="<i4").reshape(shape)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_any_slice_of_any_reshape_is_that_of_numpy(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("r")
    stored, seen = data.draw(
        st.sampled_from(
            [
                ((20, 2, 3), (5, 4, 2, 3)),
                ((20, 2, 3), (20, 1, 2, 3)),
                ((20, 2, 3), (40, 3)),
                ((20, 2, 3), (120,)),
                ((5, 4, 2, 3), (20, 2, 3)),
                ((5, 4, 2, 3), (5, 4, 2, 3)),
                ((6,), (6, 1)),
                ((6, 1), (6,)),
                ((12,), (3, 4)),
                ((3, 4), (12,)),
            ]
        )
    )
    cut = data.draw(st.integers(0, stored[0]))
    values = values_of(*stored)
    chunks = tuple(data.draw(st.integers(1, n)) for n in stored)
    arrays = [part for part in (values[:cut], values[cut:]) if len(part)]
    for i, part in enumerate(arrays):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset(
                "d", data=part, chunks=tuple(min(c, n) for c, n in zip(chunks, part.shape, strict=True))
            )
    bound = st.one_of(st.none(), st.integers(-9, 9))
    part = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))
    selection = tuple(
        data.draw(st.one_of(part, st.integers(-n, n - 1))) for n in seen[: data.draw(st.integers(0, len(seen)))]
    )
    with reader_of(tmp_path, [f"{i}.h5" for i in range(len(arrays))], seen) as reader:
        found = reader.read(selection)
        assert reader.probe().rows == seen[0]
    np.testing.assert_array_equal(found, values.reshape(seen)[selection])
    assert found.flags.c_contiguous


def test_files_are_joined_in_the_order_of_their_numbers(tmp_path):
    names = hdf5(tmp_path, values_of(2, 3), values_of(3, 3) + 100, values_of(1, 3) + 200)
    with reader_of(tmp_path, names, (6, 3)) as reader:
        assert reader.read((slice(None), 0)).tolist() == [0, 3, 100, 103, 106, 200]


def test_many_files_are_joined_with_few_of_them_open(tmp_path):
    names = hdf5(tmp_path, *(values_of(2, 3) + i for i in range(150)))
    before = len(os.listdir("/proc/self/fd"))
    with reader_of(tmp_path, names, (300, 3)) as reader:
        assert reader.read((slice(None, None, -2), 0)).tolist() == [3 + i for i in reversed(range(150))]
        assert len(os.listdir("/proc/self/fd")) < before + 100
    assert len(os.listdir("/proc/self/fd")) <= before


def test_scalars_are_stacked(tmp_path):
    names = hdf5(tmp_path, np.int32(4), np.int32(5))
    with reader_of(tmp_path, names, (2,)) as reader:
        assert reader.read().tolist() == [4, 5]
    with reader_of(tmp_path, names[:1], ()) as reader:
        assert reader.read().tolist() == 4
        assert reader.read().shape == ()


def test_a_larger_file_serves_its_first_rows(tmp_path):
    names = hdf5(tmp_path, values_of(10, 3))
    with reader_of(tmp_path, names, (4, 3)) as reader:
        np.testing.assert_array_equal(reader.read(), values_of(10, 3)[:4])
        assert reader.probe().rows == 4


def test_a_smaller_file_serves_what_it_has_and_says_so(tmp_path):
    names = hdf5(tmp_path, values_of(10, 3), chunks=(1, 3))
    with reader_of(tmp_path, names, (3, 4, 3)) as reader:
        found = reader.probe()
        assert (found.status, found.rows) == ("ok", 2)
        assert "2 of 3" in found.why
        np.testing.assert_array_equal(reader.read((slice(0, 2),)), values_of(10, 3)[:8].reshape(2, 4, 3))
        with pytest.raises(Truncated, match="still be arriving") as caught:
            reader.read()
    assert (caught.value.announced, caught.value.found) == (3, 2)
    assert caught.value.modified_ns == (tmp_path / names[0]).stat().st_mtime_ns


def test_trailing_dimensions_that_disagree_are_a_mismatch(tmp_path):
    names = hdf5(tmp_path, values_of(10, 3))
    with reader_of(tmp_path, names, (10, 4)) as reader:
        assert reader.probe().status == "mismatch"
        with pytest.raises(Unreadable, match=r"\(10, 3\)"):
            reader.read()
    with reader_of(tmp_path, names, (10, 3), "<f8") as reader, pytest.raises(Unreadable, match="float64"):
        reader.read()
    names = hdf5(tmp_path, values_of(2, 3), values_of(2, 4))
    with reader_of(tmp_path, names, (4, 3)) as reader, pytest.raises(Unreadable, match="joined"):
        reader.read()


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("0:3", np.s_[0:3]),
        (":, 1:3", np.s_[:, 1:3]),
        ("[::2, ::-1]", np.s_[::2, ::-1]),
        ("(1:6, :, 0)", np.s_[1:6, :, 0]),
        ("::-1,-1", np.s_[::-1, -1]),
        ("3", np.s_[3]),
    ],
)
def test_the_readers_slice_is_taken_before_anything_else(tmp_path, text, selection):
    values = values_of(6, 4, 2)
    expected = values[selection]
    names = hdf5(tmp_path, values, chunks=(2, 3, 1))
    with reader_of(tmp_path, names, expected.shape, slice=text, squeeze=True) as reader:
        np.testing.assert_array_equal(reader.read(), expected)
        np.testing.assert_array_equal(reader.read((slice(None, None, -1), 0)), expected[::-1, 0])


@pytest.mark.parametrize("text", ["nonsense", "1,2,3,4", [1], "::0"])
def test_a_readers_slice_that_is_none_is_refused(tmp_path, text):
    names = hdf5(tmp_path, values_of(6, 4))
    before = set(os.listdir("/proc/self/fd"))
    with reader_of(tmp_path, names, (6, 4), slice=text) as reader, pytest.raises(InvalidRequest):
        reader.read()
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("pages", "shape", "stacked"),
    [
        (1, (4, 3, 5), ((1,) * 4, (3,), (5,))),
        (1, (2, 2, 3, 5), ((1,) * 4, (3,), (5,))),
        (2, (2, 4, 3, 5), ((1,) * 4, (2,), (3,), (5,))),
        (6, (4, 6, 3, 5), ((1,) * 4, (6,), (3,), (5,))),
    ],
)
def test_sequences_of_images_are_stacked(tmp_path, pages, shape, stacked):
    values = values_of(4 * pages, 3, 5).astype("<u2")
    for i in range(4):
        tifffile.imwrite(tmp_path / f"{i}.tiff", values[i * pages : (i + 1) * pages], photometric="minisblack")
    with reader_of(
        tmp_path,
        [f"{i}.tiff" for i in range(4)],
        shape,
        "<u2",
        "multipart/related;type=image/tiff",
        {"chunks": stacked},
    ) as reader:
        np.testing.assert_array_equal(reader.read(), values.reshape(shape))
        np.testing.assert_array_equal(reader.read((-1, 0)), values.reshape(shape)[-1, 0])
        assert reader.probe().rows == shape[0]
    (tmp_path / "2.tiff").unlink()
    with reader_of(
        tmp_path, [f"{i}.tiff" for i in range(4)], shape, "<u2", "multipart/related;type=image/tiff"
    ) as reader:
        assert reader.probe().rows == 2 * shape[0] // 4
        with pytest.raises(MissingAsset):
            reader.read()


def test_single_images_and_npy_files_are_their_content(tmp_path):
    values = values_of(3, 5).astype("<u2")
    tifffile.imwrite(tmp_path / "x.tiff", values)
    np.save(tmp_path / "x.npy", values)
    for name, mimetype in (("x.tiff", "image/tiff"), ("x.npy", "application/x-npy")):
        for shape in ((3, 5), (1, 3, 5), (15,)):
            with reader_of(tmp_path, [name], shape, "<u2", mimetype) as reader:
                np.testing.assert_array_equal(reader.read(), values.reshape(shape))


def test_what_is_wrong_is_said_before_anything_is_read(tmp_path):
    names = hdf5(tmp_path, values_of(4, 3))
    with reader_of(tmp_path, names, (4, 3)) as reader:
        with pytest.raises(OutOfBounds):
            reader.read((4,))
        with pytest.raises(InvalidRequest):
            reader.read((0, 0, 0))
        with pytest.raises(TooLarge):
            reader.read(limit_bytes=47)
        assert reader.read((slice(0, 0),)).shape == (0, 3)
        assert reader.read((slice(3, 0, -1), 1), limit_bytes=47).tolist() == [10, 7, 4]
    with reader_of(tmp_path, ["none.h5"], (4, 3)) as reader:
        assert reader.probe().status == "missing"
        with pytest.raises(MissingAsset):
            reader.read()
    with reader_of(tmp_path, ["../none.h5"], (4, 3)) as reader:
        assert reader.probe().status == "outside-roots"
        with pytest.raises(OutsideRoots):
            reader.read()
    with reader_of(tmp_path, [], (4, 3)) as reader, pytest.raises(InvalidRequest, match="no files"):
        reader.read()
    with reader_of(tmp_path, names, (4, 3), mimetype="application/x-zarr") as reader, pytest.raises(Unsupported):
        reader.read()


def test_rows_that_were_never_written_end_the_readable_part(tmp_path):
    with h5py.File(tmp_path / "0.h5", "w") as file:
        file.create_dataset("d", (6, 3), "<i4", chunks=(1, 3))[:4] = 1
    with reader_of(tmp_path, ["0.h5"], (6, 3)) as reader:
        assert reader.probe().rows == 4
        assert (reader.read((slice(0, 4),)) == 1).all()
        with pytest.raises(Unreadable, match="never written"):
            reader.read()
