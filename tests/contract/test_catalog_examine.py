"""What ``flystore doctor`` says of a PostgreSQL server before a service uses it.

If these fail, a service loses acknowledged documents to a setting, or stops at its first start with a riddle.
"""

import psycopg
import pytest

from flystore.catalog import SCHEMA, Catalog, _examine, examine_server
from flystore.cli._migrate import run_migrate
from flystore.model.errors import Misconfigured


def states(url):
    return {remark.check: remark.state for remark in examine_server(url)}


def run(url, *statements):
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_server_that_is_right_is_ok_before_and_after_the_first_start(fresh_postgres):
    found = states(fresh_postgres)
    assert (found["database"], found["clock"], found["schema"]) == ("ok", "ok", "ok")
    assert "durability" not in found
    with Catalog.open(fresh_postgres):
        assert states(fresh_postgres)["schema"] == "ok"
    run(fresh_postgres, f"UPDATE flystore_schema SET version = {SCHEMA - 1}")
    assert states(fresh_postgres)["schema"] == "warning"
    run(fresh_postgres, f"UPDATE flystore_schema SET version = {SCHEMA + 1}")
    assert states(fresh_postgres)["schema"] == "problem"


def test_a_server_that_does_not_answer_or_knows_no_such_database_is_a_problem(fresh_postgres, postgres_url):
    (found,) = examine_server("postgresql://user:hidden@127.0.0.1:1/flystore")
    assert found.state == "problem"
    assert "hidden" not in found.text
    other = psycopg.conninfo.conninfo_to_dict(fresh_postgres)
    assert other["dbname"]
    from sqlalchemy import make_url

    absent = make_url(fresh_postgres).set(database="no_such_database").render_as_string(hide_password=False)
    (found,) = examine_server(absent)
    assert (found.state, "no_such_database" in found.text) == ("problem", True)


def test_a_commit_that_does_not_wait_for_the_disk_is_a_problem(fresh_postgres):
    from sqlalchemy import make_url

    url = make_url(fresh_postgres)
    options = f"{url.query['options']} -csynchronous_commit=off"
    careless = url.update_query_dict({"options": options}).render_as_string(hide_password=False)
    found = [remark for remark in examine_server(careless) if remark.check == "durability"]
    assert [remark.state for remark in found] == ["problem"]
    assert "synchronous_commit" in found[0].text


def test_a_clock_that_differs_is_said(fresh_postgres, monkeypatch):
    real = _examine.time.time
    monkeypatch.setattr(_examine.time, "time", lambda: real() - 90.0)
    assert states(fresh_postgres)["clock"] == "problem"
    monkeypatch.setattr(_examine.time, "time", lambda: real() + 10.0)
    assert states(fresh_postgres)["clock"] == "warning"


def test_a_user_who_may_make_no_tables_is_told(fresh_postgres):
    run(fresh_postgres, "DROP ROLE IF EXISTS flystore_doctor_test", "CREATE ROLE flystore_doctor_test LOGIN")
    from sqlalchemy import make_url

    schema = make_url(fresh_postgres).query["options"].partition("search_path=")[2]
    run(fresh_postgres, f'GRANT USAGE ON SCHEMA "{schema}" TO flystore_doctor_test')
    try:
        poor = make_url(fresh_postgres).set(username="flystore_doctor_test").render_as_string(hide_password=False)
        found = [remark for remark in examine_server(poor) if remark.state == "problem"]
        if found and "does not answer" in found[0].text:
            pytest.skip("this server asks roles for a password")
        assert ["may make no tables" in remark.text for remark in found] == [True]
    finally:
        run(fresh_postgres, "DROP OWNED BY flystore_doctor_test", "DROP ROLE flystore_doctor_test")


def test_a_catalogue_in_a_server_is_migrated_once_nobody_else_is_connected(fresh_postgres, capsys):
    with Catalog.open(fresh_postgres):
        pass
    run(fresh_postgres, f"UPDATE flystore_schema SET version = {SCHEMA - 1}")
    run_migrate(None, fresh_postgres, dry_run=True, in_use=False)
    assert f"from schema {SCHEMA - 1} to {SCHEMA}" in capsys.readouterr().out
    with psycopg.connect(fresh_postgres) as other:
        other.execute("SELECT 1")
        with pytest.raises(Misconfigured, match="an earlier flystore would go on"):
            run_migrate(None, fresh_postgres, dry_run=False, in_use=False)
    assert states(fresh_postgres)["schema"] == "warning"
    run_migrate(None, fresh_postgres, dry_run=False, in_use=True)  # other tests may use the same server
    assert states(fresh_postgres)["schema"] == "ok"
    assert "password" not in capsys.readouterr().out
