"""Containers of a service of the protocol (stock Tiled, on a socket) behave like ordered mappings.

If these fail, someone cannot find what is there, finds what is not, or a listing of a million
entries is fetched to show five.
"""

import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.client import And, Container, Eq, FullText, Key, NotEq, Specs
from flystore.model.errors import InvalidRequest, NotFound, OutOfBounds, Unauthenticated, Unavailable

NAMES = [f"n{i:02d}" for i in range(12)]
COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def written(stock_client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = stock_client.create_container("many")
        for i, name in enumerate(NAMES):
            # Two digits each: stock Tiled sorts numbers as text.
            metadata = {"number": 10 + i, "colour": COLOURS[i % 3], "deep": {"er": i // 4}}
            home.create_container(name, metadata=metadata)
        home["n00"].create_container("below").create_container("it")
        stock_client.create_container("nothing")


@pytest.fixture
def many(catalog, written):
    return catalog["many"]


def test_a_path_can_be_written_in_three_ways(many):
    for key in ("n00/below/it", ("n00", "below", "it"), ("n00", "below/it")):
        assert many[key].path == ("many", "n00", "below", "it")
    assert many["n00"]["below"]["it"] == many["n00/below/it"]


@pytest.mark.parametrize("key", ["nope", "n00/nope", "nope/n00", ("n00", "below", "nope")])
def test_what_is_not_there_is_a_key_error_that_names_it(many, key):
    with pytest.raises(NotFound, match="nope"):
        many[key]
    with pytest.raises(KeyError):
        many[key]
    assert key not in many
    assert many.get(key, "default") == "default"


def test_what_is_no_key_is_refused(many):
    with pytest.raises(InvalidRequest, match="a key is text"):
        many[3.5]
    with pytest.raises(InvalidRequest, match="cannot be a key"):
        many[".."]
    assert 3.5 not in many


def test_it_is_a_mapping_in_order_of_insertion(many):
    assert list(many) == NAMES
    assert len(many) == len(NAMES)
    assert "n03" in many
    assert list(many.keys()) == NAMES
    assert [node.key for node in many.values()] == NAMES
    assert [(key, node.metadata["number"] - 10) for key, node in many.items()] == list(
        zip(NAMES, range(len(NAMES)), strict=True)
    )
    assert all(isinstance(node, Container) for node in many.values())


def test_heads_and_tails_are_in_order(many):
    assert many.keys().head(3) == NAMES[:3]
    assert many.keys().tail(3) == NAMES[-3:]
    assert many.keys().first() == NAMES[0]
    assert many.keys().last() == NAMES[-1]
    assert many.values().last().key == NAMES[-1]
    assert many.items().first()[0] == NAMES[0]


def test_an_empty_container_has_no_first(catalog, written):
    with pytest.raises(OutOfBounds):
        catalog["nothing"].keys().first()
    with pytest.raises(IndexError):
        catalog["nothing"].keys().last()
    assert list(catalog["nothing"]) == []
    assert repr(catalog["nothing"]) == "<Container /nothing: empty>"


bounds = st.one_of(st.none(), st.integers(-15, 15))
steps = st.one_of(st.none(), st.integers(-4, 4).filter(bool))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=bounds, stop=bounds, step=steps)
def test_views_are_sliced_like_lists(many, start, stop, step):
    assert many.keys()[start:stop:step] == NAMES[start:stop:step]


@pytest.mark.parametrize("place", [0, 11, -1, -12])
def test_views_are_indexed_like_lists(many, place):
    assert many.keys()[place] == NAMES[place]


@pytest.mark.parametrize("place", [12, -13])
def test_views_end_where_they_end(many, place):
    with pytest.raises(IndexError):
        many.keys()[place]


def test_long_listings_are_fetched_page_by_page(many, monkeypatch):
    monkeypatch.setattr("flystore.client._session.LARGEST_PAGE", 5)
    assert list(many) == NAMES
    assert many.search(colour="red").keys()[:] == NAMES[::3]
    assert many.sort("-number").keys()[:] == NAMES[::-1]


def test_a_view_shows_its_beginning(many):
    assert repr(many.keys()) == "['n00', 'n01', 'n02', 'n03', 'n04', …]"


def test_search_keeps_what_matches_and_adds_up(many):
    red = many.search(colour="red")
    assert list(red) == NAMES[::3]
    assert len(red) == 4
    assert list(red.search(Key("number") > 13)) == ["n06", "n09"]
    assert list(many.search(FullText("blue"), Key("deep.er") == 2)) == ["n08", "n11"]
    assert list(many.search(And((Eq("colour", "red"), NotEq("number", 10))))) == ["n03", "n06", "n09"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Key("number") == 13, [3]),
        (Key("number") != 13, [i for i in range(12) if i != 3]),
        (Key("number") < 12, [0, 1]),
        (Key("number") <= 12, [0, 1, 2]),
        (Key("number") >= 20, [10, 11]),
        (Key("number").one_of([11, 15]), [1, 5]),
        (Key("number").none_of(range(12, 22)), [0, 1]),
        (Key("colour").contains("gree"), [1, 4, 7, 10]),
        (Key("colour").like("gr%"), [1, 4, 7, 10]),
        (Key("nonsense").exists(), []),
        (Key("deep").exists(), list(range(12))),
        (Specs(include=("no-such",)), []),
    ],
)
def test_every_comparison_of_a_key_is_a_query(many, query, found):
    assert [node.metadata["number"] - 10 for node in many.search(query).values()] == found


