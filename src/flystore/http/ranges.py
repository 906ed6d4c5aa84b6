"""Byte ranges and validators of downloads (RFC 9110, sections 8.8, 13 and 14)."""

import re
from email.utils import formatdate, parsedate_to_datetime

from starlette.datastructures import Headers

MOST_RANGES = 16
"""Ranges of one request that are answered one by one; with more, the whole file is sent, which HTTP allows."""

_SPEC = re.compile(r"(\d{0,19})-(\d{0,19})")


def wanted_ranges(headers: Headers, size: int, etag: str, modified: float | None) -> list[range] | None:
    """Return the bytes that are asked for; None means all.

    A header that makes no sense, is of another unit, or holds for another state of the file (``If-Range``) counts as
    not sent.

    Parameters
    ----------
    size : int
        Of the file in bytes.
    etag : str
        Quoted.
    modified : float or None
        Unix seconds; None while the file may change again without a sign of it.

    Returns
    -------
    list of range
        In ascending order, those that touch or overlap made one. Empty if none lies in the file.
    """
    unit, _, specs = headers.get("range", "").partition("=")
    if unit.strip().lower() != "bytes" or not _still_holds(headers.get("if-range"), etag, modified):
        return None
    parts = [part.strip() for part in specs.split(",", MOST_RANGES + 1) if part.strip()]
    if not parts or len(parts) > MOST_RANGES:
        return None
    found = []
    for part in parts:
        match = _SPEC.fullmatch(part)
        if match is None or match[0] == "-":
            return None
        if not match[1]:
            first, last = max(size - int(match[2]), 0), size - 1
        else:
            first, last = int(match[1]), min(int(match[2] or size), size - 1)
            if match[2] and int(match[2]) < first:
                return None
        if first <= last:
            found.append(range(first, last + 1))
    return _merged(found)


def _merged(ranges: list[range]) -> list[range]:
    merged: list[range] = []
    for part in sorted(ranges, key=lambda r: r.start):
        if merged and part.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, part.stop))
        else:
            merged.append(part)
    return merged


def _still_holds(condition: str | None, etag: str, modified: float | None) -> bool:
    if condition is None:
        return True
    condition = condition.strip()
    return condition == etag or (modified is not None and condition == http_date(modified))


def is_known(headers: Headers, etag: str, modified: float) -> bool:
    """Return whether the caller has this state of the file already."""
    known = headers.get("if-none-match")
    if known is not None:
        return any(name.strip().removeprefix("W/") in (etag, "*") for name in known.split(","))
    since = headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return int(modified) <= parsedate_to_datetime(since).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return False


def http_date(seconds: float) -> str:
    return formatdate(int(seconds), usegmt=True)
