"""``flystore backup`` and ``flystore restore``: a store copied while it is served, and made again from the copy."""

from datetime import datetime
from pathlib import Path
from typing import Any

from flystore.embedded import needing_server_parts

INCOMPLETE = 3
"""Exit status when the backup is made and the store had lost something before."""


def run_backup(directory: Path, target: Path) -> int:
    """Back up the store in `directory` to `target`, say what it holds, and return the exit status."""
    with needing_server_parts("flystore backup"):
        from flystore.service.backup import back_up
    manifest = back_up(directory, target)
    print(f"{target}: {_described(manifest)}")
    for missing in manifest.missing:
        print(f"  {missing} is named by the catalogue and was not there; see flystore verify {directory}")
    return INCOMPLETE if manifest.missing else 0


def run_restore(backup: Path, directory: Path) -> None:
    """Restore a backup into `directory` and say up to when it goes."""
    with needing_server_parts("flystore restore"):
        from flystore.service.backup import restore
    manifest = restore(backup, directory)
    print(f"{directory}: restored {_described(manifest)}")


def _described(manifest: Any) -> str:
    moment = datetime.fromtimestamp(manifest.started).astimezone().isoformat(" ", "seconds")
    files = len(manifest.files)
    return (
        f"{manifest.runs} runs up to log position {manifest.position}, as of {moment}; "
        f"{files} files, {manifest.size / 1e6:,.1f} MB"
    )
