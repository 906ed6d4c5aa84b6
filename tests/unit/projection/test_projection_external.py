"""Shapes, chunks and files of detector data follow from what the documents announce.

If these fail, frames of a detector are cut into the wrong shape, or read from the wrong file.
"""

import numpy as np
import pytest

from flystore.model.errors import Damaged
from flystore.model.structures import Asset
from flystore.projection import (
    ExternalArray,
    PutNode,
    Resource,
    RunState,
    advance,
    announced_structure,
    assets,
    verdict,
)
from flystore.projection._external import with_bases
from flystore.projection._template import compile_template, file_name, join_uri
from flystore.testing.documents import RunDocuments, external, internal, numbered

HDF5 = "application/x-hdf5"
TIFF = "multipart/related;type=image/tiff"
JPEG = "multipart/related;type=image/jpeg"
NPY = "multipart/related;type=application/x-npy"
CSV = "text/csv;header=absent"


def project(run):
    state, changes = advance(RunState.new(run.uid), numbered(run.documents))
    return state, {change.path[1:]: change for change in changes if isinstance(change, PutNode)}


def announced(mimetype, shape, *ranges, uri="file://localhost/d/x.h5", key=None, **parameters):
    run = RunDocuments()
    stream = run.stream(img=key or external(shape))
    stream.resource("img", uri, mimetype, **parameters)
    for start, stop in ranges:
        stream.frames("img", start, stop)
    state, nodes = project(run)
    return state, nodes[("primary", "img")]


def cut(*axes):
    return [list(axis) for axis in axes]


# The worked examples of the reference: mimetype, parameters, shape declared, ranges -> shape, chunks, assets.
EXAMPLES = [
    (HDF5, {"chunk_shape": [1024]}, [1], [(0, 5)], (5,), cut([5]), 1),
    (HDF5, {}, [], [(0, 5)], (5,), cut([5]), 1),
    (HDF5, {"chunk_shape": [1, 10, 15]}, [1, 10, 15], [(0, 3), (3, 5)], (5, 1, 10, 15),
     cut([1] * 5, [1], [10], [15]), 1),
    (HDF5, {"chunk_shape": [1, 10, 15], "join_method": "concat"}, [1, 10, 15], [(0, 5)], (5, 10, 15),
     cut([1] * 5, [10], [15]), 1),
    (HDF5, {"chunk_shape": [1, 10, 15]}, [4, 10, 15], [(0, 5)], (5, 4, 10, 15), cut([1] * 5, [4], [10], [15]), 1),
    (HDF5, {"chunk_shape": [1, 10, 15], "join_method": "concat"}, [4, 10, 15], [(0, 5)], (20, 10, 15),
     cut([1] * 20, [10], [15]), 1),
    (HDF5, {"chunk_shape": [3], "join_method": "concat", "join_chunks": False}, [7, 10, 15], [(0, 5)], (35, 10, 15),
     cut([3, 3, 1] * 5, [10], [15]), 1),
    (HDF5, {"chunk_shape": [3], "join_method": "concat"}, [7, 10, 15], [(0, 5)], (35, 10, 15),
     cut([3] * 11 + [2], [10], [15]), 1),
    (HDF5, {"multiplier": 4}, [10, 15], [(0, 5)], (5, 4, 10, 15), cut([5], [4], [10], [15]), 1),
    (HDF5, {"multiplier": 4}, [1, 10, 15], [(0, 5)], (5, 4, 10, 15), cut([5], [4], [10], [15]), 1),
    (HDF5, {"frame_per_point": 4}, [1, 10, 15], [(0, 5)], (5, 4, 10, 15), cut([5], [4], [10], [15]), 1),
    (HDF5, {"frames_per_event": 4}, [10, 15], [(0, 5)], (5, 4, 10, 15), cut([5], [4], [10], [15]), 1),
    (HDF5, {"multiplier": 4}, [1], [(0, 5)], (5, 4), cut([5], [4]), 1),
    (HDF5, {"multiplier": 1}, [1], [(0, 5)], (5, 1), cut([5], [1]), 1),
    (HDF5, {}, [10, 15], [(7, 9)], (2, 10, 15), cut([2], [10], [15]), 1),
    (HDF5, {"template": "%s%s_%6.6d.h5", "filename": "x", "join_method": "concat"}, [1, 10, 15], [(0, 2)],
     (2, 10, 15), cut([1, 1], [10], [15]), 2),
    (TIFF, {"template": "i_{:05d}.tif"}, [10, 15], [(0, 3)], (3, 10, 15), cut([1] * 3, [10], [15]), 3),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [1, 10, 15]}, [6, 10, 15], [(0, 2)], (2, 6, 10, 15),
     cut([1, 1], [6], [10], [15]), 12),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [2, 10, 15]}, [6, 10, 15], [(0, 2)], (2, 6, 10, 15),
     cut([2], [6], [10], [15]), 6),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [1]}, [6, 10, 15], [(0, 2)], (2, 6, 10, 15),
     cut([1, 1], [6], [10], [15]), 2),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [2], "join_method": "concat"}, [6, 10, 15], [(0, 2)],
     (12, 10, 15), cut([2] * 6, [10], [15]), 6),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [4], "join_method": "concat"}, [6, 10, 15], [(0, 2)],
     (12, 10, 15), cut([6, 6], [10], [15]), 2),
    (TIFF, {"template": "i_{:05d}.tif", "chunk_shape": [1], "multiplier": 3}, [10, 15], [(0, 2)], (2, 3, 10, 15),
     cut([1, 1], [3], [10], [15]), 6),
    (JPEG, {"template": "i_{:05d}.jpg", "chunk_shape": [1, 10, 15, 3]}, [10, 15, 3], [(0, 2)], (2, 10, 15, 3),
     cut([1, 1], [10], [15], [3]), 2),
    (NPY, {}, [10, 10], [(0, 3)], (3, 10, 10), cut([1] * 3, [10], [10]), 3),
    (CSV, {}, [1, 3], [(0, 5)], (5, 3), cut([5], [3]), 1),
    (CSV, {"chunk_shape": [3]}, [7, 3], [(0, 5)], (35, 3), cut([3, 3, 1] * 5, [3]), 1),
]  # fmt: skip


