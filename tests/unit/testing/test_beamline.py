"""The simulated beamline tells the truth: its documents are valid and its files hold what it says.

If these fail, tests that compare stored data with the beamline's truth prove nothing.
"""

import threading

import bluesky.plans as bp
import h5py
import numpy as np
import pytest
from event_model import DocumentNames, schema_validators
from ophyd.sim import SynAxis, SynGauss, hw

from flystore.testing.beamline import (
    Camera,
    Defects,
    Panda,
    Recorder,
    flyscan,
    lossy,
    resume_until_done,
    run_engine,
    step_scan,
)


@pytest.fixture
def engine():
    before = set(threading.enumerate())
    with run_engine() as found:
        yield found
    assert not [thread for thread in set(threading.enumerate()) - before if "bluesky" in thread.name]


@pytest.fixture
def recorder(engine):
    found = Recorder()
    engine.subscribe(found)
    return found


def valid(recorder):
    for name, doc in recorder.documents:
        schema_validators[DocumentNames[name]].validate(doc)
    assert recorder.documents[0][0] == "start"
    assert recorder.documents[-1][0] == "stop"
    return True


def content(device, dataset):
    with h5py.File(device.path, swmr=True) as file:
        return file[dataset][()]


def flat(ranges):
    """(seq_num, index) of each announced event."""
    return [pair for seq_nums, indices in ranges for pair in zip(seq_nums, indices, strict=True)]


def test_a_flyscan_announces_positions_and_frames_event_by_event(engine, recorder, tmp_path):
    panda, camera = Panda(tmp_path), Camera(tmp_path, frames_per_event=4)
    engine(flyscan(panda, [camera], events=7, burst=3))
    assert valid(recorder)
    assert recorder.of("stop")[0]["exit_status"] == "success"
    assert [len(seq_nums) for seq_nums, _ in recorder.ranges("Angle")] == [3, 3, 1]
    for key in ("Angle", "I0", "Counter1", "camera", "camera-sum"):
        assert flat(recorder.ranges(key)) == [(n + 1, n) for n in range(7)]
    (descriptor,) = recorder.of("descriptor")
    assert descriptor["data_keys"]["camera"]["shape"] == [4, 12, 16]


def test_the_files_hold_what_the_devices_say(engine, tmp_path):
    panda, camera = Panda(tmp_path), Camera(tmp_path, frames_per_event=4)
    engine(flyscan(panda, [camera], events=7, burst=3))
    for key in ("Angle", "I0", "Counter1"):
        np.testing.assert_array_equal(content(panda, f"/{key}"), panda.values(key, 7))
    frames = content(camera, camera.dataset)
    assert frames.shape == (28, 12, 16)
    assert frames.dtype == np.uint16
    np.testing.assert_array_equal(frames, np.concatenate([camera.frames(index) for index in range(7)]))
    np.testing.assert_array_equal(content(camera, camera.sum_dataset), frames.sum((1, 2)))


def test_no_two_frames_are_equal(tmp_path):
    camera = Camera(tmp_path, shape=(2, 3))
    seen = {camera.frame(number).tobytes() for number in range(2000)}
    assert len(seen) == 2000


def test_collecting_while_the_pulses_come_gives_the_same_truth(engine, recorder, tmp_path):
    panda = Panda(tmp_path)
    cameras = [Camera(tmp_path, "fast", frames_per_event=4), Camera(tmp_path, "slow", compression="gzip")]
    engine(flyscan(panda, cameras, events=20, period=0.002, flush_period=0.005))
    assert valid(recorder)
    for key in ("Angle", "fast", "slow", "slow-sum"):
        assert flat(recorder.ranges(key)) == [(n + 1, n) for n in range(20)]
    np.testing.assert_array_equal(content(cameras[1], cameras[1].dataset)[19], cameras[1].frame(19))


def test_devices_write_a_new_file_each_time_they_are_staged(engine, recorder, tmp_path):
    panda, camera = Panda(tmp_path), Camera(tmp_path)
    engine(flyscan(panda, [camera], events=2, burst=1))
    first = camera.path
    engine(flyscan(panda, [camera], events=3, burst=1))
    assert camera.path != first
    assert len(content(camera, camera.dataset)) == 3
    assert len({doc["uri"] for doc in recorder.of("stream_resource")}) == 4


def test_frames_never_announced_leave_a_gap_in_the_indices(engine, recorder, tmp_path):
    camera = Camera(tmp_path, defects=Defects(extra_before={2, 3}))
    engine(flyscan(Panda(tmp_path), [camera], events=5, burst=1))
    assert valid(recorder)
    assert flat(recorder.ranges("camera")) == [(1, 0), (2, 1), (3, 3), (4, 5), (5, 6)]
    assert camera.announced == [0, 1, 3, 5, 6]
    np.testing.assert_array_equal(content(camera, camera.dataset)[5], camera.frame(5))


def test_the_first_index_may_lie_anywhere(engine, recorder, tmp_path):
    camera = Camera(tmp_path, frames_per_event=2, defects=Defects(first_index=3))
    engine(flyscan(Panda(tmp_path), [camera], events=2, burst=1))
    assert valid(recorder)
    assert flat(recorder.ranges("camera")) == [(1, 3), (2, 4)]
    assert len(content(camera, camera.dataset)) == 10


