"""Each value read is the value meant, or is marked missing, whatever went wrong with documents and files.

Runs are drawn with known truth (`flystore.testing.truth`), stored in random batches, and read back in every way. If
these fail, a scientist looks at the frame of another point, and nothing tells.

`FLYSTORE_EXAMPLES` says how many runs are drawn (``make truth-full``), `FLYSTORE_SEED` repeats a search; a failure
prints both, and the smallest run it could find. With the same two numbers the same runs are drawn.
"""

import itertools
import os
import random
import secrets
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from flystore import MissingRows
from flystore.client import _dataset, from_transport
from flystore.http import Access, build_app
from flystore.model.errors import FlystoreError, MissingAsset
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.projection import ExternalArray, _frame_map, segment
from flystore.service import Service
from flystore.testing.truth import MISSING, Told, all_rows, last_rows
from flystore.testing.truth_cases import cases, features
from flystore.testing.truth_files import files_of, half, steady_rows, write_files
from flystore.testing.values import same
from flystore.wire import InProcessTransport, api_path

EXAMPLES = int(os.environ.get("FLYSTORE_EXAMPLES", "60"))
QUICK = EXAMPLES <= 60
# The quick tier is the same runs every time: if it fails, the change at hand is to blame. The full one goes searching.
SEED = int(os.environ.get("FLYSTORE_SEED", "1" if QUICK else str(secrets.randbelow(2**32))))


SHARDS = 4
"""Parts of the search, so that several processes can share it."""


def search(examples, *, shard=0, shrink=True):
    """Return a decorator that makes a test search `examples` cases; each shard draws its own."""

    def decorate(check):
        phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
        limits = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=phases,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        return seed(SEED + shard)(limits(given(case=cases())(check)))

    return decorate


# --- storing ---------------------------------------------------------------------------------------------


class Store:
    """One store for many runs; each gets a number, a uid and a directory of its own."""

    def __init__(self, directory):
        self.directory = directory
        self.data = directory / "data"
        self.data.mkdir()
        self.service = Service.open(directory / "store", read=[self.data])
        self.client = from_transport(InProcessTransport(build_app(self.service, Access.of("key")), "key"))
        self.runs = 0

    def close(self):
        self.client.close()
        self.service.close()

    def settle(self):
        """Wait until no thread looks at files, so that a look of before does not come after one of now."""
        assert self.service._prober.wait_idle(100)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


class Trial:
    """A case put into a store, and everything that reading it must give."""

    def __init__(self, store, case):
        self.store, self.case = store, case
        store.runs += 1
        self.number = store.runs
        self.uid = f"{self.number:06d}"
        self.root = store.data / self.uid
        self.root.mkdir()
        self.documents = case.documents(self.uid, str(self.root))
        self.chosen = random.Random(case.choices)

    def run(self):
        try:
            write_files(self.case, self.number, self.root, only_half=self.case.growing)
            self.send()
            if self.case.growing:
                self.store.settle()
                write_files(self.case, self.number, self.root)
            Reading(self, self.case.steps).check()
        finally:
            self.store.settle()
            shutil.rmtree(self.root)

    def send(self):
        encoder = FrameEncoder()
        bounds = [0, *self.case.cuts, len(self.documents)]
        for batch, (first, stop) in enumerate(itertools.pairwise(bounds)):
            body = b"".join(frame(p) for name, doc in self.documents[first:stop] for p in encoder.encode(name, doc))
            for _ in range(1 + (batch in self.case.repeated)):
                answer = self.post(first, body)
                assert answer["watermark"] == stop
            if batch == self.case.look_after and stop < len(self.documents):
                Reading(self, self.case.steps[: stop - 1], so_far=True).check()

    def post(self, first, body):
        return self.store.client.transport.request(
            "POST",
            api_path("ingest", self.uid),
            params={"first": first, "epoch": 0},
            headers={"Content-Type": FRAMES_MIMETYPE},
            body=body,
        ).decode()


# --- reading ---------------------------------------------------------------------------------------------


