"""The databases that contract suites run on."""

import pytest

from flystore.catalog import Catalog


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
