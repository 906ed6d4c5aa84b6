"""Columns of a PandA's capture: which are there, what instants they count from, several of them a frame."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from flystore.model.errors import InvalidRequest, NotFound

from ._words import listed

ROLES = {
    "gate_start": ("PCAP.TS_START.Value",),
    "gate_end": ("PCAP.TS_END.Value",),
    "trigger": ("PCAP.TS_TRIG.Value",),
    "gate_duration": ("PCAP.GATE_DURATION.Value", "PCAP.SAMPLES.Value"),
}
MEAN = ".Mean"
_ZONE = re.compile(r"(?:Z|([+-])(\d\d):?(\d\d))$")


def chosen_columns(every: list[str], names: dict[str, str]) -> dict[str, str]:
    """Return {role: column} of what is there."""
    unknown = [role for role in names if role not in ROLES]
    if unknown:
        raise InvalidRequest(f"names are of {listed(ROLES)}, not of {listed(unknown)}")
    require_columns(every, names.values())
    found = {role: known for role, usual in ROLES.items() for known in usual[::-1] if known in every}
    return {**found, **names}


def require_columns(every: list[str], wanted: Iterable[str]) -> None:
    lost = [name for name in wanted if name not in every]
    if lost:
        raise NotFound(f"there is no {listed(lost)} among {listed(every, 30)}", keys=lost)


def as_column(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values).astype(np.float64).reshape(-1)


def numbers_of_captures(seq_num: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which capture each row is: event e has (e - 1) k + 1 to e k if k captures make an event."""
    each = values[0].size if len(values) else 1
    return ((seq_num[:, np.newaxis] - 1) * each + 1 + np.arange(each)).reshape(-1)


def without_gateless(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """Return the values with NaN in rows, negative ones among them too."""
    if values is None:
        return None
    lost = values < 0
    return np.where(lost | rows if len(rows) == len(values) else lost, np.nan, values)


def as_instant(what: str, given: Any) -> np.datetime64 | None:
    """Return an instant of ISO 8601 text, a datetime64 or Unix seconds; UTC."""
    if given is None:
        return None
    try:
        if isinstance(given, str):
            found = _from_text(given.strip())
        elif isinstance(given, np.datetime64):
            found = given.astype("M8[ns]")
        elif isinstance(given, bool):
            raise TypeError
        else:
            found = np.datetime64(round(float(given) * 1e9), "ns")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{what} is ISO 8601 text such as 2026-03-05T20:27:12.608875498Z, or Unix seconds, not {given!r}"
        ) from error
    if np.isnat(found):
        raise InvalidRequest(f"{what} is no time: {given!r}")
    return found


def _from_text(text: str) -> np.datetime64:
    zone = _ZONE.search(text) if "T" in text else None
    if zone is None:
        return np.datetime64(text, "ns")
    found = np.datetime64(text[: zone.start()], "ns")
    if zone.group(1) is None:
        return found
    minutes = int(zone.group(2)) * 60 + int(zone.group(3))
    ahead = np.timedelta64(minutes if zone.group(1) == "+" else -minutes, "m")
    return found - ahead


# --- several captures a frame -----------------------------------------------------------------


def first_known(rows: np.ndarray) -> np.ndarray:
    """Return the first of each row that is not NaN, NaN if all are."""
    return rows[np.arange(len(rows)), np.argmax(~np.isnan(rows), axis=1)]


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Σ w·x / Σ w of each row over the weights above 0, NaN where there are none."""
    counts = weights > 0
    total = weights.sum(axis=1)
    summed = np.where(counts, values * weights, 0.0).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