class Reading:
    """One look at a run in all the ways there are, after some of its steps."""

    def __init__(self, trial, steps, *, so_far=False):
        self.trial, self.steps, self.so_far = trial, steps, so_far
        self.case, self.number = trial.case, trial.number
        self.told = trial.case.told(steps)
        self.going_on = all(step.kind != "stop" for step in steps)
        self.rows_now = {}
        for camera, place, file in files_of(trial.case):
            rows = half(file) if so_far and trial.case.growing else file.length
            if self.going_on:
                rows = steady_rows(camera, file, rows)
            self.rows_now.setdefault(id(camera), {})[place] = rows

    def check(self):
        trial = self.trial
        trial.store.settle()
        run = trial.store.client[trial.uid]
        verdict = run.check()
        run = run.refresh()
        assert sorted(run) == sorted(segment(name) for name in self.told)
        for name, told in self.told.items():
            StreamReading(self, run[segment(name)], told, verdict).check()
        self.check_verdict(verdict)
        if not self.so_far:
            with run.documents() as found:
                assert same(list(found), trial.documents), "documents come back otherwise than they went in"
                assert not found.reconstructed

    def rows_of(self, key):
        return self.rows_now.get(id(key.camera))

    def readable(self, key):
        return key.readable(self.rows_of(key), going_on=self.going_on)

    def check_verdict(self, verdict):
        assert verdict.state == self.expected_state(), verdict.line
        if any(step.kind == "stop" for step in self.steps):
            assert verdict.gaps == self.gaps()
        wanted = {}
        for name, told in self.told.items():
            for key in told.keys.values():
                readable = self.readable(key)
                lost = any(key.is_lost(row) for row in key.rows)
                wanted[(name, key.camera.name)] = (
                    len(key.rows),
                    0 if lost else len(readable),
                    "ok" if not lost else "awaited" if self.going_on else "missing",
                )
        found = {}
        for file in verdict.files:
            found[file["path"]] = file["announced"], file["readable"], file["status"]
        assert Counter(found.values()) == Counter(wanted.values())

    def gaps(self):
        """Return the gaps of a run that has ended: what its documents tell of and do not bring."""
        missing = sum(told.missing(name) for told in self.told.values() for name in told.stream.cameras)
        return max(missing + sum(told.holes for told in self.told.values()), self.case.waiting(self.steps))

    def expected_state(self):
        if not any(step.kind == "stop" for step in self.steps):
            return "running"
        keys = [key for told in self.told.values() for key in told.keys.values()]
        if any(key.is_lost(row) for key in keys for row in key.rows):
            return "unreadable"
        if any(len(self.readable(key)) < len(key.rows) for key in keys):
            return "gaps"
        if self.gaps():
            return "gaps"
        if any(key.extra for key in keys):
            return "extra"
        if any(told.retaken for told in self.told.values()) or any(key.retaken for key in keys):
            return "retaken"
        return "complete"


