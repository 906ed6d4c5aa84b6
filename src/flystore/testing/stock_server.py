"""Stock Tiled on a real socket, in a process of its own: a service of the protocol that is not ours.

    with served_stock_tiled(tmp_path) as url:
        client = flystore.client.from_uri(url, api_key=API_KEY)

A process of its own, because its libraries warn and warnings are errors in our tests.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

API_KEY = "secret"
START_SECONDS = 100.0


@contextmanager
def served_stock_tiled(directory: Path) -> Iterator[str]:
    """Serve a stock Tiled catalogue that is a `CatalogOfBlueskyRuns`, in memory, with the key `API_KEY`.

    Parameters
    ----------
    directory : Path
        Exists. Tables and arrays are written into it, and files below it may be read.

    Yields
    ------
    str
        Base URL.
    """
    command = [sys.executable, "-W", "ignore", "-m", "flystore.testing.stock_server", str(directory)]
    with (
        (directory / "stock-server.log").open("w+b") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = process.stdout.readline().decode().strip()
            if not ready.startswith("http"):
                log.seek(0)
                raise RuntimeError(f"stock Tiled did not start: {log.read().decode()[-2000:]}")
            yield ready
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(START_SECONDS)


def be_patient() -> None:
    """Have the stock clients of this process wait for an answer as long as a test may take; by themselves 5 to 30 s."""
    from tiled.client.utils import DEFAULT_TIMEOUT_PARAMS

    DEFAULT_TIMEOUT_PARAMS.update(dict.fromkeys(DEFAULT_TIMEOUT_PARAMS, 100.0))


def write_with_stock(url: str, documents: Any, **settings: Any) -> None:
    """Send documents to a service through the unmodified TiledWriter of bluesky-tiled-plugins."""
    import warnings

    from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter
    from tiled.client import from_uri

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = from_uri(url, api_key=API_KEY)
        try:
            writer = TiledWriter(client, **settings)
            for name, doc in documents:
                writer(name, doc)
        finally:
            client.context.http_client.close()


def read_with_stock(url: str, uid: str, stream: str) -> Any:
    """Return a stream as an xarray Dataset as the unmodified client of bluesky-tiled-plugins reads it."""
    import warnings

    from tiled.client import from_uri

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = from_uri(url, api_key=API_KEY)
        try:
            return client[uid][stream].read()
        finally:
            client.context.http_client.close()


def main(directory: str) -> None:
    """Serve until standard input ends."""
    import threading

    from bluesky_tiled_plugins.exporters import json_seq_exporter
    from tiled.catalog import in_memory
    from tiled.config import Authentication
    from tiled.media_type_registration import default_serialization_registry
    from tiled.server.app import build_app

    from flystore.testing.serving import serving

    catalog = in_memory(
        specs=[{"name": "CatalogOfBlueskyRuns", "version": "3.0"}],
        writable_storage=[f"file://localhost{directory}/stock", f"duckdb:///{directory}/stock.duckdb"],
        readable_storage=[directory],
        cache_config={"uri": "memory", "datastore": "memory", "data_ttl": 3600, "seq_ttl": 86_400, "maxsize": 1000},
    )
    # As the plugins tell operators to configure it.
    default_serialization_registry.register("BlueskyRun", "application/json-seq", json_seq_exporter)
    app = build_app(catalog, authentication=Authentication(single_user_api_key=API_KEY))
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with serving(app, lifespan="on", start_seconds=START_SECONDS) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main(sys.argv[1])
