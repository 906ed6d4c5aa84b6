"""A run as its documents, in their order."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from flystore.model.errors import Unsupported

from . import plain
from .pieces import joined
from .sources import ContainerSource

_BLOCK = 64
"""Documents encoded at once: encoding does not let other threads go on, and this many take a fraction of a ms."""


def json_lines(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield ``{"name": …, "doc": …}`` for each document, each a record of RFC 7464 and a line of its own.

    Raises
    ------
    Unsupported
        If only some fields of the run were asked for: documents are whole.
    """
    if source.documents is None:
        raise Unsupported(f"{source.name} is no whole run; documents are those of a whole run, without field=")
    return joined(_lines(source.documents()))


def _lines(documents: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[bytes]:
    while block := [{"name": name, "doc": doc} for name, doc in islice(documents, _BLOCK)]:
        yield plain.encode_records(block)
