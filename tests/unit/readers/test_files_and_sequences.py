"""Images, NPY and CSV files, one or thousands, give the values that their writers put in.

If these fail, cameras that write one file a frame cannot be read, or the frames are in the wrong order.
"""

import contextlib
import io
import os

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flystore.model.errors import (
    InvalidRequest,
    MissingAsset,
    OutsideRoots,
    TooLarge,
    Truncated,
    Unreadable,
    Unsupported,
)
from flystore.readers import EventFiles, FileTemplate, Resource, open_reader
from flystore.storage import PathMap, Roots

TIFF = "multipart/related;type=image/tiff"
NPY = "multipart/related;type=application/x-npy"


def reader_of(tmp_path, mimetype, dtype, item, resources, maps=(), **parameters):
    files = EventFiles(mimetype, np.dtype(dtype).str, item, tuple(resources), parameters)
    return open_reader(files, Roots([tmp_path], maps))


def sequence(tmp_path, template="img_{:06d}.tiff", **kwargs):
    return Resource(f"file://localhost{tmp_path}/", template=template, **kwargs)


def read(reader, rows, inner=(), **kwargs):
    return reader.read(np.zeros(len(rows), int), np.asarray(rows), inner, **kwargs)


def frames(n, shape=(3, 4), dtype="<u2"):
    return np.arange(n * np.prod(shape)).reshape(n, *shape).astype(dtype)


def tiffs(tmp_path, values, template="img_{:06d}.tiff", first=0, **kwargs):
    for i, value in enumerate(values):
        tifffile.imwrite(tmp_path / template.format(first + i), value, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"compression": "zlib"}, {"rowsperstrip": 1}, {"byteorder": ">"}])
def test_one_tiff_a_frame(tmp_path, kwargs):
    values = frames(5)
    tiffs(tmp_path, values, **kwargs)
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path)]) as reader:
        found = reader.probe().resources[0]
        assert (found.status, found.events, found.holes, found.shape) == ("ok", 5, (), (5, 3, 4))
        np.testing.assert_array_equal(read(reader, [4, 0, 2]), values[[4, 0, 2]])
        np.testing.assert_array_equal(read(reader, [1, 1], (slice(None, None, -1), 2)), values[[1, 1]][:, ::-1, 2])
        with pytest.raises(Truncated):
            read(reader, [5])


def test_several_files_an_event_and_several_pages_a_file(tmp_path):
    values = frames(12)
    for i in range(6):
        tifffile.imwrite(tmp_path / f"img_{i:06d}.tiff", values[2 * i : 2 * i + 2], photometric="minisblack")
    with reader_of(tmp_path, TIFF, "<u2", (6, 3, 4), [sequence(tmp_path, files_per_event=3)]) as reader:
        assert reader.probe().resources[0].events == 2
        np.testing.assert_array_equal(read(reader, [1, 0]), values.reshape(2, 6, 3, 4)[[1, 0]])
        np.testing.assert_array_equal(read(reader, [1], (slice(1, 6, 2), 2)), values.reshape(2, 6, 3, 4)[[1], 1::2, 2])


def test_another_number_of_files_an_event_than_announced_is_a_mismatch(tmp_path):
    tiffs(tmp_path, frames(4))
    for announced, item in ((1, (2, 3, 4)), (2, (3, 4))):
        resource = sequence(tmp_path, files_per_event=announced)
        with reader_of(tmp_path, TIFF, "<u2", item, [resource]) as reader:
            assert reader.probe().resources[0].status == "mismatch"
            with pytest.raises(Unreadable, match=f"{announced} files an event were announced"):
                read(reader, [0])


def test_an_announced_length_one_axis_is_no_other_layout(tmp_path):
    values = frames(3)
    tiffs(tmp_path, values)
    with reader_of(tmp_path, TIFF, "<u2", (1, 3, 4), [sequence(tmp_path)]) as reader:
        np.testing.assert_array_equal(read(reader, [2, 0]), values[[2, 0], None])