class StreamReading:
    """One look at one stream."""

    def __init__(self, reading, stream, told: Told, verdict):
        self.reading, self.stream, self.told = reading, stream, told
        self.number = reading.number
        self.chosen = reading.trial.chosen
        self.counts = verdict.streams[told.stream.name]
        # Every key says in `source` what it is called in the documents; what it is called here is for the service.
        declared = stream.data_keys
        self.stored = {facts["source"].removeprefix("truth:"): name for name, facts in declared.items()}
        self.keys = {name: key for name, key in told.keys.items() if key.is_settled(reading.rows_of(key))}

    def check(self):
        self.check_counts()
        for key in self.keys.values():
            self.check_rows(key)
        for name in self.told.columns:
            self.check_column(name)
        self.check_datasets()

    # --- numbers ---------------------------------------------------------------------------------------------

    def check_counts(self):
        told, counts = self.told, self.counts
        assert counts["events"] == len(told.events)
        assert (counts["rows"], counts["retaken"], counts["holes"]) == (told.rows, told.retaken, told.holes)
        assert counts["rows"] == counts["points"] + counts["retaken"]
        for found in counts["keys"].values():
            assert counts["rows"] == found["present"] + found["missing"]
            assert found["announced"] == found["present"] + found["extra"] + found["duplicate"]
        for name in told.stream.cameras:
            found, key = counts["keys"][self.stored[name]], told.keys.get(name)
            assert found["missing"] == told.missing(name)
            if key is None:
                assert found["announced"] == 0
                continue
            wanted = (key.announced, key.present, key.extra, key.duplicate, key.retaken, key.gaps)
            names = ("announced", "present", "extra", "duplicate", "retaken", "gaps")
            assert tuple(found[each] for each in names) == wanted

    # --- one camera ------------------------------------------------------------------------------------------

    def check_rows(self, key):
        array = self.stream[self.stored[key.camera.name]]
        rows = self.reading.readable(key)
        frames = array.frames()
        assert list(zip(frames.seq_num.tolist(), frames.take.tolist(), strict=True)) == rows
        places = [(key.positions[key.frames[row].resource], key.frames[row].index) for row in rows]
        assert list(zip(frames.resource.tolist(), frames.frame_index.tolist(), strict=True)) == places
        assert array.seq_num.tolist() == [seq for seq, _ in rows]
        assert array.frame_index.tolist() == [index for _, index in places]
        assert array.present.tolist() == [row in rows for row in self.told.stream_rows]
        camera = key.camera
        item = camera.item_shape
        shape = (len(rows) * item[0], *item[1:]) if camera.is_concat else (len(rows), *item)
        assert array.shape == shape
        assert array.dtype == np.dtype(camera.dtype)
        aligned = len(rows) == self.told.rows and not key.extra
        assert (array.dims is not None and array.dims[0] == f"{array.key}_event") == (not aligned)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.check_values(key, array, rows)
        # Who reads by place is told, once, that places are not events.
        assert [one.category for one in said] == [MissingRows] * (not aligned)

    def check_values(self, key, array, rows):
        camera, shape = key.camera, array.shape
        lost = [place for place, row in enumerate(rows) if key.is_lost(row)]
        if lost:
            with pytest.raises(MissingAsset):
                array.read()
        truth = self.truth(key, rows, shape)
        for wanted in self.slices(shape):
            self.check_slice(array, camera, truth, wanted, lost)
        if truth.size and not lost:
            self.check_block(array, truth)
        if camera.is_concat and not lost:
            # Several lines an event have no place beside one row an event.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MissingRows)
                alone = self.stream.read([array.key])
            np.testing.assert_array_equal(alone[array.key].values, truth)

    def truth(self, key, rows, shape):
        """Return what reading the rows gives; those of files that are not there are zero, and never compared."""
        blank = np.zeros(key.camera.item_shape, key.camera.dtype)
        found = [blank if key.is_lost(row) else key.value(self.number, row) for row in rows]
        return np.array(found, key.camera.dtype).reshape(shape)

    def slices(self, shape):
        yield ()
        for _ in range(3):
            yield tuple(self.one_slice(length) for length in shape[: self.chosen.randint(1, len(shape))])

    def one_slice(self, length):
        kind = self.chosen.randrange(5)
        if kind == 0 and length:
            return self.chosen.randrange(-length, length)
        start, stop = (self.chosen.choice([None, self.chosen.randint(-1, length)]) for _ in range(2))
        return slice(start, stop, self.chosen.choice([None, 1, 2, -1, -3]))

    def check_slice(self, array, camera, truth, wanted, lost):
        per_row = camera.item_shape[0] if camera.is_concat else 1
        touched = np.unique(np.atleast_1d(np.arange(len(truth))[wanted[0] if wanted else slice(None)]) // per_row)
        expected = truth[wanted]
        if np.isin(touched, lost).any() and expected.size:
            with pytest.raises(MissingAsset):
                array[wanted]
            return
        found = array[wanted]
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        text = ",".join(str(part) if isinstance(part, int) else _words(part) for part in wanted)
        if not any(isinstance(part, slice) and (part.step or 1) < 0 for part in wanted):
            # Not `expected`: one item on its own is a scalar, and no longer in the file's byte order.
            assert self.octets("full", array, slice=text or None) == truth[(*wanted, ...)].tobytes()

    def check_block(self, array, truth):
        block = [self.chosen.randrange(len(axis)) for axis in array.chunks]
        bounds = [np.cumsum([0, *axis]) for axis in array.chunks]
        region = tuple(slice(*bound[n : n + 2]) for bound, n in zip(bounds, block, strict=True))
        assert self.octets("block", array, block=",".join(map(str, block))) == truth[region].tobytes()

    def octets(self, route, array, **params):
        """Return what the route gives, as any client of the protocol would ask for it."""
        headers = {"Accept": "application/octet-stream"}
        path = api_path("array", route, *array.path)
        return bytes(array.transport.request("GET", path, params=params, headers=headers).body)

    # --- events ----------------------------------------------------------------------------------------------

    def check_column(self, name):
        """Each Event's value as it is kept, before anything is aligned."""
        rows = [self.told.stream.data[number].get(name) for number in self.told.points]
        stored = self.stored[name]
        for part in self.stream.parts():
            if getattr(part, "columns", None) is not None and stored in part.columns:
                found = part.arrow([stored])[stored].to_pylist()
                assert part.arrow(["seq_num"])["seq_num"].to_pylist() == [seq for seq, _ in self.told.events]
                break
        else:
            found = list(self.stream[stored].read())
        assert len(found) == len(rows)
        for one, wanted in zip(found, rows, strict=True):
            assert_value(one, MISSING if wanted is None else wanted, stored)

    # --- all together ----------------------------------------------------------------------------------------

    def check_datasets(self):
        lost = {name for name, key in self.keys.items() if any(map(key.is_lost, self.reading.readable(key)))}
        if lost:
            with pytest.raises(MissingAsset):
                self.stream.read([self.stored[name] for name in lost])
        apart = {name for name, key in self.keys.items() if key.camera.is_concat}
        cameras = {name: key for name, key in self.keys.items() if name not in lost | apart}
        names = [self.stored[name] for name in [*self.told.columns, *cameras]]
        sources = [self.reading.readable(key) for key in cameras.values()]
        if self.told.columns:
            sources.append(self.told.events)
        for options, rows in (({}, last_rows(sources)), ({"repeats": "all"}, all_rows(sources))):
            self.check_dataset(names, cameras, rows, options)
        inner = [row for row in last_rows(sources) if all(row in source for source in sources)]
        self.check_dataset(names, cameras, inner, {"join": "inner"})
        self.check_dataset(names, cameras, last_rows(sources), {"lazy": True})

    def check_dataset(self, names, cameras, rows, options):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            dataset = self.stream.read(names, **options)
        # What is called like an axis is a coordinate for xarray.
        assert set(names) <= set(dataset.variables)
        if not names:
            return
        values = {name: dataset[name].values for name in names}
        rows = self.order(dataset, rows)
        marked = False
        for name in names:
            place = {row: n for n, row in enumerate(rows)}
            assert dataset[name].dims[0] == "time"
            assert len(values[name]) == len(rows), (name, rows)
            known = self.known(name, cameras)
            mask = self.mask(dataset, name, cameras)
            assert mask.tolist() == [row in known for row in rows], (name, rows)
            marked |= not mask.all()
            for row, n in place.items():
                assert_value(values[name][n], known.get(row, MISSING), name)
        if "seq_num" not in dataset.coords:
            assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1)), "rows that nothing names"
        missing = [one for one in said if issubclass(one.category, MissingRows)]
        assert bool(missing) >= marked
        assert not [one for one in said if not issubclass(one.category, MissingRows)]

    def order(self, dataset, rows):
        """Return rows in the order of the Dataset, which names them unless they are the stream's own."""
        if "seq_num" in dataset.coords:
            assert dataset["seq_num"].values.tolist() == [seq for seq, _ in rows]
        return rows

    def known(self, name, cameras):
        """Return the value of each row that there is."""
        original = next(key for key, stored in self.stored.items() if stored == name)
        if original in cameras:
            key = cameras[original]
            return {row: key.value(self.number, row) for row in self.reading.readable(key)}
        return dict(zip(self.told.events, self.told.column(original), strict=True))

    def mask(self, dataset, name, cameras):
        camera = any(self.stored[key] == name for key in cameras)
        beside = name in [part.key for part in self.stream.parts()]
        for coord in ([f"{name}_present"] if camera or beside else []) + ([] if camera else ["event_present"]):
            if coord in dataset.coords:
                return dataset[coord].values
        return np.ones(dataset.sizes["time"], bool)


