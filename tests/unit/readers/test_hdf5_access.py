"""HDF5 files lead only to places that the operator named, whatever is written inside them.

If these fail, whoever can write an HDF5 file into a read root can read the machine's files through the service.
"""

import os
import struct

import h5py
import numpy as np
import pytest

from flystore.model.errors import MissingAsset, OutsideRoots, Unreadable, Unsupported
from flystore.readers import EventFiles, Resource, open_reader
from flystore.storage import PathMap, Roots

VALUES = np.arange(12, dtype="<i4").reshape(4, 3)


@pytest.fixture
def place(tmp_path):
    for name in ("root", "outside"):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "source.h5", "w") as file:
            file["entry/data"] = VALUES if name == "root" else -VALUES - 1
    (tmp_path / "outside/secret").write_bytes(VALUES.tobytes())
    return tmp_path


def reader_of(place, dataset="entry/data", item=(3,), name="main.h5", maps=()):
    files = EventFiles(
        "application/x-hdf5",
        "<i4",
        item,
        (Resource(f"file://localhost{place}/root/{name}", {"dataset": dataset}),),
    )
    return open_reader(files, Roots([place / "root"], maps))


def read(reader, rows=range(4), inner=()):
    return reader.read(np.zeros(len(rows), int), np.asarray(rows), inner)


def assert_refused(place, error, dataset="entry/data", **kwargs):
    before = set(os.listdir("/proc/self/fd"))
    with reader_of(place, dataset, **kwargs) as reader:
        with pytest.raises(error) as caught:
            read(reader)
        assert str(place / "root") not in caught.value.message.replace(f"file://localhost{place}/root", "")
        status = {OutsideRoots: "outside-roots", MissingAsset: "missing"}.get(error, "unreadable")
        assert reader.probe().resources[0].status == status
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("target", ["{place}/outside/source.h5", "../outside/source.h5", "/etc/passwd", "x/../../y"])
@pytest.mark.parametrize("dataset", ["link", "group/sub/data"])
def test_external_links_that_lead_out_are_refused(place, target, dataset):
    """At the end of a path, and in its middle."""
    with h5py.File(place / "root/main.h5", "w") as file:
        name = target.format(place=place)
        file["link"] = h5py.ExternalLink(name, "/entry/data")
        file["group/sub"] = h5py.ExternalLink(name, "/entry")
    assert_refused(place, OutsideRoots, dataset)


def test_external_links_that_stay_inside_are_followed(place):
    (place / "root/deep").mkdir()
    with h5py.File(place / "root/deep/far.h5", "w") as file:
        file["entry/data"] = VALUES + 1
    with h5py.File(place / "root/main.h5", "w") as file:
        file["link"] = h5py.ExternalLink("source.h5", "/entry/data")
        file["group/sub"] = h5py.ExternalLink("deep/far.h5", "entry")
        file["soft"] = h5py.SoftLink("/group/sub")
        file["moved"] = h5py.ExternalLink(str(place / "root/gone/source.h5"), "/entry/data")
        file["windows"] = h5py.ExternalLink("Z:\\data\\source.h5", "/entry/data")
    maps = [PathMap.parse(f"Z:\\data={place}/root")]
    for dataset, added in (("link", 0), ("group/sub/data", 1), ("soft/data", 1), ("moved", 0), ("windows", 0)):
        with reader_of(place, dataset, maps=maps) as reader:
            np.testing.assert_array_equal(read(reader), VALUES + added)


def test_a_symlink_is_judged_by_where_it_leads(place):
    (place / "root/innocent.h5").symlink_to(place / "outside/source.h5")
    with h5py.File(place / "root/main.h5", "w") as file:
        file["link"] = h5py.ExternalLink("innocent.h5", "/entry/data")
    assert_refused(place, OutsideRoots, "link")
    assert_refused(place, OutsideRoots, name="innocent.h5")


def test_a_link_whose_target_is_not_there_is_missing(place):
    with h5py.File(place / "root/main.h5", "w") as file:
        file["link"] = h5py.ExternalLink("none.h5", "/entry/data")
    assert_refused(place, MissingAsset, "link")


def test_links_that_go_in_circles_end(place):
    with h5py.File(place / "root/main.h5", "w") as file:
        file["a"] = h5py.SoftLink("/b")
        file["b"] = h5py.SoftLink("/a")
        file["self"] = h5py.ExternalLink("main.h5", "/self")
        file["dangling"] = h5py.SoftLink("/none")
    for dataset in ("a", "self", "dangling", "none", "a/b", "/"):
        assert_refused(place, Unreadable, dataset)


@pytest.mark.parametrize("inside", [False, True])
def test_external_raw_storage_is_never_followed(place, inside):
    target = place / "root/raw.bin" if inside else place / "outside/secret"
    target.write_bytes(VALUES.tobytes())
    with h5py.File(place / "root/main.h5", "w") as file:
        file.create_dataset("entry/data", (4, 3), "<i4", external=[(str(target), 0, 48)])
        file["link"] = h5py.SoftLink("/entry/data")
    assert_refused(place, OutsideRoots)
    assert_refused(place, OutsideRoots, "link")


