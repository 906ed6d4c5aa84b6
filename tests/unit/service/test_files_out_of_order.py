"""Files of one key whose first frames come in another order than the files were announced in.

If these fail, what was found in one file is held against another one, and people are refused their own data for good.
"""

import itertools

import h5py
import numpy as np
import pytest

from flystore.model.frames import FrameEncoder
from flystore.readers import ResourceProbe
from flystore.service import Service
from flystore.service.observed import of_same_files
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of

FRAMES = 2
ITEM = (3, 4)


@pytest.fixture
def service(tmp_path):
    (tmp_path / "data").mkdir()
    with Service.open(tmp_path / "store", read=[tmp_path / "data"]) as opened:
        opened.data = tmp_path / "data"
        yield opened


def written(directory, number):
    """Write a file of frames and return its URI and them."""
    values = 100 * number + np.arange(FRAMES * np.prod(ITEM), dtype="<i4").reshape(FRAMES, *ITEM)
    path = directory / f"file{number}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(1, *ITEM))
    return f"file://localhost{path}", values


@pytest.mark.parametrize("looks", [True, False], ids=["looked at between", "looked at last"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_each_event_has_the_frame_of_its_file_whichever_file_comes_first(service, order, looks):
    run = RunDocuments("run")
    stream = run.stream("primary", img=external(list(ITEM), "<i4"))
    made = [written(service.data, number) for number in range(3)]
    uids = [stream.resource("img", uri, dataset="x") for uri, _ in made]
    encoder, sent = FrameEncoder(), 0
    expected = np.zeros((0, *ITEM), "<i4")
    for place, number in enumerate(order):
        stream.resources["img"] = uids[number]
        stream.frames("img", 0, FRAMES, 1 + FRAMES * place)
        expected = np.concatenate([expected, made[number][1]])
        if place == len(order) - 1:
            run.stop()
        batch = run.documents[sent:]
        service.ingest.batch(run.uid, sent, 1, frames_of(batch, encoder))
        sent = len(run.documents)
        if looks or place == len(order) - 1:
            path = (run.uid, "primary", "img")
            found = np.frombuffer(service.arrays.read(path), "<i4").reshape(-1, *ITEM)
            np.testing.assert_array_equal(found, expected)
            assert service.verdicts.of((run.uid,), look=True).state == ("complete" if place == 2 else "running")


def test_what_was_found_is_told_by_name_and_without_one_by_place():
    first, second, nameless = ResourceProbe("ok", of="a"), ResourceProbe("missing", of="b"), ResourceProbe("ok")
    assert of_same_files([second], ["a", "b"]) == [None, second]
    assert of_same_files([first, second], ["b", "a"]) == [second, first]
    assert of_same_files([nameless], ["a", "b"]) == [nameless, None]
    assert of_same_files([second], [""]) == [second]
    assert of_same_files([], ["a"]) == [None]
