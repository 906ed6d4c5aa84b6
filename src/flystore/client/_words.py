"""Sizes, times and shapes in the words people use."""

import html
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(size: float) -> str:
    """Return a number of bytes with its unit: ``512 B``, ``1.5 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def human_shape(shape: Sequence[int | None]) -> str:
    """Return ``10 × 512 × 512``; an axis of unequal lengths is ``var``, no axes is ``scalar``."""
    return " × ".join("var" if n is None else str(n) for n in shape) if shape else "scalar"


def human_dtype(dtype: np.dtype) -> str:
    """Return a dtype's name, or its fields."""
    if dtype.fields is not None:
        return "{" + ", ".join(dtype.names or ()) + "}"
    return f"text of at most {dtype.itemsize // 4}" if dtype.kind == "U" else dtype.name


def human_time(seconds: Any) -> str:
    """Return local date and time of Unix seconds, or ``?`` if it is no time."""
    try:
        return datetime.fromtimestamp(float(seconds)).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def human_duration(seconds: float) -> str:
    """Return ``0.35 s``, ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def listed(names: Iterable[Any], most: int = 10) -> str:
    """Return names separated by commas, at most `most` of them and how many more there are."""
    every = [str(name) for name in names]
    shown = ", ".join(every[:most])
    return f"{shown}, … ({len(every) - most} more)" if len(every) > most else shown


def ranges(numbers: Sequence[int] | np.ndarray, most: int = 6) -> str:
    """Return ascending whole numbers as ranges: ``3, 7-9``; at most `most` of them."""
    values = np.asarray(numbers, dtype=np.int64)
    if values.size == 0:
        return ""
    cuts = np.flatnonzero(np.diff(values) != 1)
    firsts, lasts = values[np.r_[0, cuts + 1]], values[np.r_[cuts, values.size - 1]]
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]
    return listed(texts, most)


def html_rows(rows: Iterable[tuple[str, str]]) -> str:
    """Return a small two-column HTML table, everything escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table>{cells}</table>"
