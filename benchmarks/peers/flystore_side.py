"""Our side: RunWriter and the client of flystore."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flystore import RunWriter, from_uri

from .tasks import SideTasks, Writing

FLUSH_SECONDS = 600.0


class Tasks(SideTasks):
    """Tasks with what flystore brings."""

    def make_client(self, url: str, key: str) -> Any:
        return from_uri(url, api_key=key)

    @contextlib.contextmanager
    def subscribed(self, url: str, key: str, uid: str, told: Callable[[int], Any]) -> Iterator[None]:
        began = threading.Event()

        def take(name: str, doc: dict[str, Any]) -> None:
            if name == "event" and doc["seq_num"] > 1:
                told(doc["seq_num"])
            began.set()

        with self.client(url, key)[uid].documents(follow=True).call(take):
            began.wait()
            yield

    def make_writer(self, url: str, key: str) -> Writing:
        journal = Path(tempfile.mkdtemp(prefix="benchmark-journal-"))
        writer = RunWriter(url, api_key=key, journal=journal)

        def close() -> None:
            writer.close()
            shutil.rmtree(journal, ignore_errors=True)

        return Writing(writer, lambda: writer.flush(timeout=FLUSH_SECONDS), close)