@pytest.mark.parametrize(("mimetype", "parameters", "shape", "ranges", "expected", "chunks", "files"), EXAMPLES)
def test_shape_chunks_and_number_of_files(mimetype, parameters, shape, ranges, expected, chunks, files):
    _, node = announced(mimetype, shape, *ranges, **parameters)

    # A csv of one line each is one chunk for each row here, as it is announced row by row.
    got = [list(axis) for axis in node.structure["chunks"]]
    if mimetype == CSV and not parameters:
        got = [[sum(axis)] for axis in got]
    assert tuple(node.structure["shape"]) == expected
    assert got == chunks
    array = ExternalArray.from_bytes(node.external)
    assert len(assets(array)) == files
    assert [asset.num for asset in assets(array)] == list(range(files))


@pytest.mark.parametrize(
    ("chunk_shape", "expected"),
    [
        ([1, 10, 15], [[1] * 12, [10], [15]]),
        ([2, 10, 15], [[1] * 6, [2], [10], [15]]),
        ([1], None),
    ],
)
def test_the_layout_of_files_is_told_where_it_is_not_that_of_the_array(chunk_shape, expected):
    _, node = announced(TIFF, [6, 10, 15], (0, 2), template="{:d}.tif", chunk_shape=chunk_shape)
    assert node.data_source.properties == ({} if expected is None else {"chunks": expected})


def uris(node):
    return [asset.data_uri for asset in assets(ExternalArray.from_bytes(node.external))]


def test_the_number_of_a_file_is_its_index():
    _, node = announced(TIFF, [10, 15], (3, 5), uri="file://localhost/d/", template="/i_{:05d}.tif")
    assert uris(node) == ["file://localhost/d/i_00003.tif", "file://localhost/d/i_00004.tif"]


def test_npy_sequences_have_the_name_of_their_uri():
    _, node = announced(NPY, [10, 10], (0, 2), uri="file://localhost/d/abc")
    assert uris(node) == ["file://localhost/d/abc_0.npy", "file://localhost/d/abc_1.npy"]


def test_dims_are_those_of_the_descriptor_below_time():
    _, node = announced(HDF5, None, (0, 5), key=external([10, 15], dims=["y", "x"]))
    assert node.structure["dims"] == ["time", "y", "x"]


def test_the_adapter_gets_the_parameters_it_knows():
    _, node = announced(HDF5, [4], (0, 1), dataset="/x", slice=":,1", squeeze=False, other=1)
    assert node.data_source.parameters == {"dataset": "/x", "slice": ":,1", "swmr": True, "locking": None}
    _, node = announced(CSV, [1, 3], (0, 1), sep=";", other=1)
    assert node.data_source.parameters == {"header": None, "sep": ";"}


