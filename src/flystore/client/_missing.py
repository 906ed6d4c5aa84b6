"""Rows that are missing: how it is said."""

from collections.abc import Sequence


class MissingRows(UserWarning):
    """Not every event is there: in a Dataset some are marked, in an array its rows are not the stream's."""


def is_marked(key: str, dims: Sequence[str] | None) -> bool:
    """Return whether the service says, by the name of the first dimension, that rows are not those of the stream."""
    return dims is not None and tuple(dims[:1]) == (f"{key}_event",)