def _words(part):
    return ":".join("" if each is None else str(each) for each in (part.start, part.stop, part.step))


def assert_value(found, wanted, name):
    """Compare one value; what is missing must be marked as such, what has been padded must end with NaN."""
    if wanted is MISSING:
        assert is_marked(found), (name, found)
        return
    if isinstance(wanted, str):
        assert str(found) == wanted, name
        return
    if isinstance(wanted, bool):
        assert isinstance(found, (bool, np.bool_)), (name, found)
        assert bool(found) is wanted, name
        return
    expected, got = np.asarray(wanted), np.asarray(found)
    if isinstance(wanted, list) and got.ndim == 1 and len(got) > len(expected):
        assert np.isnan(got[len(expected) :].astype(float)).all(), name
        got = got[: len(expected)]
    np.testing.assert_array_equal(got, expected.astype(got.dtype), err_msg=name)


def is_marked(found):
    if found is None or (isinstance(found, str) and found == "<NA>"):
        return True
    array = np.asarray(found)
    if array.dtype.kind in "OU":
        return all(each is None or each == "<NA>" or each != each for each in array.ravel().tolist())
    return array.dtype.kind == "f" and bool(np.isnan(array).all())


# --- the tests -------------------------------------------------------------------------------------------

LONG = pytest.mark.timeout(120 if QUICK else 7200)


