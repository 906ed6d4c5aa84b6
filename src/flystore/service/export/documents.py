"""A run as its documents, in their order."""

from collections.abc import Iterator, Mapping
from typing import Any

from flystore.model.errors import Unsupported

from . import plain
from .pieces import joined
from .sources import ContainerSource

_RECORD_SEPARATOR = b"\x1e"  # RFC 7464: before each text, which a line feed ends


def json_lines(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield ``{"name": …, "doc": …}`` for each document, each a record of RFC 7464 and a line of its own.

    Raises
    ------
    Unsupported
        If only some fields of the run were asked for: documents are whole.
    """
    if source.documents is None:
        raise Unsupported(f"{source.name} is no whole run; documents are those of a whole run, without field=")
    return joined(map(_line, source.documents()))


def _line(document: tuple[str, dict[str, Any]]) -> bytes:
    name, doc = document
    return _RECORD_SEPARATOR + b'{"name":' + plain.encode(name) + b',"doc":' + plain.encode(doc) + b"}\n"
