"""When a file counts as another one than was observed.

If these fail, people are refused their own data because a file was moved, or are given somebody else's.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.catalog import Observation, Run
from flystore.readers import ResourceProbe
from flystore.service.changed import QUIET_S, change, compared, settled_when

FILE = (7, 1000, 5_000_000_000)
NS = 1_000_000_000


@pytest.mark.parametrize(
    ("new", "growing", "settled"),
    [
        (FILE, None, None),
        ((8, *FILE[1:]), None, None),  # moved to another disk, restored from an archive
        ((7, 1000, FILE[2] + 1), None, "written to"),
        ((7, 1200, FILE[2] + 1), None, "written to"),
        ((7, 900, FILE[2] + 1), None, "had 1000"),  # HDF5 gives room back when it closes a file
        ((8, 1200, FILE[2] + 1), "another file", "another file"),
        ((8, 1000, FILE[2] - 1), "another file", "another file"),
    ],
)
def test_a_file_may_grow_until_it_is_settled_and_must_stay_the_same_after(new, growing, settled):
    for expected, is_settled in ((growing, False), (settled, True)):
        found = change(FILE, new, settled=is_settled)
        assert (found is None) == (expected is None)
        assert expected is None or expected in found


def test_a_sequence_may_grow_by_files_but_its_first_one_stays():
    known = (5, *FILE, *(9, 10, 11))
    more = (6, *FILE, *(12, 10, 13))
    assert change(known, more, settled=False) is None
    assert change(known, more, settled=True) is not None
    assert change(known, (6, *(8, 10, 11), *(12, 10, 13)), settled=False) is not None


fingerprints = st.lists(st.integers(0, 3), min_size=3, max_size=9).map(tuple)


@given(fingerprints, fingerprints)
def test_what_is_changed_while_it_may_grow_is_changed_for_good(old, new):
    if len(old) % 3 == 0 and change(old, new, settled=False) is not None:
        assert change(old, new, settled=True) is not None


@given(fingerprints, st.booleans())
def test_the_same_is_never_changed(known, settled):
    assert change(known, known, settled=settled) is None


def observed(*probes, settled=None):
    return Observation(1, 100.0, "ok", fingerprint={"found": msgspec.to_builtins(list(probes)), "settled": settled})


OK = ResourceProbe("ok", events=4, fingerprint=FILE, modified_ns=FILE[2])


def test_what_was_known_of_a_file_is_kept_while_it_is_away():
    away = ResourceProbe("missing", why="gone", kind="missing-asset")
    (kept,) = compared(observed(OK), [away])
    assert (kept.status, kept.fingerprint) == ("missing", FILE)
    (back,) = compared(observed(kept), [msgspec.structs.replace(OK, fingerprint=(8, 10, 20))])
    assert (back.status, back.kind, back.fingerprint) == ("changed", "changed", FILE)
    (same,) = compared(observed(back), [OK])
    assert same == OK


def test_nothing_is_compared_with_what_was_never_seen():
    assert compared(None, [OK]) == [OK]
    assert compared(observed(), [OK]) == [OK]


def run(**changes):
    return msgspec.structs.replace(Run("u", "documents", 4, 4, 2, b"", False, 100.0), **changes)


LATER = 100.0 + QUIET_S


@pytest.mark.parametrize(
    ("now", "of", "found", "expected"),
    [
        (LATER, run(), [OK], LATER),
        (LATER - 0.1, run(), [OK], None),
        (LATER, run(open=True), [OK], None),
        (LATER, None, [OK], None),
        (LATER, run(), [msgspec.structs.replace(OK, status="missing")], None),
        (LATER, run(), [OK, msgspec.structs.replace(OK, modified_ns=int((LATER - QUIET_S + 1) * NS))], None),
    ],
)
def test_files_are_settled_once_run_and_files_were_quiet(now, of, found, expected):
    assert settled_when(None, of, now, found) == expected
    assert settled_when(observed(OK, settled=50.0), of, now, found) == 50.0