def test_an_event_may_be_announced_twice(engine, recorder, tmp_path):
    camera = Camera(tmp_path, defects=Defects(repeated={1}))
    engine(flyscan(Panda(tmp_path), [camera], events=3, burst=1))
    assert valid(recorder)
    assert flat(recorder.ranges("camera")) == [(1, 0), (2, 1), (2, 1), (3, 2)]


def test_a_chunk_may_never_be_written(engine, recorder, tmp_path):
    camera = Camera(tmp_path, defects=Defects(unwritten={1, 3}))
    engine(flyscan(Panda(tmp_path), [camera], events=4, burst=1))
    assert valid(recorder)
    assert len(recorder.ranges("camera")) == 4
    with h5py.File(camera.path, swmr=True) as file:
        dataset = file[camera.dataset]
        assert dataset.shape[0] == 4
        written = {dataset.id.get_chunk_info(n).chunk_offset[0] for n in range(dataset.id.get_num_chunks())}
    assert written == {0, 2}
    assert [camera.is_in_file(event) for event in range(4)] == [True, False, True, False]


def test_a_file_may_end_before_what_was_announced(engine, recorder, tmp_path):
    camera = Camera(tmp_path, frames_per_event=2, defects=Defects(short_by=2))
    engine(flyscan(Panda(tmp_path), [camera], events=5, burst=1))
    assert valid(recorder)
    assert flat(recorder.ranges("camera"))[-1] == (5, 4)
    assert len(content(camera, camera.dataset)) == 6


def test_a_burst_taken_again_after_a_pause_repeats_its_seq_nums_with_new_frames(engine, recorder, tmp_path):
    panda, camera = Panda(tmp_path), Camera(tmp_path)
    resume_until_done(engine, flyscan(panda, [camera], events=6, burst=2, pause_after=1))
    assert valid(recorder)
    expected = [(1, 0), (2, 1), (3, 2), (4, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    assert flat(recorder.ranges("camera")) == expected
    assert flat(recorder.ranges("Angle")) == expected
    np.testing.assert_array_equal(content(panda, "/Counter1"), panda.values("Counter1", 8))
    frames = content(camera, camera.dataset)
    np.testing.assert_array_equal(frames, np.concatenate([camera.frames(index) for index in range(8)]))


def test_lost_documents_leave_a_gap_in_the_seq_nums(engine, tmp_path):
    recorder = Recorder()
    engine.subscribe(lossy(recorder, "camera", {2, 3}))
    engine(flyscan(Panda(tmp_path), [Camera(tmp_path)], events=4, burst=1))
    assert valid(recorder)
    assert flat(recorder.ranges("camera")) == [(1, 0), (4, 3)]
    assert len(flat(recorder.ranges("camera-sum"))) == 4


def test_a_step_scan_with_a_camera_announces_a_frame_an_event(engine, recorder, tmp_path):
    motor, camera = SynAxis(name="motor"), Camera(tmp_path)
    engine(step_scan([camera], motor, [0.0, 0.5, 1.0]))
    assert valid(recorder)
    assert [doc["data"]["motor"] for doc in recorder.of("event")] == [0.0, 0.5, 1.0]
    assert flat(recorder.ranges("camera")) == [(1, 0), (2, 1), (3, 2)]


def test_a_point_the_camera_missed_is_an_event_without_a_frame(engine, recorder, tmp_path):
    motor, camera = SynAxis(name="motor"), Camera(tmp_path)
    engine(step_scan([camera], motor, [0.0, 0.5, 1.0, 1.5], missed={1}))
    assert valid(recorder)
    assert [doc["seq_num"] for doc in recorder.of("event")] == [1, 2, 3, 4]
    assert flat(recorder.ranges("camera")) == [(1, 0), (3, 1), (4, 2)]


def test_a_point_taken_again_after_a_pause_repeats_its_seq_num(engine, recorder, tmp_path):
    motor, camera = SynAxis(name="motor"), Camera(tmp_path)
    det = SynGauss("det", motor, "motor", center=0, Imax=1, sigma=1)
    resume_until_done(engine, step_scan([det, camera], motor, [0.0, 0.5, 1.0], pause_after=1))
    assert valid(recorder)
    assert [doc["seq_num"] for doc in recorder.of("event")] == [1, 2, 2, 3]
    assert flat(recorder.ranges("camera")) == [(1, 0), (2, 1), (2, 2), (3, 3)]


def test_the_tutorials_devices_run_here_too(engine, recorder, tmp_path):
    devices = hw(save_path=str(tmp_path))
    engine(bp.count([devices.det], 10))
    engine(bp.count([devices.img], 3))
    assert len(recorder.of("event")) == 13
    assert len(recorder.of("datum")) == 3
    assert sorted(tmp_path.glob("*.npy"))


def test_it_runs_in_a_thread_that_is_not_the_main_one(tmp_path):
    found = Recorder()

    def work():
        with run_engine() as engine:
            engine.subscribe(found)
            engine(flyscan(Panda(tmp_path), [Camera(tmp_path)], events=2, burst=1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert valid(found)


def test_nothing_is_printed(engine, tmp_path, capfd):
    resume_until_done(engine, flyscan(Panda(tmp_path), [Camera(tmp_path)], events=2, burst=1, pause_after=0))
    assert capfd.readouterr() == ("", "")