def test_numbers_may_start_anywhere_and_go_on_in_a_further_resource(tmp_path):
    values = frames(5)
    tiffs(tmp_path, values[:3], first=7)
    tiffs(tmp_path, values[3:], template="b_{:d}.tiff")
    resources = [
        sequence(tmp_path, first_file=7),
        Resource(f"file://localhost{tmp_path}/b", template="_{}.tiff", first_file=-3),
    ]
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), resources) as reader:
        found = reader.read(np.array([0, 1, 1, 0]), np.array([2, 3, 4, 0]))
        np.testing.assert_array_equal(found, values[[2, 3, 4, 0]])
        assert [r.events for r in reader.probe().resources] == [3, 5]
        assert reader.probe().resources[1].holes == ((0, 3),)


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_that_is_missing_from_the_sequence_is_a_hole(tmp_path, empty):
    """An empty file is one that is just being made."""
    values = frames(5)
    tiffs(tmp_path, values)
    (tmp_path / "img_000002.tiff").unlink()
    if empty:
        (tmp_path / "img_000002.tiff").touch()
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path)]) as reader:
        assert reader.probe().resources[0].holes == ((2, 3),)
        assert reader.present(0, range(6)).tolist() == [True, True, False, True, True, False]
        np.testing.assert_array_equal(read(reader, [3, 1]), values[[3, 1]])
        with pytest.raises(Unreadable if empty else MissingAsset, match="img_000002"):
            read(reader, [2])


def test_a_sequence_of_which_nothing_is_there_says_what_is_missing(tmp_path):
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path)]) as reader:
        assert reader.probe().resources[0].status == "missing"
        with pytest.raises(MissingAsset, match="img_000000"):
            read(reader, [0])
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path.parent)]) as reader:
        assert reader.probe().resources[0].status == "outside-roots"


def test_a_symlink_in_a_sequence_that_leads_out_is_not_there_and_not_read(tmp_path):
    (tmp_path / "root").mkdir()
    tiffs(tmp_path / "root", frames(2))
    tifffile.imwrite(tmp_path / "secret.tiff", frames(1)[0])
    (tmp_path / "root/img_000001.tiff").unlink()
    (tmp_path / "root/img_000001.tiff").symlink_to(tmp_path / "secret.tiff")
    tifffile.imwrite(tmp_path / "root/img_000002.tiff", frames(1)[0])
    with reader_of(tmp_path / "root", TIFF, "<u2", (3, 4), [sequence(tmp_path / "root")]) as reader:
        assert reader.present(0, range(3)).tolist() == [True, False, True]
        with pytest.raises(OutsideRoots):
            read(reader, [1])


def test_encoded_and_mapped_directories_are_listed(tmp_path):
    (tmp_path / "a b").mkdir()
    tiffs(tmp_path / "a b", frames(3))
    maps = [PathMap.parse(f"C:\\cam={tmp_path}")]
    for prefix in (f"file://localhost{tmp_path}/a b/", f"file://localhost{tmp_path}/a%20b/", "C:\\cam\\a b\\"):
        resource = Resource(prefix, template="img_{:06d}.tiff")
        with reader_of(tmp_path, TIFF, "<u2", (3, 4), [resource], maps) as reader:
            assert reader.probe().resources[0].events == 3
            np.testing.assert_array_equal(read(reader, [2]), frames(3)[[2]])


def test_a_file_of_another_shape_or_type_in_the_sequence_is_an_error_that_names_it(tmp_path):
    tiffs(tmp_path, frames(3))
    tifffile.imwrite(tmp_path / "img_000001.tiff", frames(1, (4, 3))[0])
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path)]) as reader:
        with pytest.raises(Unreadable, match="img_000001"):
            read(reader, [0, 1])
        np.testing.assert_array_equal(read(reader, [2]), frames(3)[[2]])


def test_one_file_of_many_pages_is_a_stack(tmp_path):
    values = frames(6)
    tifffile.imwrite(tmp_path / "x.tiff", values, photometric="minisblack")
    resource = Resource(f"file://localhost{tmp_path}/x.tiff")
    with reader_of(tmp_path, "image/tiff", "<u2", (2, 3, 4), [resource]) as reader:
        np.testing.assert_array_equal(read(reader, [2, 0]), values.reshape(3, 2, 3, 4)[[2, 0]])
    with reader_of(tmp_path, "image/tiff", "<u2", (6, 3, 4), [resource]) as reader:
        np.testing.assert_array_equal(read(reader, [0])[0], values)


def test_a_tiff_cut_short_is_truncated_and_never_zeros(tmp_path):
    tiffs(tmp_path, frames(2, (64, 64)), photometric="minisblack")
    path = tmp_path / "img_000001.tiff"
    os.truncate(path, path.stat().st_size - 100)
    with (
        reader_of(tmp_path, TIFF, "<u2", (64, 64), [sequence(tmp_path)]) as reader,
        pytest.raises(Unreadable, match="img_000001"),
    ):
        read(reader, [1])


