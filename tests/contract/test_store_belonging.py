"""A directory whose catalogue is in PostgreSQL says so.

If these fail, a service that somebody starts without ``--catalog`` begins an empty catalogue beside the arrays, says
that it is ready, and takes the next night's runs to where nobody looks for them.
"""

import pytest

from flystore.model.errors import Misconfigured
from flystore.service import Service
from flystore.service.backup import CATALOG_AT_FILE, CATALOG_FILE
from flystore.service.copying import Place, copy_store
from flystore.service.doctoring import examine_store


def begun(directory, catalog=None):
    Service.open(directory, catalog=catalog).close()


def test_a_store_in_postgresql_is_not_opened_without_its_address(tmp_path, fresh_postgres):
    begun(tmp_path, fresh_postgres)
    with pytest.raises(Misconfigured, match="--catalog"):
        begun(tmp_path)
    assert not (tmp_path / CATALOG_FILE).exists()
    assert [remark.state for remark in examine_store(tmp_path) if "--catalog" in remark.text] == ["problem"]
    begun(tmp_path, fresh_postgres)


def test_a_directory_keeps_the_arrays_of_one_catalogue(tmp_path, fresh_postgres):
    (tmp_path / CATALOG_AT_FILE).write_text("another\npostgresql://db/other\n")
    with pytest.raises(Misconfigured, match="postgresql://db/other"):
        begun(tmp_path, fresh_postgres)


def test_the_password_is_not_written_down(tmp_path, fresh_postgres):
    # The server of the tests asks for none; what is given is taken.
    begun(tmp_path, fresh_postgres.replace("postgres:@", "postgres:hidden@"))
    written = (tmp_path / CATALOG_AT_FILE).read_text()
    assert "hidden" not in written
    assert "postgresql://" in written


def test_a_copy_into_postgresql_says_where_its_catalogue_is(tmp_path, fresh_postgres):
    begun(tmp_path / "store")
    copy_store(Place(tmp_path / "store"), Place(tmp_path / "copy", fresh_postgres))
    with pytest.raises(Misconfigured, match="--catalog"):
        begun(tmp_path / "copy")
    begun(tmp_path / "copy", fresh_postgres)
