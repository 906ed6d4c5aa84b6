"""Real services on real sockets: ours, and stock Tiled beside it."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flystore.http import Access, build_app
from flystore.service import Service
from flystore.testing.serving import serving

KEY = "secret"


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

    def tiled(self) -> Any:
        """Return the unmodified stock client for it."""
        from tiled.client import from_uri

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return from_uri(self.url, api_key=self.key)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    found = tmp_path / "data"
    found.mkdir()
    return found


@pytest.fixture
def server(tmp_path: Path, data: Path) -> Iterator[Server]:
    """flystore over a fresh directory."""
    directory = tmp_path / "store"
    with (
        Service.open(directory, read=[data]) as service,
        serving(build_app(service, Access.of(KEY))) as url,
    ):
        yield Server(url, KEY, data, directory, service)


@pytest.fixture
def stock(data: Path) -> Iterator[Server]:
    """Stock Tiled 0.2.20 over a fresh catalogue."""
    from tiled.catalog import in_memory
    from tiled.server.app import build_app as build_stock

    with ExitStack() as stack:
        storage = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = in_memory(
            writable_storage=[str(storage), f"duckdb:///{storage / 'tables.duckdb'}"],
            readable_storage=[str(data)],
        )
        app = build_stock(tree, authentication={"single_user_api_key": KEY})
        url = stack.enter_context(serving(app))
        yield Server(url, KEY, data, storage)


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