def test_a_tiff_whose_strips_were_never_written_is_unreadable(tmp_path):
    tifffile.imwrite(tmp_path / "img_000000.tiff", frames(1, (64, 64))[0], rowsperstrip=8)
    with tifffile.TiffFile(tmp_path / "img_000000.tiff") as tiff:
        tag = tiff.pages[0].tags["StripByteCounts"]
        place, size = tag.valueoffset, tag.dtype.name
    data = bytearray((tmp_path / "img_000000.tiff").read_bytes())
    width = 2 if size == "SHORT" else 4
    data[place + 3 * width : place + 4 * width] = bytes(width)
    (tmp_path / "img_000000.tiff").write_bytes(data)
    with (
        reader_of(tmp_path, TIFF, "<u2", (64, 64), [sequence(tmp_path)]) as reader,
        pytest.raises(Unreadable, match="never written"),
    ):
        read(reader, [0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_tiff_and_npy_files_are_errors_or_arrays(tmp_path_factory, changes):
    directory = tmp_path_factory.mktemp("damaged")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, frames(1)[0])
    npy = io.BytesIO()
    np.save(npy, frames(1)[0])
    for mimetype, content in (("image/tiff", buffer.getvalue()), ("application/x-npy", npy.getvalue())):
        data = bytearray(content)
        for where, value in changes:
            data[int(where * len(data))] = value
        (directory / "x").write_bytes(data)
        resource = Resource(f"file://localhost{directory}/x")
        with (
            reader_of(directory, mimetype, "<u2", (3, 4), [resource]) as reader,
            contextlib.suppress(Unreadable, Unsupported, TooLarge),
        ):
            assert read(reader, [0], limit_bytes=2**20).shape == (1, 3, 4)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">i2", "?", "S3", "<M8[ns]"])
def test_npy_files_are_read_by_slice(tmp_path, order, dtype):
    values = np.arange(60).astype("i1").reshape(5, 3, 4)
    values = values.astype(dtype) if np.dtype(dtype).kind != "M" else values.astype("i8").astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(values, order=order))
    with reader_of(tmp_path, "application/x-npy", dtype, (3, 4), [Resource(f"file://localhost{tmp_path}/x.npy")]) as r:
        np.testing.assert_array_equal(read(r, [4, 0, 1], (slice(None), 3)), values[[4, 0, 1], :, 3])
        np.testing.assert_array_equal(read(r, range(1, 5, 2)), values[1:5:2])
        assert r.probe().resources[0].events == 5


def test_npy_sequences_and_scalars(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"abc_{i}.npy", np.full((2, 2), i, "<f8"))
        np.save(tmp_path / f"one_{i}.npy", np.float64(i))
    with reader_of(
        tmp_path, NPY, "<f8", (2, 2), [Resource(f"file://localhost{tmp_path}/abc", template="_{:d}.npy")]
    ) as reader:
        assert read(reader, [2, 1])[:, 0, 0].tolist() == [2, 1]
    with reader_of(tmp_path, NPY, "<f8", (), [sequence(tmp_path, "one_{:d}.npy")]) as reader:
        assert read(reader, [2, 0]).tolist() == [2, 0]


def test_npy_files_cut_short_are_truncated(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, frames(5))
    os.truncate(path, path.stat().st_size - 30)
    with reader_of(tmp_path, "application/x-npy", "<u2", (3, 4), [Resource(f"file://localhost{path}")]) as reader:
        assert reader.probe().resources[0].truncated == ((3, 5),)
        np.testing.assert_array_equal(read(reader, [2]), frames(5)[[2]])
        with pytest.raises(Truncated) as caught:
            read(reader, [4])
    assert (caught.value.announced, caught.value.found) == (5, 3)


def test_pickled_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    with (
        reader_of(tmp_path, "application/x-npy", "<u2", (), [Resource(f"file://localhost{tmp_path}/x.npy")]) as reader,
        pytest.raises(Unsupported, match="pickled"),
    ):
        read(reader, [0])
    assert not (tmp_path / "exploded").exists()


