"""A service of the protocol that is not ours, and nodes on it, shared by the tests of this room."""

from pathlib import Path

import pytest

from flystore.client import from_uri
from flystore.testing.stock_server import API_KEY, be_patient, served_stock_tiled

STREAMS = Path(__file__).parents[2] / "data" / "streams"


@pytest.fixture(scope="session", autouse=True)
def _patient_peers():
    be_patient()


@pytest.fixture(scope="session")
def stock_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("stock")


@pytest.fixture(scope="session")
def stock_url(stock_directory):
    with served_stock_tiled(stock_directory) as url:
        yield url


@pytest.fixture(scope="session")
def catalog(stock_url):
    with from_uri(stock_url, api_key=API_KEY) as catalog:
        yield catalog


@pytest.fixture(scope="session")
def stock_client(stock_url):
    """The unmodified client, to write things with."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tiled.client import from_uri as stock_from_uri

        client = stock_from_uri(stock_url, api_key=API_KEY)
    yield client
    client.context.http_client.close()
