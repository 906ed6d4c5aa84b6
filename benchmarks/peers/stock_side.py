"""The stock side: TiledWriter of bluesky-tiled-plugins and the client of Tiled, as shipped."""

from typing import Any

from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter
from tiled.client import from_uri

from .tasks import SideTasks, Writing


class Tasks(SideTasks):
    """Tasks with what Tiled brings."""

    def make_client(self, url: str, key: str) -> Any:
        return from_uri(url, api_key=key)

    def make_writer(self, url: str, key: str) -> Writing:
        client = self.make_client(url, key)

        def close() -> None:
            client.context.http_client.close()

        # Its callbacks return when all is stored: there is nothing left to wait for.
        return Writing(TiledWriter(client), lambda: None, close)