def test_structured_dtypes_are_kept():
    key = external([2], [["a", "<i4"], ["b", "<f8", [3]]])
    _, node = announced(HDF5, None, (0, 2), key=key)
    array = ExternalArray.from_bytes(node.external)
    assert array.numpy_dtype == np.dtype([("a", "<i4"), ("b", "<f8", (3,))])
    assert [field["name"] for field in node.structure["data_type"]["fields"]] == ["a", "b"]


def test_opaque_files_are_a_bytes_node():
    _, node = announced("application/octet-stream", [1], (0, 3), uri="file://localhost/d/", template="{:d}.bin")
    assert node.family == "bytes"
    assert node.structure == {}
    assert uris(node) == [f"file://localhost/d/{n}.bin" for n in range(3)]
    _, node = announced("application/octet-stream", [1], (0, 3))
    assert len(uris(node)) == 1


# --- several resources -----------------------------------------------------------------------------------


def resource(uri, **parameters):
    return Resource(uri, uri, HDF5, {"dataset": "/d", **parameters})


@pytest.mark.parametrize(
    ("uris", "extents", "bases"),
    [
        (["a"], [(0, 3)], [0]),
        (["a"], [(7, 9)], [0]),
        (["a", "b"], [(0, 3), (3, 7)], [0, 3]),
        (["a", "b"], [(0, 3), (0, 4)], [0, 0]),
        (["a", "b", "c"], [(0, 3), (3, 5), (5, 6)], [0, 3, 5]),
        (["a", "b", "c"], [(0, 3), (0, 5), (5, 6)], [0, 0, 5]),
        (["a", "b"], [(0, 3), (4, 7)], [0, 3]),
        (["a", "a"], [(0, 3), (3, 5)], [0, 0]),
    ],
)
def test_a_file_whose_indices_go_on_begins_where_the_last_one_ended(uris, extents, bases):
    found = with_bases([resource(uri) for uri in uris], dict(enumerate(extents)))
    assert [each.base for each in found] == bases


@pytest.mark.parametrize(
    ("extents", "lengths", "bases"),
    [
        ([(0, 4), (6, 9)], [6, 3], [0, 6]),
        ([(0, 4), (6, 9)], [4, 5], [0, 4]),
        ([(0, 4), (6, 9)], [5, 4], [0, 5]),
        ([(0, 4), (6, 9)], [None, 5], [0, 4]),
        ([(0, 4), (6, 9)], [2, 5], [0, 4]),
        ([(0, 4), (6, 9)], [100, 5], [0, 4]),
        ([(0, 4), (4, 9)], [6, 5], [0, 4]),
        ([(0, 4), (0, 9)], [6, 9], [0, 0]),
        ([(0, 4), (6, 9), (12, 14)], [6, 6, 2], [0, 6, 12]),
    ],
)
def test_the_length_of_a_file_tells_where_the_next_one_begins_if_the_documents_do_not(extents, lengths, bases):
    resources = [resource(uri) for uri in "abc"[: len(extents)]]
    assert [each.base for each in with_bases(resources, dict(enumerate(extents)), lengths)] == bases


def test_the_file_row_of_every_row_is_found_through_the_map():
    run = RunDocuments()
    stream = run.stream(img=external([2, 3]))
    stream.resource("img", "file://localhost/d/0.h5")
    stream.frames("img", 0, 3)
    stream.resource("img", "file://localhost/d/1.h5")
    stream.frames("img", 4, 6)
    _, nodes = project(run)
    array = ExternalArray.from_bytes(nodes[("primary", "img")].external)

    number, rows = array.locate(np.arange(5))
    assert number.tolist() == [0, 0, 0, 1, 1]
    assert rows.tolist() == [0, 1, 2, 1, 2]
    assert array.frame_map.seq_nums.tolist() == [1, 2, 3, 5, 6]


@pytest.mark.parametrize(
    ("second", "names"),
    [((2, 4), ["a0", "a1", "b0", "b1"]), ((0, 2), ["a0", "a1", "b0", "b1"])],
    ids=["goes on", "restarts"],
)
def test_a_second_sequence_of_files_is_numbered_from_0(second, names):
    run = RunDocuments()
    stream = run.stream(img=external([2, 3]))
    stream.resource("img", "file://localhost/d/", TIFF, template="a{:d}")
    stream.frames("img", 0, 2)
    stream.resource("img", "file://localhost/d/", TIFF, template="b{:d}")
    stream.frames("img", *second, seq_start=3)
    _, nodes = project(run)
    assert [uri.rsplit("/", 1)[1] for uri in uris(nodes[("primary", "img")])] == names


