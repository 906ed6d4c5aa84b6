"""Browsing, searching at any depth, revisions, access tags: what the unmodified client asks and what it is told.

If these fail, people page through their catalogue and miss or repeat entries, a search at depth finds less than there
is, or what somebody wrote into metadata before a change is lost.
"""

import json
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def ask(server, method, path, body=None, **parameters):
    headers = {"Authorization": f"Apikey {server.key}"}
    content = None if body is None else json.dumps(body)
    return httpx.request(
        method, f"{server.url}/api/v1/{path}", params=parameters, headers=headers, content=content, timeout=100
    )


def make(server, path, key, metadata=None, **more):
    body = {"id": key, "structure_family": "container", "metadata": metadata or {}, "specs": [], "data_sources": []}
    answer = ask(server, "POST", f"metadata/{path}", {**body, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def plain(server, path):
    """Yield the plain client of a container; the root's own client takes every key for a run's uid."""
    from tiled.client import from_uri

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = from_uri(f"{server.url}/api/v1/metadata/{path}", api_key=server.key)
    try:
        yield client
    finally:
        client.context.http_client.close()


def forest(server, top):
    """Make a tree four levels deep; return the paths in the order they were made."""
    make(server, "", top)
    made = []
    for a in range(3):
        make(server, top, f"a{a}", {"level": 1, "n": a})
        made.append((f"a{a}",))
        for b in range(2):
            make(server, f"{top}/a{a}", f"b{b}", {"level": 2, "n": b, "colour": "red" if b else "blue"})
            made.append((f"a{a}", f"b{b}"))
            make(server, f"{top}/a{a}/b{b}", "c", {"level": 3, "colour": "red"})
            made.append((f"a{a}", f"b{b}", "c"))
    return made


def paths_of(answer):
    return [(*row["attributes"]["ancestors"], row["id"]) for row in answer.json()["data"]]


def test_containers_are_told_from_the_rest_whatever_is_asked_of_them(server):
    forest(server, "forest")
    for path, fields in (("metadata/forest", "metadata"), ("search/forest", "specs")):
        data = ask(server, "GET", path, fields=fields).json()["data"]
        told = [one["attributes"]["structure_family"] for one in ([data] if isinstance(data, dict) else data)]
        assert set(told) == {"container"}
    keys = ask(server, "GET", "search/forest", fields="").json()["data"]
    assert {one["attributes"]["structure_family"] for one in keys} == {None}


def test_the_first_none_of_the_keys_are_none(server):
    forest(server, "forest")
    with plain(server, "forest") as client:
        assert client.keys().head(0) == []
        assert client.keys().head(2) == ["a0", "a1"]


# --- search at any depth ----------------------------------------------------------------------


def test_a_client_finds_at_any_depth_what_it_finds_with_stock_tiled(server, stock, data):
    from tiled.queries import Key

    top = f"forest-{data.name}"
    found = []
    for one in (server, stock):
        forest(one, top)
        with plain(one, top) as client, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            red = client.search_deep(Key("colour") == "red")
            shallow = client.search_deep(Key("colour") == "red", max_depth=2)
            found.append([sorted(node.uri.split(top, 1)[1] for node in nodes.values()) for nodes in (red, shallow)])
            assert len(red) == 9
            assert len(shallow) == 3
    assert found[0] == found[1]


def test_pages_of_a_deep_search_join_to_all_of_it_while_nodes_are_added(server):
    made = forest(server, "forest")
    seen, links = [], 0
    answer = ask(server, "GET", "search-deep/forest", **{"page[limit]": 4})
    assert answer.json()["meta"]["count"] == len(made)
    while True:
        seen += paths_of(answer)
        following = answer.json()["links"]["next"]
        if following is None:
            break
        make(server, "forest", f"late{links}")
        links += 1
        answer = httpx.get(following, headers={"Authorization": f"Apikey {server.key}"}, timeout=100)
    want = [("forest", *path) for path in made]
    assert seen[: len(want)] == want
    assert len(set(seen)) == len(seen)


def test_a_deep_search_goes_as_deep_as_asked_and_refuses_an_order(server):
    made = forest(server, "forest")
    for depth in (1, 2, 3, 64):
        answer = ask(server, "GET", "search-deep/forest", max_depth=depth)
        assert paths_of(answer) == [("forest", *path) for path in made if len(path) <= depth]
        count = ask(server, "GET", "search-deep/forest", max_depth=depth, fields="count")
        assert count.json()["data"] == []
        assert count.json()["meta"]["count"] == len(paths_of(answer))
    for wrong in (0, 65, "x"):
        assert ask(server, "GET", "search-deep/forest", max_depth=wrong).status_code == 422
    for sort in ("", "-", "id"):
        assert ask(server, "GET", "search-deep/forest", sort=sort).status_code == 400
    assert ask(server, "GET", "search-deep/nowhere").status_code == 404
    regex = {"filter[regex][condition][key]": "colour", "filter[regex][condition][pattern]": "r.d"}
    for route in ("search", "search-deep"):
        assert ask(server, "GET", f"{route}/forest", **regex).status_code == 400


# --- order and pages --------------------------------------------------------------------------


@pytest.mark.parametrize("sort", [None, "-", "id", "-id", "metadata.n", "-n", "+"])
@pytest.mark.parametrize("by", ["offset", "cursor"])
def test_pages_in_any_order_join_to_all_children(server, sort, by):
    make(server, "", "many")
    for n in range(11):
        make(server, "many", f"k{n * 7 % 11:02d}", {"n": n * 3 % 11})
    order = {} if sort is None else {"sort": sort}
    start = {"page[offset]": 0} if by == "offset" else {}
    answer = ask(server, "GET", "search/many", **{"page[limit]": 4, **start, **order})
    whole = ask(server, "GET", "search/many", **order)
    seen, late = [], 0
    while True:
        seen += [row["id"] for row in answer.json()["data"]]
        following = answer.json()["links"]["next"]
        if following is None:
            break
        if sort in (None, "+"):
            make(server, "many", f"late{late}")
            late += 1
        page = dict(httpx.URL(following).params)
        assert set(page) <= {"page[offset]", "page[cursor]", "page[limit]"}
        answer = ask(server, "GET", "search/many", **page, **order)
    want = [row["id"] for row in whole.json()["data"]]
    assert seen[: len(want)] == want
    assert seen[len(want) :] == [f"late{n}" for n in range(late)]


# --- what of the metadata ---------------------------------------------------------------------


def test_a_selection_of_metadata(server):
    make(server, "", "one", {"a": {"b": [1, 2, {"c": "x"}]}, "d e": 1})

    def selected(expression):
        answer = ask(server, "GET", "metadata/one", select_metadata=expression)
        return answer.json()["data"]["attributes"]["metadata"] if answer.status_code == 200 else answer.status_code

    assert selected("a.b[2].c") == {"selected": "x"}
    assert selected("{x: a.b[0], y: missing}") == {"selected": {"x": 1, "y": None}}
    assert selected('"d e"') == {"selected": 1}
    assert selected("false") == {"selected": None}
    for wrong in ("a.[", "length(`1`)", ""):
        assert selected(wrong) == 400, wrong
    rows = ask(server, "GET", "search/", select_metadata="a.b[1]").json()["data"]
    assert rows[0]["attributes"]["metadata"] == {"selected": 2}


# --- revisions --------------------------------------------------------------------------------


def test_a_client_reads_and_deletes_revisions_as_with_stock_tiled(server, stock, data):
    found = []
    for one in (server, stock):
        key = f"notes-{data.name}"
        make(one, "", key, {"n": 0})
        with plain(one, key) as client:
            for n in (1, 2, 3):
                client.update_metadata({"n": n})
            client.update_metadata({"n": 4}, drop_revision=True)
            revisions = client.metadata_revisions
            assert len(revisions) == 3
            client.metadata_revisions.delete_revision(2)
            rows = client.metadata_revisions[:]
            found.append([(row["revision_number"], row["attributes"]["metadata"]) for row in rows])
            assert client.metadata_revisions[0]["attributes"]["specs"] == []
    assert found[0] == found[1] == [(1, {"n": 0}), (3, {"n": 2})]


def test_revisions_come_in_pages_with_their_time(server):
    make(server, "", "notes", {"n": 0})
    for n in range(1, 6):
        body = {"content-type": "application/merge-patch+json", "metadata": {"n": n}, "specs": None}
        assert ask(server, "PATCH", "metadata/notes", body).status_code == 200
    first = ask(server, "GET", "revisions/notes", **{"page[limit]": 2})
    assert first.json()["meta"]["count"] == 5
    seen, answer = [], first
    while True:
        seen += [row["attributes"]["metadata"]["n"] for row in answer.json()["data"]]
        if answer.json()["links"]["next"] is None:
            break
        answer = httpx.get(
            answer.json()["links"]["next"], headers={"Authorization": f"Apikey {server.key}"}, timeout=100
        )
    assert seen == [0, 1, 2, 3, 4]
    told = datetime.fromisoformat(first.json()["data"][0]["attributes"]["time_updated"])
    assert abs(told - datetime.now(UTC)) < timedelta(minutes=5)
    assert ask(server, "DELETE", "revisions/notes", number=99).status_code == 404
    assert ask(server, "DELETE", "revisions/notes").status_code == 422
    assert ask(server, "DELETE", "revisions/nowhere", number=1).status_code == 404
    assert ask(server, "GET", "revisions/nowhere").status_code == 404


# --- access tags ------------------------------------------------------------------------------


def test_access_tags_are_kept_found_and_changed(server):
    assert make(server, "", "one", access_tags=["red", "blue", "red"])["access_tags"] == ["red", "blue"]
    make(server, "", "two", access_blob={"tags": ["blue"]})
    make(server, "", "three")

    def tags(key):
        return ask(server, "GET", f"metadata/{key}").json()["data"]["attributes"]["access_tags"]

    def tagged(*wanted):
        query = {"filter[access_tags_filter][condition][tags]": json.dumps(wanted)}
        return [row["id"] for row in ask(server, "GET", "search/", **query).json()["data"]]

    assert [tags(key) for key in ("one", "two", "three")] == [["red", "blue"], ["blue"], []]
    assert tagged("blue") == ["one", "two"]
    patch = [{"op": "add", "path": "/-", "value": "green"}, {"op": "remove", "path": "/0"}]
    body = {"content-type": "application/json-patch+json", "metadata": None, "specs": None, "access_tags": patch}
    assert ask(server, "PATCH", "metadata/one", body).status_code == 200
    assert tags("one") == ["blue", "green"]
    assert ask(server, "PUT", "metadata/two", {"metadata": {}, "specs": [], "access_tags": ["x"]}).status_code == 200
    assert ask(server, "PUT", "metadata/three", {"metadata": {"a": 1}, "specs": []}).status_code == 200
    assert (tags("two"), tags("three"), tagged("green")) == (["x"], [], ["one"])
    revision = ask(server, "GET", "revisions/one").json()["data"][0]["attributes"]
    assert revision["access_tags"] == ["red", "blue"]
    for wrong in ("red", [1], {"a": 1}):
        assert (
            ask(server, "PUT", "metadata/two", {"metadata": {}, "specs": [], "access_tags": wrong}).status_code == 422
        )


def test_a_client_keeps_the_tags_it_gives(server):
    make(server, "", "box")
    with plain(server, "box") as client:
        child = client.create_container("child", access_tags=["red"])
        assert child.access_tags == ["red"]
        assert client["child"].access_tags == ["red"]
        child.replace_metadata(access_tags=["blue"])
        assert client["child"].access_tags == ["blue"]


def test_access_tags_survive_a_rebuild(server):
    make(server, "", "one", access_tags=["red"])
    assert ask(server, "PUT", "metadata/one", {"metadata": {}, "specs": [], "access_tags": ["blue"]}).status_code == 200
    assert server.service.rebuild().changed == []
    with server.service._catalog.write() as tx:
        tx.set_metadata(("one",), access_tags=["wrong"], keep_revision=False)
    assert server.service.rebuild().changed == ["one"]
    tags = ask(server, "GET", "metadata/one").json()["data"]["attributes"]["access_tags"]
    assert tags == ["blue"]
