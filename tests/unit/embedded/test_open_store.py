"""A directory opened in this process is the same store that the service would open.

If these fail, people who work without a server lose what they stored, or leave files and threads behind.
"""

import subprocess
import sys
import threading

import pytest

from flystore.embedded import open_store
from flystore.model.errors import Misconfigured, OutsideRoots, Unavailable
from flystore.testing.beamline import Camera, Panda, Recorder, flyscan, run_engine
from flystore.testing.values import same
from flystore.writer import RunWriter


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert not [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon]
    assert not [thread.name for thread in threading.enumerate() if thread.name == "flystore-in-process"]


def a_flyscan(store, tmp_path, journal, **options):
    """Run a flyscan into a store; return its uid and the documents that were emitted."""
    recorder = Recorder()
    with run_engine() as engine, RunWriter(store, journal=journal) as writer:
        engine.subscribe(recorder)
        engine.subscribe(writer)
        engine(flyscan(Panda(tmp_path), [Camera(tmp_path)], events=5, burst=2, **options))
        writer.flush()
    return recorder.of("start")[0]["uid"], recorder.documents


def test_a_run_goes_in_and_comes_out(tmp_path):
    with open_store(tmp_path / "store", read=[tmp_path]) as store:
        uid, documents = a_flyscan(store, tmp_path, tmp_path / "journal")
        assert list(store) == [uid]
        assert same(list(store[uid].documents()), documents)
        assert store[uid]["primary"].read()["camera"].shape == (5, 1, 12, 16)


def test_what_was_stored_is_there_when_it_is_opened_again(tmp_path):
    with open_store(tmp_path / "store") as store:
        uid, _ = a_flyscan(store, tmp_path, tmp_path / "journal")
    with open_store(str(tmp_path / "store")) as store:
        assert uid in store


def test_two_can_have_it_open_and_see_each_others_runs(tmp_path):
    with open_store(tmp_path / "store") as one, open_store(tmp_path / "store") as other:
        first, _ = a_flyscan(one, tmp_path, tmp_path / "journal")
        second, _ = a_flyscan(other, tmp_path, tmp_path / "journal")
        assert {first, second} == set(one) == set(other)


def test_another_process_can_write_while_it_is_open(tmp_path):
    with open_store(tmp_path / "store") as store:
        uid, _ = a_flyscan(store, tmp_path, tmp_path / "journal")
        code = (
            "import sys; from flystore.embedded import open_store\n"
            f"with open_store({str(tmp_path / 'store')!r}) as store: print(*store)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [uid]
        a_flyscan(store, tmp_path, tmp_path / "journal")
        assert len(store) == 2


def test_a_closed_store_says_so(tmp_path):
    store = open_store(tmp_path / "store")
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        len(store)


def test_files_outside_the_roots_are_not_read(tmp_path):
    with open_store(tmp_path / "store") as store:
        uid, _ = a_flyscan(store, tmp_path, tmp_path / "journal")
        with pytest.raises(OutsideRoots):
            store[uid]["primary"]["camera"].read()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"directory": ""}, "empty"),
        ({"directory": "http://localhost:8000"}, "from_uri"),
        ({"directory": "{tmp}/file/store"}, "cannot be written|cannot make"),
        ({"directory": "{tmp}/store", "read": ["{tmp}/missing"]}, "missing is not a directory"),
        ({"directory": "{tmp}/store", "maps": ["/data"]}, "FROM=TO"),
    ],
)
def test_a_mistake_is_explained(tmp_path, arguments, sentence):
    (tmp_path / "file").touch()

    def filled(value):
        return [filled(item) for item in value] if isinstance(value, list) else value.format(tmp=tmp_path)

    with pytest.raises(Misconfigured, match=sentence):
        open_store(**{name: filled(value) for name, value in arguments.items()})
