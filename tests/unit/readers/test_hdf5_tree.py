"""An HDF5 file as a tree: what is in its groups, with attributes and shapes, and which links lead nowhere.

If these fail, a listing of somebody's file leaves data out, shows a broken link as data, or never ends.
"""

import h5py
import numpy as np
import pytest

from flystore.model.errors import MissingAsset, NotFound, OutsideRoots, TooLarge, Unreadable
from flystore.readers import _tree as tree
from flystore.readers import describe, read_text
from flystore.storage import Budget, Roots


@pytest.fixture
def file(tmp_path):
    """Return a function that describes a path of a file made by another."""
    roots = Roots([tmp_path])
    where = tmp_path / "made.h5"

    def made(fill):
        with h5py.File(where, "w") as opened:
            fill(opened)

        def described(path="/", **wanted):
            return describe(roots, f"file://localhost{where}", path, **wanted)

        return described

    return made


def test_a_group_is_described_as_deep_as_asked(file):
    described = file(lambda f: f.create_dataset("a/b/c", data=np.arange(6.0).reshape(2, 3)))
    assert described().keys == ("a",)
    assert described().children is None
    two = described(depth=2)
    assert two.children["a"].children["b"].keys == ("c",)
    assert two.children["a"].children["b"].children is None
    dataset = described("/a/b/c")
    assert (dataset.structure.shape, dataset.structure.dtype, dataset.keys) == ((2, 3), "<f8", ())


def test_a_group_with_more_children_than_wanted_is_listed_and_not_described(file):
    def fill(f):
        for n in range(4):
            f.create_group(f"g{n}/x")

    described = file(fill)
    assert described(depth=2, most=3).children is None
    assert len(described(depth=2, most=3).keys) == 4
    assert list(described(only=["g3", "g1", "never"], most=3).children) == ["g3", "g1"]


def test_one_answer_describes_so_many_objects_and_no_more(file, monkeypatch):
    def fill(f):
        for a in range(5):
            for b in range(5):
                f.create_group(f"{a}/{b}/c")

    monkeypatch.setattr(tree, "MOST_NODES", 12)
    top = file(fill)(depth=5)

    def count(node):
        return 1 + sum(count(child) for child in (node.children or {}).values())

    assert count(top) <= 12 + 5
    assert [len(child.keys) for child in top.children.values()] == [5] * 5


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(1.5), 1.5),
        (np.int64(-(2**62)), -(2**62)),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        ("ä text", "ä text"),
        (np.bytes_(b"caf\xc3\xa9"), "café"),
        (np.bytes_(b"\xff\xfe"), "\\xff\\xfe"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["a", "bc"], h5py.string_dtype()), ["a", "bc"]),
        (np.array([b"x", b"y"]), ["x", "y"]),
        (1 + 2j, [1.0, 2.0]),
        (h5py.Empty("f8"), None),
        (np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]), [[1, 2.5]]),
        (np.longdouble(0.5), 0.5),
    ],
)
def test_attributes_are_plain_values(file, value, shown):
    described = file(lambda f: f.attrs.__setitem__("it", value))
    assert described().attributes == {"it": shown}
    assert type(described().attributes["it"]) is type(shown)


def test_an_attribute_of_references_is_text_and_hides_no_other(file):
    def fill(f):
        f.attrs["ref"] = f.ref
        f.attrs["other"] = 1

    found = file(fill)().attributes
    assert isinstance(found["ref"], str)
    assert found["other"] == 1


def test_what_is_not_there_is_told_from_a_link_that_leads_nowhere(file, tmp_path):
    def fill(f):
        f["x"] = 1
        f["soft"] = h5py.SoftLink("/never")
        f["away"] = h5py.ExternalLink("never.h5", "/x")
        f["loop"] = h5py.SoftLink("/loop")
        f["out"] = h5py.ExternalLink("/etc/hostname", "/x")

    described = file(fill)
    with pytest.raises(NotFound) as missing:
        described("/never")
    assert "status" not in missing.value.facts
    for name in ("soft", "away", "loop"):
        with pytest.raises(NotFound) as broken:
            described(f"/{name}")
        assert broken.value.facts["status"] == 410
    with pytest.raises(OutsideRoots):
        described("/out")
    found = described(depth=1)
    assert [name for name in found.keys if found.children[name] is None] == ["away", "loop", "out", "soft"]


def test_a_file_that_is_not_there_or_no_hdf5_is_no_empty_group(tmp_path):
    roots = Roots([tmp_path])
    with pytest.raises(MissingAsset):
        describe(roots, f"file://localhost{tmp_path}/never.h5", "/")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(Unreadable):
        describe(roots, f"file://localhost{tmp_path}/text.h5", "/")


@pytest.mark.parametrize(
    ("shape", "stored", "chunks"),
    [
        ((5, 4), (2, 4), ((2, 2, 1), (4,))),
        ((0, 3), None, ((0,), (3,))),
        ((3,), None, ((3,),)),
    ],
)
def test_chunks_are_those_of_the_file(file, shape, stored, chunks):
    described = file(lambda f: f.create_dataset("x", shape, "f8", chunks=stored))
    assert described("/x").structure.chunks == chunks


def test_a_long_dataset_of_tiny_chunks_lists_few_of_them(file):
    described = file(lambda f: f.create_dataset("x", (10**6, 2), "u1", chunks=(1, 2)))
    (rows, _) = described("/x").structure.chunks
    assert len(rows) <= 1 << 12
    assert sum(rows) == 10**6


def test_strings_of_variable_length_are_bytes_of_the_longest(file, tmp_path):
    described = file(lambda f: f.create_dataset("x", data=np.array(["a", "längst"], object), dtype=h5py.string_dtype()))
    found = described("/x")
    assert (found.text, found.structure.dtype, found.structure.shape) == (True, "|S7", (2,))
    values = read_text(Roots([tmp_path]), f"file://localhost{tmp_path}/made.h5", "/x")
    assert values.tolist() == [b"a", "längst".encode()]


def test_what_a_tree_takes_is_counted_before_it_is_made(file):
    def fill(f):
        for n in range(50):
            f.create_group(f"g{n}")

    described = file(fill)
    with Budget(20_000, wait_seconds=0).account(), pytest.raises(TooLarge):
        described(depth=1)
