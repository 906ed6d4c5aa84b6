"""Resource and Datum documents, and other old spellings, lead to the same tree as the new ones.

If these fail, the archives of a facility cannot be read, or detectors that still write this way.
"""

import pytest

from flystore.projection import ExternalArray, PutNode, RunState, advance, verdict
from flystore.projection._legacy import datum_indices
from flystore.projection._normalize import announced_resource, data_key_view, file_uri
from flystore.testing.documents import RunDocuments, external, internal, numbered


class Legacy:
    """A run whose detector `img` writes the old way."""

    def __init__(self, **keys):
        self.run = RunDocuments()
        self.stream = self.run.stream(img=external([4, 5], external="FILESTORE:"), **keys)

    def resource(self, uid="res", spec="AD_HDF5", **kwargs):
        return self.run.add(
            "resource",
            {"uid": uid, "spec": spec, "root": "/r", "resource_path": f"{uid}.h5", "resource_kwargs": kwargs,
             "run_start": self.run.uid},
        )  # fmt: skip

    def datum(self, datum_id, resource="res", **kwargs):
        return self.run.add("datum", {"datum_id": datum_id, "resource": resource, "datum_kwargs": kwargs})

    def event(self, datum_id, seq_num=None):
        return self.stream.event(seq_num, filled={"img": False}, img=datum_id)

    def project(self):
        state, changes = advance(RunState.new("run"), numbered(self.run.documents))
        nodes = {change.path[1:]: change for change in changes if isinstance(change, PutNode)}
        node = nodes.get(("primary", "img"))
        return state, node, None if node is None else ExternalArray.from_bytes(node.external)


def rows(array):
    found = array.frame_map.rows()
    return list(zip(found.seq_nums.tolist(), found.resource.tolist(), found.index.tolist(), strict=True))


def test_a_datum_without_a_hint_is_the_frame_of_its_event():
    legacy = Legacy()
    legacy.resource()
    for n in range(3):
        legacy.datum(f"d{n}")
        legacy.event(f"d{n}")
    _, node, array = legacy.project()
    assert rows(array) == [(1, 0, 0), (2, 0, 1), (3, 0, 2)]
    assert node.structure["dims"] is None


def test_two_events_that_name_one_datum_have_the_same_frame():
    legacy = Legacy()
    legacy.resource()
    legacy.datum("dark")
    for _ in range(3):
        legacy.event("dark")
    state, _, array = legacy.project()
    assert rows(array) == [(1, 0, 0), (2, 0, 0), (3, 0, 0)]
    assert verdict(state).state == "running"
    assert verdict(state).gaps == 0


def test_a_retaken_point_has_the_frame_it_names():
    legacy = Legacy()
    legacy.resource()
    for point, seq in enumerate([1, 2, 2, 3]):
        legacy.datum(f"d{point}", point_number=point)
        legacy.event(f"d{point}", seq)
    _, node, array = legacy.project()
    assert rows(array) == [(1, 0, 0), (2, 0, 1), (2, 0, 2), (3, 0, 3)]
    assert node.structure["shape"] == [4, 4, 5]


@pytest.mark.parametrize("late", ["datum", "resource"])
def test_a_document_that_comes_late_changes_nothing(late):
    legacy = Legacy()
    legacy.resource()
    for n in range(3):
        legacy.datum(f"d{n}", point_number=n)
        legacy.event(f"d{n}")
    _, expected, _ = legacy.project()
    ordered = legacy.run.documents
    legacy.run.documents = sorted(ordered, key=lambda each: each[0] == late)
    _, node, _ = legacy.project()
    assert node == expected


def test_a_late_resource_comes_in_a_later_batch():
    legacy = Legacy()
    legacy.datum("d")
    legacy.event("d")
    legacy.resource()
    ordinals = numbered(legacy.run.documents)
    state, changes = advance(RunState.new("run"), ordinals[:-1])
    assert not any(change.path[2:] == ("img",) for change in changes)
    _, changes = advance(state, ordinals[-1:])
    assert [change.path[2:] for change in changes] == [("img",)]


def test_a_datum_that_never_comes_is_a_gap_and_noted():
    legacy = Legacy()
    legacy.resource()
    legacy.datum("d0")
    legacy.event("d0")
    legacy.event("nowhere")
    legacy.run.stop()
    state, _, _ = legacy.project()
    found = verdict(state)
    assert (found.state, found.gaps) == ("gaps", 1)
    assert [note.kind for note in found.notes] == ["unknown-datum"]


