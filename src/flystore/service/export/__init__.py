"""Export: nodes as the files that people's programs read, one encoder a family and media type.

Promises: an encoder yields its body in pieces and holds no more than a few MB of the data, whatever its size; what it
cannot express it refuses before its first piece, or says how it expressed it; what cannot be read is an error, never
left out. `REGISTRY` says what there is; to add a format, or all formats of a family, call its `add`.
"""

from . import arrays, datasets, documents, hdf5, pictures, sheets, tables, trees
from .registry import (
    ARROW,
    CSV,
    CSVS,
    HDF5,
    HTML,
    JSON,
    JSON_SEQ,
    NETCDF,
    OCTETS,
    PARQUET,
    PLAIN,
    PNG,
    TIFF,
    XLSX,
    ZIP,
    Choice,
    Encoder,
    Format,
    Registry,
)
from .sources import ArraySource, ContainerSource, OtherSource, RaggedSource, TableSource

TABLE_ENCODERS: dict[str, Encoder] = {
    ARROW: tables.arrow,
    PARQUET: tables.parquet,
    **dict.fromkeys((media_type for media_type in CSVS if media_type != "text/comma-separated-values"), tables.text),
    HTML: tables.page,
    XLSX: sheets.workbook,
    JSON: tables.json,
    JSON_SEQ: tables.json_lines,
    HDF5: hdf5.table,
}
"""What a `TableSource` can be sent as, for other families that can be seen as tables."""


def _registry() -> Registry:
    found = Registry()
    found.add("array", OCTETS, arrays.octets)
    found.add("array", JSON, arrays.json)
    for media_type in CSVS:
        if media_type != "text/comma-separated-values":
            found.add("array", media_type, arrays.text)
    found.add("array", PNG, pictures.png)
    found.add("array", TIFF, pictures.tiff)
    found.add("array", HTML, arrays.page)
    for media_type, encode in TABLE_ENCODERS.items():
        found.add("table", media_type, encode)
    found.add("container", HDF5, hdf5.container)
    found.add("container", JSON, trees.json)
    found.add("BlueskyRun", JSON_SEQ, documents.json_lines)
    for media_type in (NETCDF, "application/x-netcdf"):
        found.add(datasets.SPEC, media_type, datasets.netcdf)
    found.add(datasets.SPEC, ARROW, datasets.over_table(tables.arrow, together=True))
    found.add(datasets.SPEC, PARQUET, datasets.over_table(tables.parquet))
    for media_type in CSVS:
        found.add(datasets.SPEC, media_type, datasets.over_table(tables.text))
    found.add(datasets.SPEC, HTML, datasets.over_table(tables.page))
    found.add(datasets.SPEC, XLSX, datasets.over_table(sheets.workbook))
    found.add(datasets.SPEC, JSON, datasets.over_table(tables.json))
    found.add(datasets.SPEC, HDF5, datasets.hdf5)
    return found


REGISTRY = _registry()
"""All formats of this service. Families without an entry have no export."""

__all__ = [
    "ARROW",
    "CSV",
    "CSVS",
    "HDF5",
    "HTML",
    "JSON",
    "JSON_SEQ",
    "NETCDF",
    "OCTETS",
    "PARQUET",
    "PLAIN",
    "PNG",
    "REGISTRY",
    "TABLE_ENCODERS",
    "TIFF",
    "XLSX",
    "ZIP",
    "ArraySource",
    "Choice",
    "ContainerSource",
    "Encoder",
    "Format",
    "OtherSource",
    "RaggedSource",
    "Registry",
    "TableSource",
]