def test_declared_sizes_are_not_believed(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": True, "shape": (10**6, 10**9)})
    (tmp_path / "x.npy").write_bytes(header.getvalue() + bytes(100))
    resource = Resource(f"file://localhost{tmp_path}/x.npy")
    with reader_of(tmp_path, "application/x-npy", "<f8", (10**9,), [resource]) as reader:
        with pytest.raises(TooLarge):
            read(reader, [0], limit_bytes=2**20)
        with pytest.raises(Truncated):
            read(reader, [0], (slice(0, 1),), limit_bytes=2**20)


def test_jpeg_images_are_lines_of_pixels(tmp_path):
    values = np.full((16, 24, 3), 128, "u1")
    for i in range(2):
        Image.fromarray(values).save(tmp_path / f"img_{i}.jpeg", quality=95)
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.jpeg")
    mimetype = "multipart/related;type=image/jpeg"
    with reader_of(tmp_path, mimetype, "u1", (16, 24, 3), [sequence(tmp_path, "img_{:d}.jpeg")]) as reader:
        assert abs(read(reader, [1, 0]).astype(int) - 128).max() < 4
        assert read(reader, [0], (slice(0, 4), 3)).shape == (1, 4, 3)
        with pytest.raises(TooLarge):
            read(reader, [0], (0, 0, 0), limit_bytes=100)
    with reader_of(tmp_path, "image/jpeg", "u1", (16, 24), [Resource(f"file://localhost{tmp_path}/grey.jpeg")]) as r:
        assert abs(read(r, [0]).astype(int) - 128).max() < 4
    os.truncate(tmp_path / "img_1.jpeg", 400)
    with (
        reader_of(tmp_path, mimetype, "u1", (16, 24, 3), [sequence(tmp_path, "img_{:d}.jpeg")]) as reader,
        pytest.raises(Unreadable),
    ):
        read(reader, [1])


def test_csv_without_a_header_is_an_array(tmp_path):
    (tmp_path / "x.csv").write_text("1,2,3\n4,5.5,6\n7,8,9\n10,11,12\n")
    (tmp_path / "y.csv").write_text("# made by hand\n1;2\n3;4\n5;6\n")
    (tmp_path / "z.csv").write_text("1,a\n2,b\n")
    x = Resource(f"file://localhost{tmp_path}/x.csv")
    with reader_of(tmp_path, "text/csv;header=absent", "<f8", (2, 3), [x]) as reader:
        assert reader.probe().resources[0].events == 2
        assert read(reader, [1, 0], (1, slice(0, 2))).tolist() == [[10, 11], [4, 5.5]]
    y = Resource(f"file://localhost{tmp_path}/y.csv")
    with reader_of(tmp_path, "text/csv;header=absent", "<i4", (1, 2), [y], sep=";", skiprows=1, nrows=2) as reader:
        assert read(reader, range(reader.probe().resources[0].events)).tolist() == [[[1, 2]], [[3, 4]]]
    z = Resource(f"file://localhost{tmp_path}/z.csv")
    with reader_of(tmp_path, "text/csv;header=absent", "<f8", (2,), [z]) as reader, pytest.raises(Unreadable):
        read(reader, [0])


def test_bytes_and_unknown_types_have_no_array(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    for mimetype in ("application/octet-stream", "application/x-nexus", ""):
        with (
            reader_of(tmp_path, mimetype, "u1", (), [Resource(f"file://localhost{tmp_path}/x")]) as reader,
            pytest.raises(Unsupported),
        ):
            read(reader, [0])


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("img_{:06d}.tiff", 42, "img_000042.tiff"),
        ("{}", 7, "7"),
        ("{:d}.npy", -3, "-3.npy"),
        ("a{:<6d}b", 5, "a5     b"),
        ("a{:+06d}b", 5, "a+00005b"),
        ("{{x}}_{:03d}", 5, "{x}_005"),
        ("{:02d}", 12345, "12345"),
        ("{: 04d}", 12, " 012"),
    ],
)
def test_a_template_names_files_and_reads_names(text, number, name):
    template = FileTemplate.parse(text)
    assert template.name(number) == name == text.format(number)
    assert template.number(name) == number
    assert template.number("x" + name) is None
    assert template.number(name + "x") is None


@pytest.mark.parametrize(
    "text",
    ["{.__class__}", "{0.real}", "{:1000000000d}", "{:d}{:d}", "{", "}", "{x}", "{!r}", "{:{}}", "{:e}", "{:s}"],
)
def test_a_template_can_ask_for_nothing_but_a_number(text):
    with pytest.raises(Unsupported):
        FileTemplate.parse(text)


def test_a_huge_file_number_costs_nothing(tmp_path):
    tiffs(tmp_path, frames(1), template="img_{:d}.tiff")
    (tmp_path / f"img_{10**17}.tiff").write_bytes(b"x")
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path, "img_{:d}.tiff")]) as reader:
        np.testing.assert_array_equal(read(reader, [0]), frames(1))


def test_no_file_stays_open(tmp_path):
    tiffs(tmp_path, frames(3))
    np.save(tmp_path / "x.npy", frames(3))
    before = set(os.listdir("/proc/self/fd"))
    with reader_of(tmp_path, TIFF, "<u2", (3, 4), [sequence(tmp_path)]) as reader:
        reader.probe()
        read(reader, [0, 2])
        with pytest.raises(InvalidRequest):
            read(reader, [0], (0, 0, 0))
    with reader_of(tmp_path, "application/x-npy", "<f8", (), [Resource(f"file://localhost{tmp_path}/x.npy")]) as r:
        assert r.probe().resources[0].status == "mismatch"
    assert set(os.listdir("/proc/self/fd")) <= before