def test_one_file_of_a_resource_in_two_streams_makes_two_nodes():
    run = RunDocuments()
    for name in ("primary", "dark"):
        stream = run.stream(name, img=external([2, 3]))
        stream.frames("img", 0, 1)
    _, nodes = project(run)
    assert {("primary", "img"), ("dark", "img")} <= set(nodes)


# --- rows that are not the stream's ----------------------------------------------------------------------


def test_a_key_with_a_gap_has_an_axis_of_its_own():
    run = RunDocuments()
    stream = run.stream(img=external([2, 3]), ok=external([2, 3], dims=["y", "x"]))
    stream.frames("img", 0, 2)
    stream.frames("img", 3, 5)
    stream.frames("ok", 0, 5)
    _, nodes = project(run)

    assert nodes[("primary", "img")].structure["shape"] == [4, 2, 3]
    assert nodes[("primary", "img")].structure["dims"] == ["img_event", "img_dim1", "img_dim2"]
    assert nodes[("primary", "ok")].structure["dims"] == ["time", "y", "x"]


def test_the_axis_is_the_streams_again_when_the_frames_have_caught_up():
    run = RunDocuments()
    stream = run.stream(m=internal(), img=external([2, 3], dims=["y", "x"]))
    stream.event(m=1.0)
    stream.event(m=2.0)
    stream.frames("img", 0, 1)
    cut = len(run.documents)
    stream.frames("img", 1, 2)
    ordinals = numbered(run.documents)
    state, changes = advance(RunState.new("run"), ordinals[:cut])
    (node,) = (change for change in changes if change.path[2:] == ("img",))
    assert node.structure["dims"] == ["img_event", "y", "x"]

    _, changes = advance(state, ordinals[cut:])
    (node,) = (change for change in changes if change.path[2:] == ("img",))
    assert node.structure["dims"] == ["time", "y", "x"]


def test_a_key_changes_its_axis_when_another_one_runs_ahead():
    run = RunDocuments()
    stream = run.stream(a=external([2, 3]), b=external([2, 3]))
    stream.frames("a", 0, 2)
    stream.frames("b", 0, 2)
    cut = len(run.documents)
    stream.frames("b", 2, 3)
    ordinals = numbered(run.documents)
    state, changes = advance(RunState.new("run"), ordinals[:cut])
    assert all(change.structure["dims"] is None for change in changes if change.path[2:])

    _, changes = advance(state, ordinals[cut:])
    dims = {change.path[2]: change.structure["dims"] for change in changes if change.path[2:]}
    assert dims == {"a": ["a_event", "a_dim1", "a_dim2"], "b": None}


# --- odd descriptions ------------------------------------------------------------------------------------


def kinds(state):
    return {note.kind for note in verdict(state).notes}


@pytest.mark.parametrize(
    ("key", "parameters", "note"),
    [
        (external([4], dtype_numpy="nonsense"), {}, "bad-dtype"),
        (external([4], dtype_numpy=[["a"]]), {}, "bad-dtype"),
        (external([4, 5]), {"chunk_shape": [1, 2, 3, 4]}, "bad-chunk-shape"),
        (external([4, 5]), {"chunk_shape": [0]}, "bad-chunk-shape"),
        (external([4, 5]), {"chunk_shape": "x"}, "bad-chunk-shape"),
        (external([4, 5], dims=["y"]), {}, "bad-dims"),
    ],
)
def test_what_does_not_fit_in_a_description_is_left_out_and_noted(key, parameters, note):
    state, node = announced(HDF5, None, (0, 2), key=key, **parameters)
    assert node.structure["shape"][0] == 2
    assert kinds(state) == {note}


def test_a_variable_shape_makes_no_node_and_loses_no_frame():
    run = RunDocuments()
    stream = run.stream(img=external([None, 3]))
    stream.frames("img", 0, 2)
    state, nodes = project(run)
    assert ("primary", "img") not in nodes
    assert verdict(state).streams["primary"].keys["img"].announced == 2
    assert kinds(state) == {"variable-shape"}


def test_a_key_without_frames_makes_no_node():
    run = RunDocuments()
    stream = run.stream(img=external())
    stream.resource("img")
    _, nodes = project(run)
    assert ("primary", "img") not in nodes


def test_an_absurd_range_is_noted_and_takes_no_memory():
    run = RunDocuments()
    stream = run.stream(img=external())
    stream.resource("img", chunk_shape=[1])
    stream.frames("img", 0, 2**60)
    stream.frames("img", 0, 2**39)
    state, nodes = project(run)
    node = nodes[("primary", "img")]
    assert node.structure["shape"][0] == 2**39
    assert len(node.structure["chunks"][0]) <= 1 << 20
    assert kinds(state) == {"bad-range"}