def test_external_raw_storage_behind_links_and_virtual_datasets_is_never_followed(place):
    with h5py.File(place / "root/raw.h5", "w") as file:
        file.create_dataset("data", (4, 3), "<i4", external=[(str(place / "outside/secret"), 0, 48)])
    with h5py.File(place / "root/main.h5", "w") as file:
        file["link"] = h5py.ExternalLink("raw.h5", "data")
        layout = h5py.VirtualLayout((4, 3), "<i4")
        layout[...] = h5py.VirtualSource("raw.h5", "data", (4, 3))
        file.create_virtual_dataset("virtual", layout)
    assert_refused(place, OutsideRoots, "link")
    with reader_of(place, "virtual") as reader, pytest.raises(OutsideRoots):
        read(reader)


def virtual(place, sources, shape=(4, 3)):
    """`sources`: (where in the virtual dataset, file, dataset, shape, where in the source)."""
    with h5py.File(place / "root/main.h5", "w", libver="latest") as file:
        layout = h5py.VirtualLayout(shape, "<i4")
        for into, name, dataset, source_shape, out_of in sources:
            layout[into] = h5py.VirtualSource(name, dataset, source_shape)[out_of]
        file.create_virtual_dataset("entry/data", layout, fillvalue=99)


@pytest.mark.parametrize("name", ["{place}/outside/source.h5", "../outside/source.h5"])
def test_virtual_sources_that_lie_outside_are_refused(place, name):
    virtual(place, [(np.s_[:], name.format(place=place), "entry/data", (4, 3), np.s_[:])])
    assert_refused(place, OutsideRoots)


def test_a_virtual_source_that_is_a_symlink_out_is_refused(place):
    (place / "root/innocent.h5").symlink_to(place / "outside/source.h5")
    virtual(place, [(np.s_[:], "innocent.h5", "entry/data", (4, 3), np.s_[:])])
    assert_refused(place, OutsideRoots)


def test_a_pipe_as_virtual_source_does_not_hang(place):
    os.mkfifo(place / "root/pipe")
    virtual(place, [(np.s_[:], "pipe", "entry/data", (4, 3), np.s_[:])])
    assert_refused(place, Unreadable)


def numbered(place, n, shape=(2, 3)):
    for i in range(n):
        with h5py.File(place / f"root/part{i}.h5", "w") as file:
            file["d"] = np.arange(np.prod(shape), dtype="<i4").reshape(shape) + 100 * i


VIRTUAL = {
    "blocks": lambda i: (np.s_[2 * i : 2 * i + 2], (2, 3), np.s_[:]),
    "interleaved": lambda i: (np.s_[i::3], (2, 3), np.s_[:]),
    "single": lambda i: (np.s_[i], (2, 3), np.s_[1]),
    "columns": lambda i: (np.s_[:, i], (2, 3), np.s_[:, 0]),
    "strided": lambda i: (np.s_[i], (2, 3), np.s_[0, ::2]),
}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("blocks", (6, 3)), ("interleaved", (6, 3)), ("single", (3, 3)), ("columns", (2, 3)), ("strided", (3, 2))],
)
def test_virtual_datasets_are_what_hdf5_makes_of_them(place, kind, shape):
    numbered(place, 3)
    parts = [VIRTUAL[kind](i) for i in range(3)]
    virtual(place, [(into, f"part{i}.h5", "d", s, out) for i, (into, s, out) in enumerate(parts)], shape)
    with h5py.File(place / "root/main.h5") as file:
        expected = file["entry/data"][...]
    assert not (expected == 99).any()
    with reader_of(place, item=shape[1:]) as reader:
        assert reader.probe().resources[0].holes == ()
        np.testing.assert_array_equal(read(reader, range(shape[0])), expected)
        rows = [shape[0] - 1, 0, 0]
        np.testing.assert_array_equal(read(reader, rows, (slice(None, None, -2),)), expected[rows][:, ::-2])


def test_one_frame_a_file_is_read(place):
    for i in range(3):
        with h5py.File(place / f"root/part{i}.h5", "w") as file:
            file["d"] = np.full((2, 3), i, "<i4") + np.arange(6, dtype="<i4").reshape(2, 3) * 10
    virtual(place, [(np.s_[i], f"part{i}.h5", "d", (2, 3), np.s_[:]) for i in range(3)], (3, 2, 3))
    with h5py.File(place / "root/main.h5") as file:
        expected = file["entry/data"][...]
    with reader_of(place, item=(2, 3)) as reader:
        np.testing.assert_array_equal(read(reader, [2, 0, 2, 1]), expected[[2, 0, 2, 1]])
        np.testing.assert_array_equal(read(reader, [1], (1, slice(2, 0, -1))), expected[[1], 1, 2:0:-1])