def test_what_was_not_searched_for_is_not_there(many):
    red = many.search(colour="red")
    assert red["n03/"].key == "n03"
    assert "n01" not in red
    with pytest.raises(NotFound, match="among what was searched for"):
        red["n01"]


def test_search_refuses_what_is_no_query(many):
    with pytest.raises(InvalidRequest, match="FullText"):
        many.search("red")
    with pytest.raises(InvalidRequest):
        many.search(Key("number") == {"a": 1})


def test_sorting_changes_the_order_of_everything(many):
    down = many.sort("-number")
    assert list(down) == NAMES[::-1]
    assert down.keys().last() == "n00"
    assert down.keys().tail(2) == ["n01", "n00"]
    assert many.sort(("number", -1)).keys().first() == "n11"
    assert down.sort("number").keys().first() == "n00"
    assert list(down.sort()) == NAMES


def test_equal_sort_keys_leave_a_total_order(many):
    by_colour = many.sort("colour")
    listed = list(by_colour)
    assert [many[key].metadata["colour"] for key in listed] == sorted(COLOURS * 4)
    assert by_colour.keys().tail(12) == listed


def test_sorting_refuses_what_is_no_direction(many):
    with pytest.raises(InvalidRequest, match="direction"):
        many.sort(("number", 2))


def test_distinct_values_can_be_counted(many):
    found = many.distinct("colour", counts=True)
    assert {entry["value"]: entry["count"] for entry in found["metadata"]["colour"]} == dict.fromkeys(COLOURS, 4)
    assert many.search(colour="red").distinct("colour")["metadata"]["colour"][0]["value"] == "red"


def test_its_repr_tells_a_person_what_they_have(many):
    assert repr(many) == f"<Container /many: 12 in it: {', '.join(NAMES[:10])}, …>"
    assert repr(many.search(number=11)) == "<Container /many: 1 found: n01>"


def test_a_repr_never_fails(stock_url, catalog):
    from flystore.client import from_uri

    home = catalog["many"]
    with from_uri(stock_url, api_key="secret") as other:
        gone = other["many"]
    gone._session.transport._base_url = "http://127.0.0.1:9"
    assert "cannot be listed now" in repr(gone)
    assert "12 in it" in repr(home)


def test_a_wrong_key_is_told_as_such(stock_url):
    from flystore.client import from_uri

    with pytest.raises(Unauthenticated):
        from_uri(stock_url, api_key="wrong")


def test_no_service_is_told_as_such():
    from flystore.client import from_uri

    with pytest.raises(Unavailable, match="Is the service running"):
        from_uri("http://127.0.0.1:9")
