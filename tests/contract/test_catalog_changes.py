"""Whoever kept something of the catalogue is told whether anything was committed since.

If these fail, short reads go on from rows that have been replaced.
"""

import pytest

from flystore.catalog import Catalog, NotAtOnce
from flystore.model.errors import InvalidRequest
from flystore.model.structures import Family


def commit(catalog, name):
    with catalog.write() as tx:
        tx.put_node((name,), Family.CONTAINER, (), {}, None)


def fail(catalog):
    with catalog.write() as tx:
        tx.put_node(("never",), Family.CONTAINER, (), {}, None)
        raise InvalidRequest("and is not stored")


def test_the_number_of_changes_stays_while_nothing_is_committed_and_no_longer(tmp_path):
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    with Catalog.open(url) as catalog, Catalog.open(url) as other:
        found = [catalog.changes()]
        assert catalog.changes() == found[0]
        with catalog.read(), catalog.glance():
            assert catalog.changes() == found[0]
        for number, writer in enumerate((catalog, other, catalog)):
            commit(writer, f"n{number}")
            found.append(catalog.changes())
            assert catalog.changes() == found[-1]
        assert len(set(found)) == len(found)
        with pytest.raises(InvalidRequest):
            fail(catalog)
        assert catalog.changes() == found[-1]


def test_nothing_is_said_of_a_catalogue_that_is_closed(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path / 'c.sqlite'}") as catalog:
        catalog.changes()
    with pytest.raises(NotAtOnce):
        catalog.changes()


def test_a_database_elsewhere_is_not_asked_on_an_event_loop(catalog):
    if catalog.backend == "postgresql":
        with pytest.raises(NotAtOnce):
            catalog.changes()
    else:
        assert isinstance(catalog.changes(), int)