@LONG
@pytest.mark.parametrize("shard", range(SHARDS))
def test_each_value_is_the_one_meant_or_is_marked_missing(store, shard):
    @search(-(-EXAMPLES // SHARDS), shard=shard)
    def check(case):
        note(f"to repeat: FLYSTORE_SEED={SEED} FLYSTORE_EXAMPLES={EXAMPLES} pytest {Path(__file__).name}")
        Trial(store, case).run()

    check()


@LONG
def test_what_lies_side_by_side_was_taken_together():
    """The rules that all other tests here take for granted, held against what the cameras did."""

    @search(2 * EXAMPLES)
    def check(case):
        for told in case.told(case.steps).values():
            points = [dict(zip(told.events, told.points, strict=True))] if told.events else []
            points += [{row: key.point(row) for row in key.rows} for key in told.keys.values()]
            for row in last_rows(points):
                assert len({source[row] for source in points if row in source}) == 1
            assert all(key.is_settled() for key in told.keys.values())

    check()


def test_every_defect_is_drawn():
    found = Counter()

    @search(600, shrink=False)
    def look(case):
        found.update(features(case))

    look()
    assert {word: found[word] for word in DEFECTS if found[word] < 5} == {}


DEFECTS = """gap / duplicate / retaken frames / retaken after a pause / rewound / extra frames
frames behind the Events / first index / range out of order / range before its resource / range without seq_nums
one frame for two events / several resources / indices go on / gap between files / one file, two resources
round robin / resource never came / two rates
shape / concat / pages / multiplier / frames_per_event / frame_per_point / file too short / row begun
row never written / file missing / no stop / documents after the stop / nonsense / batches sent twice
read while it grows / two descriptors / holes / events / frames / events and frames / empty stream
column None / column NaN / column absent / column ndarray / column beyond 2^53 / column array 1 / column array 2
column string 0 / column boolean 0 / column integer 0 / unsafe camera name / stream name 'a/b' / stream name ''
column name 'a/b' / column name '' / column name 'time' / column name 'ts_x' / stored compression / stored contiguous"""
DEFECTS = [word.strip() for line in DEFECTS.splitlines() for word in line.split("/ ")]


# --- and that they can fail ------------------------------------------------------------------------------


def blind_locate(external, rows):
    """The n-th announced row of a file is taken for its n-th row, whatever its index is."""
    resources = external.frame_map.rows().resource
    places = np.zeros(len(resources), np.int64)
    for resource in np.unique(resources):
        mine = resources == resource
        places[mine] = np.arange(np.count_nonzero(mine))
    return resources[rows], places[rows]


def zeros_for_missing(values, places):
    out = np.zeros((len(places), *values.shape[1:]), values.dtype)
    out[places >= 0] = values[places[places >= 0]]
    return out


def first_takes(seq_num):
    return np.zeros(len(seq_num), np.int64)


WRONG = {
    "frames by counting": (ExternalArray, "locate", blind_locate),
    "zeros for what is missing": (_dataset, "placed", zeros_for_missing),
    "duplicates are frames": (_frame_map, "_without_duplicates", lambda ranges: ranges),
    "takes of Events not counted": (_dataset, "takes_of", first_takes),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_reader_is_found_out(store, monkeypatch, what):
    monkeypatch.setattr(*WRONG[what])

    @search(100, shrink=False)
    def check(case):
        Trial(store, case).run()

    # Refusing to read what is there is wrong as well.
    with pytest.raises((AssertionError, FlystoreError, BaseExceptionGroup)):
        check()
