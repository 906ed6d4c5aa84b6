"""What only PostgreSQL has: indexes of its own kinds, a pool with a bound, connections that break.

If these fail, a search reads the whole catalogue, or a facility whose database was restarted sees errors until its
services are restarted as well.
"""

import queue
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog, _postgres
from flystore.catalog._schema import metadata
from flystore.model.errors import Misconfigured, Unavailable


@pytest.fixture
def indexes(fresh_postgres):
    """The indexes of a new catalogue, by name, as PostgreSQL writes them."""
    Catalog.open(fresh_postgres).close()
    engine = sa.create_engine(
        sa.make_url(fresh_postgres).set(drivername="postgresql+psycopg"), poolclass=sa.pool.NullPool
    )
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT indexname, replace(indexdef, schemaname || '.', '') FROM pg_indexes "
            "WHERE schemaname = current_schema()"
        ).all()
    return dict(map(tuple, rows))


def test_words_are_found_by_a_gin_index(indexes):
    assert indexes["words_by_word"] == "CREATE INDEX words_by_word ON words USING gin (words)"


def test_the_index_of_edits_holds_nothing_but_edits(indexes):
    assert indexes["log_edits"] == (
        "CREATE INDEX log_edits ON log USING btree (path, \"position\") WHERE (action = 'edit-metadata'::text)"
    )


def test_every_index_that_the_tables_ask_for_is_there(indexes):
    named = {index.name for table in metadata.tables.values() for index in table.indexes}
    assert named <= set(indexes)
    assert "UNIQUE" in indexes["log_by_run"]
    assert "UNIQUE" in indexes["nodes_path_key"]


# --- what is waited for, and how long --------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://somebody:s3cret-word@127.0.0.1:1/data",
        "postgresql://somebody:s3cret-word@127.0.0.1:none/data",
        "postgresql:/somebody:s3cret-word@127.0.0.1",
        "mysql://somebody:s3cret-word@127.0.0.1/data",
    ],
)
def test_no_message_shows_the_password(address):
    with pytest.raises((Unavailable, Misconfigured)) as refused:
        Catalog.open(address)
    assert "s3cret-word" not in "".join(traceback.format_exception(refused.value))


def test_who_finds_no_free_connection_is_told_within_a_bound(fresh_postgres, monkeypatch):
    monkeypatch.setattr(_postgres, "POOL_WAIT_S", 0.1)
    with Catalog.open(fresh_postgres, connections=2) as catalog, catalog.read():
        with pytest.raises(Unavailable, match=r"all connections .* --pool"), catalog.read():
            pass
        with catalog.write() as tx:  # writers have their own
            tx.note_change(("a",), "updated", {})


def test_a_pool_of_one_connection_is_refused_in_words(fresh_postgres):
    with pytest.raises(Misconfigured, match="too few"):
        Catalog.open(fresh_postgres, connections=1)


def test_a_search_that_takes_too_long_is_given_up(fresh_postgres, monkeypatch):
    monkeypatch.setattr(_postgres, "READ_S", 0.1)
    with Catalog.open(fresh_postgres) as catalog:
        with pytest.raises(Unavailable, match="took too long"), catalog.read() as snapshot:
            snapshot._session.sql("SELECT pg_sleep(600)")
        with catalog.read() as snapshot:
            assert snapshot.last_position() == 0


def end_connections(url):
    """End all connections of a catalogue, as a server does that is restarted; return how many there were."""
    named = sa.make_url(url)
    engine = sa.create_engine(named.set(drivername="postgresql+psycopg"), poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        ended = connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE application_name = %s AND pid <> pg_backend_pid()",
            (named.query["application_name"],),
        ).all()
    return len(ended)


@pytest.fixture
def named_postgres(fresh_postgres):
    """URL of an empty schema whose connections can be told from those of others."""
    named = sa.make_url(fresh_postgres).update_query_dict({"application_name": f"test-{uuid4().hex}"})
    return named.render_as_string(hide_password=False)


def test_idle_connections_that_the_server_ended_are_seen_by_nobody(named_postgres):
    with Catalog.open(named_postgres) as catalog:
        with catalog.read() as one, catalog.read() as two:
            assert one.last_position() == two.last_position()
        assert end_connections(named_postgres) >= 3
        with catalog.read() as snapshot:
            assert snapshot.last_position() == 0
        with catalog.write() as tx:
            tx.note_change(("a",), "updated", {})


def test_a_transaction_whose_connection_ends_is_unavailable_and_leaves_nothing(named_postgres):
    with Catalog.open(named_postgres) as catalog:
        with pytest.raises(Unavailable), catalog.write() as tx:  # noqa: PT012
            tx.note_change(("a",), "updated", {})
            assert end_connections(named_postgres)
        with catalog.read() as snapshot:
            assert snapshot.last_position() == 0


def test_writers_that_waited_for_each_other_in_a_circle_are_told_to_try_again(fresh_postgres):
    with Catalog.open(fresh_postgres) as catalog, ThreadPoolExecutor(2) as threads:
        both = threading.Barrier(2, timeout=60)

        def write(first, then):
            with catalog.write() as tx:
                tx.run(first)
                both.wait()
                tx.run(then)

        futures = [threads.submit(write, "a", "b"), threads.submit(write, "b", "a")]
        failed = [error for future in futures if (error := future.exception(60)) is not None]
        assert [(type(error), error.met) for error in failed] == [(Unavailable, True)]


# --- hearing of others ------------------------------------------------------------------------------


def commit(catalog):
    with catalog.write() as tx:
        tx.note_change(("a",), "updated", {})


def test_commits_of_others_are_heard_and_those_of_this_process_are_not(fresh_postgres):
    heard = queue.SimpleQueue()
    with Catalog.open(fresh_postgres) as mine, Catalog.open(fresh_postgres) as other:
        end = mine.listen(lambda: heard.put(None))
        heard.get(timeout=60)  # at the beginning, of whatever was there
        commit(mine)
        commit(other)
        heard.get(timeout=60)
        end()
        assert heard.empty()


def test_who_listens_goes_on_after_the_connection_ended(named_postgres):
    heard = queue.SimpleQueue()
    with Catalog.open(named_postgres) as mine, Catalog.open(named_postgres) as other:
        end = mine.listen(lambda: heard.put(None))
        heard.get(timeout=60)
        end_connections(named_postgres)
        heard.get(timeout=60)  # what was missed meanwhile
        commit(other)
        heard.get(timeout=60)
        end()


def test_stores_in_one_database_do_not_hear_of_each_other(fresh_postgres, postgres_url):
    heard = queue.SimpleQueue()
    schema = f"flystore_{uuid4().hex}"
    engine = sa.create_engine(
        sa.make_url(postgres_url).set(drivername="postgresql+psycopg"), poolclass=sa.pool.NullPool
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
    apart = sa.make_url(postgres_url).update_query_dict({"options": f"-csearch_path={schema}"})
    with (
        Catalog.open(fresh_postgres) as mine,
        Catalog.open(fresh_postgres) as other,
        Catalog.open(apart.render_as_string(hide_password=False)) as stranger,
    ):
        end = mine.listen(lambda: heard.put(None))
        heard.get(timeout=60)
        commit(stranger)
        commit(other)  # heard after the stranger's would have been
        heard.get(timeout=60)
        end()
        assert heard.empty()
    with engine.begin() as connection:
        connection.exec_driver_sql(f'DROP SCHEMA "{schema}" CASCADE')
