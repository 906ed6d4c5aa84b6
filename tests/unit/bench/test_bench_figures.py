"""Benchmarks: medians, ratios, turns, and the table that goes to the documentation.

If these fail, the figures that we show of flystore and of stock are not what was measured.
"""

import math

import pytest
from benchmarks.figures import Figure, Measure, percentile, ratios
from benchmarks.interleave import column, interleaved, turns
from benchmarks.processes import Broken
from benchmarks.table import BEGIN, END, HEAD, cells, in_short, report, table, write_between_marks
from hypothesis import given, settings
from hypothesis import strategies as st

positive = st.floats(1e-6, 1e6)
samples = st.lists(positive, min_size=1, max_size=9)


def a_measure(**changed):
    given = {"stock": [300.0, 280.0], "flystore": [1.0, 2.0], "floors": {"h5py": [0.5, 1.0]}}
    return Measure("engine", "a run", "ms", **{"better": "less", **given, **changed})


def a_record(*measures, **changed):
    return {
        "date": "2026-11-22",
        "machine": {"cores": 2, "cpu": "a processor", "ram_gib": 24, "kernel": "Linux 6", "python": "3.11"},
        "how": "2 rounds, full sizes",
        "versions": {"stock": "tiled 0.2.20", "flystore": "0.1"},
        "measures": [measure.record() for measure in measures],
        "broken": {},
        **changed,
    }


# --- figures --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(samples)
def test_a_median_lies_between_least_and_most(values):
    figure = Figure.of(values)
    assert min(values) == figure.least <= figure.median <= figure.most == max(values)
    assert figure.samples == len(values)


def test_no_samples_give_no_figure_and_no_error():
    assert math.isnan(Figure.of([]).median)
    assert Figure.of([]).samples == 0
    assert math.isnan(percentile([], 99))


@settings(deadline=None)
@given(samples, st.floats(1, 100))
def test_a_percentile_is_a_sample_that_enough_of_them_do_not_exceed(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9
    assert sum(value < found for value in values) < len(values) * percent / 100


def test_the_hundredth_percentile_is_the_worst():
    assert percentile([3.0, 1.0, 2.0], 100) == 3.0


def test_ratios_are_of_the_same_round_and_not_of_medians():
    # The machine was ten times slower in the second round, for both.
    assert ratios([10.0, 100.0], [1.0, 10.0]) == [10.0, 10.0]


def test_a_party_with_fewer_rounds_has_ratios_in_those():
    assert ratios([10.0], [1.0, 5.0, 7.0]) == [10.0]


def test_better_is_a_shorter_time_and_a_higher_rate():
    assert a_measure(stock=[100.0], flystore=[4.0]).gain().median == 25.0
    assert a_measure(stock=[4.0], flystore=[100.0], better="more").gain().median == 25.0


def test_a_line_without_stock_has_no_gain():
    assert a_measure(stock=[]).gain().samples == 0


def test_a_measure_survives_json():
    measure = a_measure(note="why", reach="≤ 1 ms")
    assert Measure.of_record(measure.record()) == measure


# --- turns ----------------------------------------------------------------------------------------


def test_parties_take_turns_and_each_begins_a_round_in_turn():
    assert list(turns(["a", "b", "c"], 3)) == [
        *[(0, "a"), (0, "b"), (0, "c")],
        *[(1, "b"), (1, "c"), (1, "a")],
        *[(2, "c"), (2, "a"), (2, "b")],
    ]


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 6))
def test_every_party_has_its_rounds_and_a_slow_one_only_its_first(rounds, parties, fewer):
    names = [f"party {number}" for number in range(parties)]
    order = []
    calls = {name: lambda name=name: order.append(name) or {"at": len(order)} for name in names}
    found = interleaved(calls, rounds, {names[0]: fewer})
    assert len(found[names[0]]) == min(rounds, fewer)
    assert all(len(found[name]) == rounds for name in names[1:])
    assert sorted(at for name in names for at in column(found, name, "at")) == list(range(1, len(order) + 1))


def test_a_column_is_empty_where_a_party_did_not_take_part():
    assert column({"a": [{"x": 2.0}]}, "a", "x", 10) == [20.0]
    assert column({"a": [{"x": 2.0}]}, "b", "x") == []
    assert column({"a": [{"x": 2.0}]}, "a", "y") == []


# --- the table ------------------------------------------------------------------------------------


def test_a_line_shows_median_range_ratios_and_the_figure_to_reach():
    line = cells(a_measure(reach="≤ 1 ms"))
    assert line == (
        "a run",
        "ms",
        "290 (280–300)",
        "1.50 (1.00–2.00)",
        "220 ×",
        "h5py 0.750, 2.00 ×",
        "≤ 1 ms",
    )


def test_what_was_not_measured_is_a_dash():
    line = cells(a_measure(stock=[], floors={}))
    assert line[2:] == ("–", "1.50 (1.00–2.00)", "–", "–", "–")


def test_one_round_has_no_range():
    assert cells(a_measure(stock=[300.0]))[2] == "300"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567.0, "1,230,000"), (999.6, "1,000"), (12.34, "12.3"), (0.012345, "0.0123"), (math.nan, "–")],
)
def test_numbers_have_three_digits_that_mean_something(value, shown):
    assert in_short(value) == shown


def test_a_table_is_markdown_with_a_cell_for_each_head():
    lines = table([a_measure(), a_measure(stock=[])])
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(HEAD) + 1}
    assert len({len(line) for line in lines}) == 1


def test_a_report_names_date_machine_versions_and_what_broke():
    text = report(a_record(a_measure(), broken={"fly": "it ended\nand more"}), {"engine": "About the engine."})
    for part in ("2026-11-22", "2 cores (a processor), 24 GiB", "tiled 0.2.20", "### About the engine\n", "a run"):
        assert part in text
    assert "* fly: it ended\n" in text
    assert "and more" not in text


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    write_between_marks(page, "new\n")
    assert page.read_text() == f"above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"
    once = page.read_text()
    write_between_marks(page, "new\n")
    assert page.read_text() == once


@pytest.mark.parametrize("text", ["no marks\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_page_without_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(Broken, match="begin"):
        write_between_marks(page, "new")
    assert page.read_text() == text
