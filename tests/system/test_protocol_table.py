"""The table of routes in the documentation has every route of Tiled and of this service, with its true status.

If these fail, somebody plans with a route that there is not, or does without one that there is.
"""

import json
import re
from pathlib import Path

import pytest
import urllib3
from starlette.routing import Match

from flystore.http.app import SOCKETS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
STATUSES = ("same", "better", "absent", "ours")


def rows():
    found = re.findall(r"^\| `([A-Z]+) (\S+)` \| (\w+) \| (.*)\|$", PAGE.read_text(), re.M)
    assert len(found) == len(re.findall(r"^\| `", PAGE.read_text(), re.M))
    return [(method, path, status) for method, path, status, _ in found]


def listed(*statuses):
    return {(method, path) for method, path, status in rows() if status in statuses}


def is_served(app, method, path):
    concrete = re.sub(r"\{\w+\}", "7", path)
    if method == "WS":
        return any(concrete.startswith(prefix) for prefix in SOCKETS)
    scope = {"type": "http", "method": method, "path": concrete, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


@pytest.fixture
def app(server):
    from flystore.http import Access, build_app

    return build_app(server.service, Access.of(server.key))


def test_each_route_stands_once_with_one_of_the_statuses():
    found = rows()
    assert len({(method, path) for method, path, _ in found}) == len(found)
    assert {status for _, _, status in found} <= set(STATUSES)


def test_routes_are_there_or_absent_as_the_table_says(app):
    assert [row for row in sorted(listed("same", "better", "ours")) if not is_served(app, *row)] == []
    assert [row for row in sorted(listed("absent")) if is_served(app, *row)] == []


def test_every_route_of_this_service_is_in_the_table(app):
    served = {
        (method, re.sub(r"\{(\w+):path\}", r"{\1}", route.path)) for route in app.routes for method in route.methods
    }
    known = listed("same", "better", "ours")
    # The table has one row for each kind of document and chunk of Zarr.
    known |= {(method, re.sub(r"^(/zarr/v\d/\{path\}).*", r"\1", path)) for method, path in known}
    assert {row for row in served if row[0] != "HEAD"} <= known


def test_every_route_of_tiled_is_in_the_table(stock):
    with urllib3.PoolManager() as pool:
        described = json.loads(pool.request("GET", f"{stock.url}/openapi.json").data)["paths"]
    theirs = {(method.upper(), _as_in_the_table(path)) for path, methods in described.items() for method in methods}
    assert len(theirs) > 40
    assert theirs <= listed("same", "better", "absent")


def _as_in_the_table(path):
    zarr = re.fullmatch(r"(/zarr/v\d)/?\{path\}/?(.*)", path)
    return path if zarr is None else f"{zarr[1]}/{{path}}" + (f"/{zarr[2]}" if zarr[2] else "")
