"""``flystore verify``: is all of a store, or of a backup, what was stored?"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flystore.embedded import needing_server_parts

DAMAGED = 3
"""Exit status when something is damaged, missing or changed."""

_SHOWN = 100
"""Damaged places printed of each kind; --json has them all."""


def run_verify(
    directory: Path,
    *,
    deep: bool,
    read: Sequence[Path | str],
    maps: Sequence[str],
    scratch: Path | None,
    as_json: bool,
) -> int:
    """Verify the store or backup in `directory`, print what was found, and return the exit status."""
    with needing_server_parts("flystore verify"):
        from flystore.service.verifying import verify
        from flystore.storage import PathMap
    found = verify(directory, deep=deep, read=read, maps=[PathMap.parse(text) for text in maps], scratch=scratch)
    if as_json:
        print(json.dumps(_record(found)))
    else:
        for check in found.checks:
            _show(check)
        print("damaged" if found.damaged else "nothing is damaged")
    return DAMAGED if found.damaged else 0


def run_accept(directory: Path, paths: Sequence[str], read: Sequence[Path | str], maps: Sequence[str]) -> None:
    """Take the files of nodes for what they are now, and say so."""
    with needing_server_parts("flystore verify"):
        from flystore.service import Service
        from flystore.storage import PathMap
    roots = [PathMap.parse(text) for text in maps]
    with Service.open(directory, read=read, maps=roots, create=False) as service:
        for path in paths:
            for accepted in service.accept_files(tuple(part for part in path.split("/") if part)):
                print(f"accepted: {accepted}")


def _show(check: Any) -> None:
    counts = f"{check.checked} checked, {len(check.damaged)} damaged, {len(check.unverified)} unverified"
    print(f"{check.what}: {counts}")
    for finding in check.damaged[:_SHOWN]:
        print(f"  damaged: {finding.where}: {finding.why}")
    if len(check.damaged) > _SHOWN:
        print(f"  and {len(check.damaged) - _SHOWN} more; --json has them all")
    for why, count in Counter(finding.why for finding in check.unverified).most_common():
        example = next(finding.where for finding in check.unverified if finding.why == why)
        others = f" and {count - 1} more" if count > 1 else ""
        print(f"  unverified: {example}{others}: {why}")


def _record(found: Any) -> dict[str, Any]:
    return {
        "damaged": len(found.damaged),
        "checks": [
            {
                "what": check.what,
                "checked": check.checked,
                "damaged": [{"where": finding.where, "why": finding.why} for finding in check.damaged],
                "unverified": [{"where": finding.where, "why": finding.why} for finding in check.unverified],
            }
            for check in found.checks
        ],
    }