def test_pages_and_bulk_documents_are_as_single_ones():
    single = Legacy(m=internal())
    single.resource()
    for n in range(2):
        single.datum(f"d{n}", point_number=n)
    for n in range(2):
        single.stream.event(filled={"img": False}, img=f"d{n}", m=float(n))
    state, expected = advance(RunState.new("run"), numbered(single.run.documents))

    paged = Legacy(m=internal())
    paged.resource()
    paged.run.add("datum_page", {"resource": "res", "datum_id": ["d0", "d1"], "datum_kwargs": {"point_number": [0, 1]}})
    paged.run.add(
        "event_page",
        {"descriptor": paged.stream.descriptor, "seq_num": [1, 2], "time": [1002.0, 1003.0],
         "data": {"img": ["d0", "d1"], "m": [0.0, 1.0]},
         "timestamps": {"img": [1002.0, 1003.0], "m": [1002.0, 1003.0]},
         "filled": {"img": [False, False]}},
    )  # fmt: skip
    paged_state, changes = advance(RunState.new("run"), numbered(paged.run.documents))
    assert changes == expected
    assert verdict(paged_state) == verdict(state)

    bulk = Legacy(m=internal())
    bulk.resource()
    bulk.run.add(
        "bulk_datum",
        {"resource": "res", "datum_ids": ["d0", "d1"], "datum_kwarg_list": [{"point_number": 0}, {"point_number": 1}]},
    )
    events = [doc for name, doc in single.run.documents if name == "event"]
    bulk.run.add("bulk_events", {bulk.stream.descriptor: events})
    _, changes = advance(RunState.new("run"), numbered(bulk.run.documents))
    assert changes == expected


def test_a_page_with_a_short_column_has_nulls():
    run = RunDocuments()
    stream = run.stream(m=internal())
    run.add("event_page", {"descriptor": stream.descriptor, "seq_num": [1, 2], "time": [1.0, 2.0], "data": {"m": [5.0]},
                           "timestamps": {}})  # fmt: skip
    _, changes = advance(RunState.new("run"), numbered(run.documents))
    assert changes[-1].batch.column("m").to_pylist() == [5.0, None]


def test_a_datum_of_several_rows_is_numbered_by_index():
    legacy = Legacy()
    legacy.resource()
    legacy.datum("d", indices={"start": 0, "stop": 3})
    legacy.event("d")
    state, node, array = legacy.project()
    assert rows(array) == [(1, 0, 0), (2, 0, 1), (3, 0, 2)]
    assert node.structure["dims"][0] == "img_event"
    assert {note.kind for note in verdict(state).notes} == {"several-rows"}


def test_one_resource_used_by_two_descriptors_of_a_stream_is_one_file():
    legacy = Legacy()
    legacy.resource()
    legacy.datum("d0")
    legacy.event("d0")
    legacy.stream.describe(img=external([4, 5], external="FILESTORE:"))
    legacy.datum("d1")
    legacy.event("d1")
    _, _, array = legacy.project()
    assert len(array.resources) == 1
    assert rows(array) == [(1, 0, 0), (2, 0, 1)]


def test_kwargs_of_the_first_datum_are_parameters():
    legacy = Legacy()
    legacy.resource()
    legacy.datum("d0", dataset="/other", point_number=0)
    legacy.event("d0")
    _, node, _ = legacy.project()
    assert node.data_source.parameters["dataset"] == "/other"


def test_the_spec_is_told_when_the_run_ends():
    legacy = Legacy()
    legacy.resource(frame_per_point=3)
    legacy.datum("d0")
    legacy.event("d0")
    _, node, _ = legacy.project()
    assert node.metadata == {}
    legacy.run.stop()
    _, node, _ = legacy.project()
    assert node.metadata == {"spec": "AD_HDF5", "frame_per_point": 3}


@pytest.mark.parametrize(
    ("kwargs", "seq", "frame", "expected"),
    [
        ({"indices": {"start": 2, "stop": 5}, "point_number": 9}, 1, (0, 0), (2, 5, (0, 0))),
        ({"point_number": 9, "frame": 3}, 1, (0, 0), (9, 10, (0, 0))),
        ({"frame": 0}, 7, (0, 0), (0, 1, (0, 1))),
        ({"frame": 4}, 7, (0, 1), (1, 5, (0, 5))),
        ({"frame": 0}, 7, (0, 5), (5, 6, (5, 1))),
        ({"frame": 1}, 7, (5, 1), (6, 7, (5, 2))),
        ({"index": 3}, 7, (0, 0), (6, 7, (0, 0))),
        ({"indices": "x", "point_number": None, "frame": -1}, 0, (0, 0), (0, 1, (0, 0))),
    ],
)
def test_rows_of_a_datum(kwargs, seq, frame, expected):
    found = datum_indices(kwargs, seq, frame)
    assert (found.start, found.stop, found.frame) == expected


