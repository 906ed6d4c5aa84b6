"""Real services on real sockets: ours, and stock Tiled beside it."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3

from flystore.http import Access, build_app
from flystore.service import Service
from flystore.testing.serving import serving
from flystore.testing.stock_server import API_KEY as KEY
from flystore.testing.stock_server import be_patient, served_stock_tiled


class Server(NamedTuple):
    """A running service.

    Attributes
    ----------
    data : Path
        A read root: where devices of the test may write.
    """

    url: str
    key: str
    data: Path
    directory: Path
    service: Service | None = None

    @contextmanager
    def tiled(self, path: str = "") -> Iterator[Any]:
        """Yield the unmodified stock client for what is at `path` of its URL; its connections are closed afterwards."""
        from tiled.client import from_uri

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = from_uri(f"{self.url}{path}", api_key=self.key)
        try:
            yield client
        finally:
            client.context.http_client.close()


@pytest.fixture(scope="session", autouse=True)
def _patient_peers() -> None:
    be_patient()


@pytest.fixture(scope="session")
def stock_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stock")


@pytest.fixture
def data(stock_home: Path) -> Iterator[Path]:
    """A directory that both services may read."""
    with tempfile.TemporaryDirectory(dir=stock_home, prefix="data-") as name:
        yield Path(name)


ON_BOTH = {"test_bad_input", "test_flyscan", "test_protocol_browse", "test_stock_writers", "test_tutorial"}
"""Modules whose tests of `server` run on SQLite and on PostgreSQL: all that a service does with its catalogue, once."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in ON_BOTH and "catalog_url" in metafunc.fixturenames:
        metafunc.parametrize("catalog_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def catalog_url(request: pytest.FixtureRequest) -> str | None:
    """The catalogue of `server`; None is a file in its directory."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    found: str = request.getfixturevalue("fresh_postgres")
    return found


@pytest.fixture
def server(tmp_path: Path, data: Path, catalog_url: str | None) -> Iterator[Server]:
    """flystore over a fresh directory."""
    directory = tmp_path / "store"
    with (
        Service.open(directory, read=[data], catalog=catalog_url) as service,
        serving(build_app(service, Access.of(KEY))) as url,
    ):
        yield Server(url, KEY, data, directory, service)


@pytest.fixture(scope="session")
def stock(stock_home: Path) -> Iterator[Server]:
    """Stock Tiled 0.2.20, in a process of its own."""
    with served_stock_tiled(stock_home) as url:
        yield Server(url, KEY, stock_home, stock_home)


@pytest.fixture
def recorded() -> Callable[..., list[tuple[str, dict]]]:
    """Run a plan with a real RunEngine and return its documents."""

    def record(plan: Any, *subscribers: Any) -> list[tuple[str, dict]]:
        from bluesky import RunEngine

        documents: list[tuple[str, dict]] = []
        engine = RunEngine({}, context_managers=[])
        engine.subscribe(lambda name, doc: documents.append((name, doc)))
        for subscriber in subscribers:
            engine.subscribe(subscriber)
        engine(plan)
        return documents

    return record


@pytest.fixture
def send(server):
    """Return a function that sends a request as it stands: method, path below the API, body, headers."""
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {server.key}"}) as pool:

        def request(method, path, body=None, headers=None):
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            merged = {**pool.headers, **(headers or {})}
            return pool.request(method, f"{server.url}/api/v1{path}", body=body, headers=merged, retries=False)

        yield request
