"""The stock side: TiledWriter of bluesky-tiled-plugins and the client of Tiled, as shipped."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter
from tiled.client import from_uri
from tiled.client.stream import TableSubscription

from .tasks import SideTasks, Writing


class Tasks(SideTasks):
    """Tasks with what Tiled brings."""

    def make_client(self, url: str, key: str) -> Any:
        return from_uri(url, api_key=key)

    @contextlib.contextmanager
    def subscribed(self, url: str, key: str, uid: str, told: Callable[[int], Any]) -> Iterator[None]:
        subscription = TableSubscription(self.client(url, key).context, [uid, "primary", "internal"])

        def take(update: Any) -> None:
            for number in update.data()["seq_num"]:
                told(int(number))

        subscription.new_data.add_callback(take)
        subscription.start_in_thread()
        self._taking = take  # the registry holds it weakly
        try:
            yield
        finally:
            subscription.disconnect()

    def make_live_writer(self, url: str, key: str) -> Writing:
        return self._writing(url, key, batch_size=1)

    def make_writer(self, url: str, key: str) -> Writing:
        return self._writing(url, key)

    def _writing(self, url: str, key: str, **options: Any) -> Writing:
        client = self.make_client(url, key)

        def close() -> None:
            client.context.http_client.close()

        # Its callbacks return when all is stored: there is nothing left to wait for.
        return Writing(TiledWriter(client, **options), lambda: None, close)