@pytest.mark.parametrize(
    ("root", "path", "semantics", "uri"),
    [
        ("/r", "x.h5", "posix", "file://localhost/r/x.h5"),
        ("/r/", "/x.h5", "posix", "file://localhost/r/x.h5"),
        ("/r", "sub/", "posix", "file://localhost/r/sub/"),
        ("/r", "a b.h5", "posix", "file://localhost/r/a b.h5"),
        ("/r/", "../x.h5", "posix", "file://localhost/r/../x.h5"),
        ("/r", "/", "posix", "file://localhost/r/"),
        ("", "/r/x.h5", "posix", "file://localhost/r/x.h5"),
        ("/", "x.h5", "posix", "file://localhost/x.h5"),
        ("C:\\data", "x.h5", "windows", "file://localhost/C:/data/x.h5"),
        ("C:\\data", "sub\\x.h5", "posix", "file://localhost/C:/data/sub/x.h5"),
        ("", "D:/data/x.h5", "windows", "file://localhost/D:/data/x.h5"),
        ("\\\\server\\share", "x.h5", "windows", "file://server/share/x.h5"),
        ("", "s3://bucket/x.h5", "posix", "s3://bucket/x.h5"),
    ],
)
def test_uris_of_old_resources(root, path, semantics, uri):
    assert file_uri(root, path, semantics) == (uri, "")


@pytest.mark.parametrize(("root", "path"), [("", "x.h5"), ("r", "x.h5")])
def test_a_relative_path_is_taken_from_the_root_and_told(root, path):
    uri, relative = file_uri(root, path, "posix")
    assert uri == "file://localhost/" + relative


@pytest.mark.parametrize(
    ("spec", "mimetype", "dataset"),
    [
        ("AD_HDF5", "application/x-hdf5", "/entry/data/data"),
        ("ad_hdf5_swmr", "application/x-hdf5", "/entry/data/data"),
        ("XSP3", "application/x-hdf5", "/entry/instrument/detector/data"),
        ("PANDA", "application/x-hdf5", ""),
        ("PIL100k_HDF5", "application/x-hdf5", ""),
        ("AD_TIFF", "multipart/related;type=image/tiff", None),
        ("NPY_SEQ", "multipart/related;type=application/x-npy", None),
        ("PIZZABOX_ENC_FILE_TXT_PD", "text/csv", None),
        ("anything", "application/octet-stream", None),
    ],
)
def test_specs_lead_to_mimetypes(spec, mimetype, dataset):
    doc = {"spec": spec, "root": "/r", "resource_path": "x", "resource_kwargs": {"frame_per_point": 2}}
    found = announced_resource(doc, legacy=True)
    assert found.mimetype == mimetype
    assert found.parameters.get("dataset") == dataset
    assert found.parameters["multiplier"] == 2
    assert found.parameters["spec"] == spec.upper()


def test_an_old_stream_resource_counts_its_spec_letter_by_letter():
    doc = {"spec": "ad_hdf5", "root": "/r", "resource_path": "x", "resource_kwargs": {"path": "/p"}}
    assert announced_resource(doc, legacy=False).mimetype == "application/octet-stream"
    found = announced_resource({**doc, "spec": "AD_HDF5"}, legacy=False)
    assert (found.mimetype, found.parameters["dataset"]) == ("application/x-hdf5", "/p")


@pytest.mark.parametrize(
    ("data_key", "dtype"),
    [
        ({"dtype": "number"}, "<f8"),
        ({"dtype": "integer"}, "<i8"),
        ({"dtype": "boolean"}, "|b1"),
        ({"dtype": "string"}, "<U0"),
        ({"dtype": "array", "dtype_str": "<u2"}, "<u2"),
        ({"dtype": "array", "dtype_str": "<u2", "dtype_numpy": "<i4"}, "<i4"),
        ({"dtype": "array", "dtype_descr": [("a", "<i4")], "dtype_numpy": "<i4"}, [["a", "<i4"]]),
        ({"dtype": "nonsense"}, None),
    ],
)
def test_the_dtype_of_a_data_key_is_completed(data_key, dtype):
    view = data_key_view({**data_key, "shape": None, "external": None})
    assert view.get("dtype_numpy") == dtype
    assert view["shape"] == []
    assert view["external"] == ""
    assert "dtype_str" not in view
    assert "dtype_descr" not in view
