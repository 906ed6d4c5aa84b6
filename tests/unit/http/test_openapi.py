"""The OpenAPI document says what the routes are, all of them and no others.

If these fail, programs made from the document ask for routes that there are not, or never learn of those there are.
"""

import json
import re
from pathlib import Path

import pytest
import urllib3
from jsonschema.validators import Draft202012Validator

from flystore.http import Access, build_app
from flystore.http.openapi import document
from flystore.http.openapi.page import page, policy
from flystore.model.queries import QUERY_NAMES
from flystore.service import Service
from flystore.testing.serving import serving

KEPT = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"


@pytest.fixture
def app(tmp_path):
    with Service.open(tmp_path) as service:
        yield build_app(service, Access.of("secret"))


def got(url):
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", url, retries=False)
        assert answer.status == 200
        return answer


def operations():
    return [operation for methods in document()["paths"].values() for operation in methods.values()]


def test_every_route_is_in_the_document_and_every_one_in_the_document_is_there(app):
    served = {
        (method, re.sub(r"\{(\w+):path\}", r"{\1}", route.path)) for route in app.routes for method in route.methods
    }
    described = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert described == {(method, path) for method, path in served if method != "HEAD"}


def test_the_document_that_is_kept_is_this_one():
    kept = json.loads(KEPT.read_text())
    assert kept == document(), "python -m flystore.http.openapi > docs/reference/openapi.json"


def test_each_operation_has_a_name_of_its_own_and_all_it_refers_to_is_there():
    names = [operation["operationId"] for operation in operations()]
    assert len(set(names)) == len(names)
    text = json.dumps(document())
    for kind, name in re.findall(r'"#/components/(\w+)/(\w+)"', text):
        assert name in document()["components"][kind]


def test_parameters_in_a_path_are_described():
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            told = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert told == set(re.findall(r"\{(\w+)\}", path))


def test_each_shape_is_a_json_schema():
    schemas = list(document()["components"]["schemas"].values())
    for operation in operations():
        schemas += [parameter["schema"] for parameter in operation.get("parameters", [])]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def test_all_filters_and_their_fields_are_described():
    told = {
        parameter["name"]
        for parameter in document()["paths"]["/api/v1/search/{path}"]["get"]["parameters"]
        if parameter["name"].startswith("filter")
    }
    assert {re.match(r"filter\[(\w+)\]", name)[1] for name in told} == set(QUERY_NAMES)


def test_the_served_document_names_where_the_service_lies(app):
    with serving(app, settings={"root_path": "/beamline"}) as url:
        served = got(f"{url}/openapi.json").json()
        shown = got(f"{url}/docs").data.decode()
    assert served == document("/beamline")
    assert served["servers"] == [{"url": "/beamline"}]
    assert 'data-base="/beamline"' in shown


def test_the_page_is_where_about_says_and_shows_every_route_without_the_internet(app):
    with serving(app) as url:
        answer = got(got(f"{url}/api/v1/").json()["links"]["documentation"])
        assert got(f"{url}/docs").data == answer.data
    shown = answer.data.decode()
    assert answer.headers["content-security-policy"] == policy()
    for operation in operations():
        assert f'id="{operation["operationId"]}"' in shown
    assert not re.search(r"(src|href|action)\s*=\s*[\"']?(https?:)?//", shown)
    assert "@import" not in shown


def test_the_page_shows_text_as_text():
    hostile = document("/<script>")
    hostile["info"]["title"] = hostile["paths"]["/"]["get"]["summary"] = "<script>alert(1)</script>"
    shown = page(hostile, "/<script>")
    assert shown.count("<script>") == 1