def test_the_stored_form_comes_back_and_damage_is_told():
    _, node = announced(TIFF, [6, 10, 15], (0, 2), template="{:d}.tif")
    array = ExternalArray.from_bytes(node.external)
    assert array.to_bytes() == node.external
    assert announced_structure(array, 2).to_wire() == node.structure
    with pytest.raises(Damaged):
        ExternalArray.from_bytes(b"nonsense")


@pytest.mark.parametrize("readable", range(6))
def test_only_what_is_readable_can_be_shown_and_has_an_axis_of_its_own(readable):
    run = RunDocuments()
    stream = run.stream(m=internal(), img=external([2, 3]))
    for n in range(4):
        stream.event(m=float(n))
    stream.frames("img", 0, 5)
    _, nodes = project(run)
    array = ExternalArray.from_bytes(nodes[("primary", "img")].external)

    for part in (array.head(readable), array.keep(np.arange(5) < readable)):
        structure = announced_structure(part, 4)
        assert structure.shape == (min(readable, 5), 2, 3)
        assert part.extra == (readable >= 5)
        assert structure.dims == (None if readable == 4 else ("img_event", "img_dim1", "img_dim2"))


# --- templates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "filename", "number", "name"),
    [
        ("%s%s_%6.6d.tiff", "shot", 1, "shot_000001.tiff"),
        ("%s_%d.npy", "", 12, "_12.npy"),
        ("%-6d|", "", 5, "5     |"),
        ("%+06d", "", 5, "+00005"),
        ("%9.10d", "", 5, "0000000005"),
        ("%.4d", "", 5, "0005"),
        ("img_{:05d}.tif", "", 5, "img_00005.tif"),
        ("img_{0:05d}.tif", "", 5, "img_00005.tif"),
        ("{}", "", 5, "5"),
        ("{{}}", "", 5, "{}"),
        ("%s.h5", "50%d{}", 5, "50%d{}.h5"),
        ("{0.__class__}", "", 5, "{0.__class__}"),
        ("{filename}", "", 5, "{filename}"),
    ],
)
def test_templates_give_file_names(template, filename, number, name):
    assert file_name(compile_template(template, filename), number) == name


def test_a_template_cannot_ask_for_a_name_without_end():
    assert len(file_name(compile_template("%099999999d"), 1)) <= 255
    assert len(file_name(compile_template("{:0999d}"), 1)) <= 255


def test_only_a_doubled_slash_at_the_joint_is_mended():
    assert join_uri("file://localhost/d", "/a") == "file://localhost/d/a"
    assert join_uri("file://localhost/d/", "//a") == "file://localhost/d/a"


def test_assets_say_what_they_are():
    _, node = announced(HDF5, [4], (0, 1))
    assert assets(ExternalArray.from_bytes(node.external)) == (
        Asset("file://localhost/d/x.h5", is_directory=False, parameter="data_uris", num=0),
    )


def test_a_range_that_waited_for_its_resource_keeps_its_place_among_those_of_others():
    """Takes are numbered by arrival, and the wait for a resource is no arrival."""
    run = RunDocuments()
    stream = run.stream(x=external())
    early = stream.resource("x", "file://localhost/d/early.h5")
    stream.frames("x", 0, 1)  # seq_num 1
    late = stream.resource("x", "file://localhost/d/late.h5")
    waits = run.documents.pop()
    stream.frames("x", 0, 1, 2)  # seq_num 2, of the resource that is not there yet
    stream.resources["x"] = early
    stream.frames("x", 1, 2, 2)  # seq_num 2 again, going on from the first range
    run.documents.append(waits)
    assert waits[1]["uid"] == late

    _, nodes = project(run)
    array = ExternalArray.from_bytes(nodes[("primary", "x")].external)
    rows = array.frame_map.rows()
    assert rows.seq_nums.tolist() == [1, 2, 2]
    assert rows.take.tolist() == [0, 0, 1]
    assert [array.resources[n].uid for n in rows.resource] == [early, late, early]


def test_many_ranges_that_wait_take_little_room():
    run = RunDocuments()
    stream = run.stream(x=external())
    stream.resources["x"] = "never"
    for index in range(5000):
        stream.frames("x", index, index + 1)
    stream.resource("x")
    for index in range(5000):
        stream.frames("x", index, index + 1)
    state, nodes = project(run)
    assert len(state.to_bytes()) < 200_000
    assert len(ExternalArray.from_bytes(nodes[("primary", "x")].external).frame_map) == 5000