def test_sources_of_unlimited_length_are_followed_as_far_as_they_go(place):
    with h5py.File(place / "root/grow.h5", "w", libver="latest") as file:
        file.create_dataset("d", data=VALUES, maxshape=(None, 3), chunks=(1, 3))
    with h5py.File(place / "root/main.h5", "w", libver="latest") as file:
        layout = h5py.VirtualLayout((4, 3), "<i4", maxshape=(None, 3))
        source = h5py.VirtualSource("grow.h5", "d", (4, 3), maxshape=(None, 3))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset("entry/data", layout)
    with reader_of(place) as reader:
        np.testing.assert_array_equal(read(reader, range(reader.probe().resources[0].events)), VALUES)


def test_a_source_in_the_same_file_is_read(place):
    with h5py.File(place / "root/main.h5", "w", libver="latest") as file:
        file["raw"] = VALUES
        layout = h5py.VirtualLayout((4, 3), "<i4")
        layout[...] = h5py.VirtualSource(file["raw"])
        file.create_virtual_dataset("entry/data", layout)
    with reader_of(place) as reader:
        np.testing.assert_array_equal(read(reader), VALUES)


def test_rows_whose_source_is_missing_are_not_present(place):
    numbered(place, 3)
    virtual(place, [(np.s_[2 * i : 2 * i + 2], f"part{i}.h5", "d", (2, 3), np.s_[:]) for i in range(3)], (8, 3))
    (place / "root/part1.h5").unlink()
    with reader_of(place) as reader:
        assert reader.present(0, range(8)).tolist() == [True, True, False, False, True, True, False, False]
        assert reader.probe().resources[0].holes == ((2, 4), (6, 8))
        assert read(reader, [0, 5]).tolist() == [[0, 1, 2], [103 + 100, 204, 205]]
        with pytest.raises((Unreadable, MissingAsset)):
            read(reader, [2])
        with pytest.raises(Unreadable, match="rows 7"):
            read(reader, [0, 7])


def test_a_source_that_is_shorter_than_mapped_leaves_rows_not_present(place):
    numbered(place, 1)
    virtual(place, [(np.s_[:], "part0.h5", "d", (4, 3), np.s_[:])])
    with reader_of(place) as reader:
        assert reader.present(0, range(4)).tolist() == [True, True, False, False]
        with pytest.raises(Unreadable):
            read(reader, [2])


def test_virtual_datasets_of_virtual_datasets_end(place):
    virtual(place, [(np.s_[:], "main.h5", "entry/data", (4, 3), np.s_[:])])
    assert_refused(place, Unreadable)


def test_a_file_swapped_for_a_link_after_the_check_is_not_read(place, monkeypatch):
    """Between opening the linked file and reading it, its name comes to mean another file."""
    with h5py.File(place / "root/main.h5", "w") as file:
        file["link"] = h5py.ExternalLink("source.h5", "/entry/data")
    with reader_of(place, "link") as reader:
        reader.probe()
        (place / "root/source.h5").unlink()
        (place / "root/source.h5").symlink_to(place / "outside/source.h5")
        np.testing.assert_array_equal(read(reader), VALUES)  # the file that was checked
    assert_refused(place, OutsideRoots, "link")


def test_filters_that_are_not_known_are_refused_and_no_plugin_is_loaded(place, monkeypatch):
    with h5py.File(place / "root/main.h5", "w") as file:
        file.create_dataset("entry/data", data=VALUES, chunks=(1, 3), compression="gzip")
    data = bytearray((place / "root/main.h5").read_bytes())
    at = data.index(b"deflate\0") - 8  # id, length of the name, flags, number of values, name
    assert struct.unpack_from("<H", data, at)[0] == 1
    struct.pack_into("<H", data, at, 30_000)
    (place / "root/main.h5").write_bytes(data)
    with reader_of(place) as reader, pytest.raises(Unsupported, match="30000"):
        read(reader)


@pytest.mark.parametrize("dataset", ["", None, "/", [], 7, "a\0b"])
def test_without_a_dataset_there_is_nothing_to_read(place, dataset):
    assert_refused(place, Unreadable, dataset, name="source.h5")


def test_a_path_may_be_given_as_a_list(place):
    with reader_of(place, ["entry", "data"], name="source.h5") as reader:
        np.testing.assert_array_equal(read(reader), VALUES)


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_what_is_no_hdf5_file_is_unreadable(place, content):
    (place / "root/main.h5").write_bytes(content)
    os.utime(place / "root/main.h5", (1, 1))
    assert_refused(place, Unreadable)


def test_damaged_files_are_errors_or_their_values(place):
    """Every byte of the metadata is changed once; nothing crashes and nothing else than our errors comes out."""
    source = (place / "root/source.h5").read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(source), 250, replace=False).tolist():
        damaged = bytearray(source)
        damaged[position] ^= int(rng.integers(1, 256))
        (place / "root/main.h5").write_bytes(damaged)
        os.utime(place / "root/main.h5", (1, position + 1))
        with reader_of(place) as reader:
            try:
                values = read(reader)
            except (Unreadable, Unsupported, OutsideRoots):
                continue
            assert values.shape == (4, 3)
