"""Names in documents lead to path segments and columns, one to one, for ever.

If these fail, stored runs cannot be found under their names any more, or two things share one.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.projection import segment, unescape
from flystore.projection._names import claim

GOLDEN = {
    "det": "det",
    "det-sum": "det-sum",
    "Ü ☃ x": "Ü ☃ x",
    "": "~",
    ".": "~2E",
    "..": "~2E~2E",
    "...": "...",
    "a/b": "a~2Fb",
    "a\\b": "a~5Cb",
    "100%": "100~25",
    "why?": "why~3F",
    "#1": "~231",
    "~": "~7E",
    "a~~2": "a~7E~7E2",
    "tab\t": "tab~09",
    "\x00": "~00",
    "\ud800": "~ED~A0~80",
}


@pytest.mark.parametrize(("name", "stored"), GOLDEN.items())
def test_escaping_is_on_disk_and_does_not_change(name, stored):
    assert segment(name) == stored
    assert unescape(stored) == name


@given(name=st.text(st.characters(exclude_categories=())))
def test_escaping_leads_back_and_is_safe(name):
    stored = segment(name)
    assert unescape(stored) == name
    assert stored not in ("", ".", "..")
    assert not set(stored) & set("/\\%?#")
    assert "~~" not in stored
    stored.encode()


def claimed(*keys):
    taken = set()
    return [claim(key, taken) for key in keys]


@pytest.mark.parametrize(
    ("keys", "stored"),
    [
        (["time", "seq_num"], ["time_", "seq_num_"]),
        (["time_", "time"], ["time_", "time_~~2"]),
        (["x", "ts_x"], ["x", "ts_x~~2"]),
        (["ts_x", "x"], ["ts_x", "x~~2"]),
        (["Det", "det", "DET"], ["Det", "det~~2", "DET~~3"]),
        (["internal", "internal_0", "internals"], ["internal~~2", "internal_0~~2", "internals"]),
        (["Time", "SEQ_NUM"], ["Time~~2", "SEQ_NUM~~2"]),
        (["a/b", "a~2Fb"], ["a~2Fb", "a~7E2Fb"]),
    ],
)
def test_collisions_go_to_who_came_first(keys, stored):
    assert claimed(*keys) == stored


@given(keys=st.lists(st.text("axX_/~ts2", max_size=5) | st.sampled_from(["time", "time_", "internal"]), unique=True))
def test_no_two_keys_claim_the_same_column(keys):
    stored = claimed(*keys)
    columns = [name.casefold() for key in stored for name in (key, f"ts_{key}")]
    assert len(columns) == len(set(columns))
    assert not set(columns) & {"time", "seq_num", "internal"}
