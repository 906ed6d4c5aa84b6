"""Stock Tiled in this process, written to by the stock TiledWriter: the behaviour that flystore is compared with.

    with stock_tiled(tmp_path) as stock:
        stock.write(documents)
        stock.tree(uid)[("primary", "internal")]["structure"]

No socket is opened. The catalogue is in memory; tables and arrays go to `directory`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = tuple[str, Mapping[str, Any]]


class StockTiled:
    """A stock Tiled catalogue and its client.

    Attributes
    ----------
    client : tiled.client.container.Container
        The unmodified client, with data sources included.
    """

    def __init__(self, client: Any) -> None:
        self.client = client.include_data_sources()

    def write(self, documents: Iterable[Document], **settings: Any) -> None:
        """Send documents through the stock TiledWriter of bluesky-tiled-plugins; `settings` are its own."""
        from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter

        writer = TiledWriter(self.client, **settings)
        for name, doc in documents:
            writer(name, doc)

    def tree(self, uid: str) -> dict[tuple[str, ...], dict[str, Any]]:
        """Return the attributes of a run's nodes by path below the run; ``()`` is the run itself.

        Each has ``structure_family``, ``specs``, ``metadata``, ``structure`` and ``data_sources`` as on the wire;
        the structure of a container is None.
        """
        return dict(self._walk((), self.client[uid]))

    def _walk(self, path: tuple[str, ...], node: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        # Composite and run clients hide their children behind other views; `base` is the plain container.
        node = getattr(node, "base", node)
        attributes = node.item["attributes"]
        names = ("structure_family", "specs", "metadata", "structure", "data_sources")
        shown = {name: attributes.get(name) for name in names}
        if shown["structure_family"] != "container":
            yield path, shown
            return
        yield path, {**shown, "structure": None}
        for key in node:
            yield from self._walk((*path, key), node[key])


@contextmanager
def stock_tiled(directory: Path) -> Iterator[StockTiled]:
    """Run stock Tiled in this process.

    Parameters
    ----------
    directory
        Exists. Tables and arrays are written into it, and files below it may be read.
    """
    from tiled.catalog import in_memory
    from tiled.client import from_context
    from tiled.client.context import Context
    from tiled.server.app import build_app

    catalog = in_memory(
        writable_storage=[f"file://localhost{directory}/stock", f"duckdb:///{directory}/stock.duckdb"],
        readable_storage=[str(directory)],
    )
    with Context.from_app(build_app(catalog)) as context:
        yield StockTiled(from_context(context))
