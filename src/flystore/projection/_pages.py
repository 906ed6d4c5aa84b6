"""Documents that hold several: Event pages, Datum pages, and the bulk documents of old."""

from collections.abc import Iterator, Mapping
from typing import Any


def page_events(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the Events of an EventPage; a value that a shorter column lacks is null."""
    seq_nums, times = _listed(page.get("seq_num")), _listed(page.get("time"))
    data, stamps, filled = (_columns(page.get(name)) for name in ("data", "timestamps", "filled"))
    columns = [*data.values(), *stamps.values(), times]
    length = len(seq_nums) if seq_nums else max(map(len, columns), default=0)
    descriptor = page.get("descriptor")
    for row in range(length):
        yield {
            "descriptor": descriptor,
            "seq_num": _at(seq_nums, row),
            "time": _at(times, row),
            "data": {key: _at(column, row) for key, column in data.items()},
            "timestamps": {key: _at(column, row) for key, column in stamps.items()},
            "filled": {key: _at(column, row) for key, column in filled.items()},
        }


def bulk_events(doc: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the Events of a bulk_events document: lists of Events by descriptor."""
    for events in doc.values():
        yield from events


def page_datums(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the Datums of a DatumPage."""
    kwargs = _columns(page.get("datum_kwargs"))
    for row, datum_id in enumerate(_listed(page.get("datum_id"))):
        yield {
            "resource": page.get("resource"),
            "datum_id": datum_id,
            "datum_kwargs": {key: _at(column, row) for key, column in kwargs.items()},
        }


def bulk_datums(doc: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the Datums of a bulk_datum document."""
    kwargs = _listed(doc.get("datum_kwarg_list"))
    for row, datum_id in enumerate(_listed(doc.get("datum_ids"))):
        yield {"resource": doc.get("resource"), "datum_id": datum_id, "datum_kwargs": _at(kwargs, row) or {}}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value)


def _columns(value: Any) -> dict[str, list[Any]]:
    return {key: _listed(column) for key, column in value.items()} if isinstance(value, Mapping) else {}


def _at(column: list[Any], row: int) -> Any:
    return column[row] if row < len(column) else None
