"""Formats: which family of nodes can be had as which media type, and who encodes it.

A format is looked up by the names of a node: those of its specs in their order, then its family. So a spec adds to
what its family can, or takes a format over. What an encoder gets is one of `flystore.service.export.sources`: which
one, the family says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from flystore.model.errors import Unsupported

OCTETS = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.file"
PARQUET = "application/x-parquet"
CSV = "text/csv"
PLAIN = "text/plain"
HTML = "text/html"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
JSON = "application/json"
JSON_SEQ = "application/json-seq"
HDF5 = "application/x-hdf5"
NETCDF = "application/netcdf"
PNG, TIFF = "image/png", "image/tiff"
ZIP = "application/zip"
CSVS = (CSV, "text/x-comma-separated-values", "text/comma-separated-values", PLAIN, "application/vnd.ms-excel")
"""All written alike: what programs call a text with commas."""

_ALIASES = {
    ARROW: ("arrow", "feather"),
    PARQUET: ("parquet",),
    CSV: ("csv",),
    PLAIN: ("txt", "text"),
    "application/vnd.ms-excel": ("xls",),
    HTML: ("html", "htm", "shtml"),
    XLSX: ("xlsx",),
    JSON: ("json",),
    HDF5: ("h5", "hdf5"),
    NETCDF: ("nc",),
    PNG: ("png",),
    TIFF: ("tiff", "tif"),
    ZIP: ("zip",),
}

Encoder = Callable[[Any, Mapping[str, str]], Iterator[bytes]]
"""Yields the body in pieces; gets a source, and the parameters of the media type (``header=absent``)."""


class Format(msgspec.Struct, frozen=True):
    """A node as a media type.

    Attributes
    ----------
    encode : callable
        See `Encoder`. It may refuse what it is given with `Unsupported` before its first piece.
    """

    media_type: str
    encode: Encoder


class Choice(msgspec.Struct, frozen=True):
    """The format that an answer has.

    Attributes
    ----------
    media_type : str
        As asked for, with its parameters: what the answer calls itself.
    """

    media_type: str
    format: Format
    parameters: dict[str, str]

    def encode(self, source: Any) -> Iterator[bytes]:
        return self.format.encode(source, self.parameters)


class Registry:
    """Formats by the name of a family or spec, in the order in which they are offered; the first is the default."""

    def __init__(self) -> None:
        self._formats: dict[str, dict[str, Format]] = {}

    def add(self, name: str, media_type: str, encode: Encoder) -> None:
        """Offer nodes of a family or spec as `media_type`; an earlier one of the same name and type is replaced."""
        self._formats.setdefault(name, {})[media_type] = Format(media_type, encode)

    def formats(self) -> dict[str, list[str]]:
        """Return the media types of each family and spec."""
        return {name: list(offered) for name, offered in self._formats.items()}

    def aliases(self) -> dict[str, dict[str, list[str]]]:
        """Return the file extensions that stand for media types, of each family and spec."""
        return {
            name: {media_type: list(_ALIASES[media_type]) for media_type in offered if media_type in _ALIASES}
            for name, offered in self._formats.items()
        }

    def choose(self, names: Sequence[str], asked: Sequence[str]) -> Choice:
        """Return the first format of `asked` that a node of `names` is offered as.

        Parameters
        ----------
        names : sequence of str
            Its specs, then its family.
        asked : sequence of str
            Media types with or without parameters, wildcards, or file extensions, the best first.

        Raises
        ------
        Unsupported
            If there is none; names those that there are.
        """
        for wanted in asked:
            base, parameters = parsed(wanted)
            # What a spec adds is for who asks for it; who takes anything gets what its family is.
            for name in reversed(names) if base == "*/*" else names:
                found = self._match(name, base)
                if found is not None:
                    shown = ";".join([found.media_type, *(f"{key}={value}" for key, value in parameters.items())])
                    return Choice(shown, found, parameters)
        offered = dict.fromkeys(media_type for name in names for media_type in self._formats.get(name, {}))
        raise Unsupported(
            f"None of the media types requested by the client are supported. Supported: {', '.join(offered)}. "
            f"Requested: {', '.join(asked)}.",
            supported=list(offered),
        )

    def _match(self, name: str, wanted: str) -> Format | None:
        offered = self._formats.get(name, {})
        if wanted in offered:
            return offered[wanted]
        kind, _, rest = wanted.partition("/")
        for media_type, found in offered.items():
            if wanted == "*/*" or (rest == "*" and media_type.startswith(f"{kind}/")):
                return found
            if wanted.lower() in _ALIASES.get(media_type, ()):
                return found
        return None


def parsed(media_type: str) -> tuple[str, dict[str, str]]:
    """Return a media type without its parameters, and these; ``q``, which only ranks, is left out."""
    base, *rest = (part.strip() for part in media_type.split(";"))
    pairs = (part.partition("=") for part in rest if part)
    return base, {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs if key.strip() != "q"}
