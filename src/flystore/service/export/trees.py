"""Containers as JSON: the metadata of the whole tree, no data."""

from collections.abc import Iterator, Mapping
from typing import Any

from . import plain
from .pieces import joined
from .sources import ContainerSource, TableSource


def json(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield ``{"metadata": {…}, "contents": {key: the same}}``; columns are the children of their table."""
    return joined(_node(source))


def _node(source: Any) -> Iterator[bytes]:
    yield b'{"metadata":' + plain.encode(source.metadata) + b',"contents":{'
    for number, (key, child) in enumerate(_children(source)):
        yield (b"," if number else b"") + plain.encode(key) + b":"
        if child is None:
            metadata = source.column_metadata.get(key) or {}
            yield b'{"metadata":' + plain.encode(metadata) + b',"contents":{}}'
        else:
            yield from _node(child)
    yield b"}}"


def _children(source: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(source, ContainerSource):
        yield from source.children()
    elif isinstance(source, TableSource):
        yield from ((name, None) for name in source.without_index().schema.names)
