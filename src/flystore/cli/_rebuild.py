"""``flystore rebuild``: the trees worked out again from the log."""

from pathlib import Path

from flystore.embedded import needing_server_parts


def run_rebuild(directory: Path) -> None:
    """Rebuild the store in `directory` and print what became different.

    Raises
    ------
    Misconfigured
        If there is no store.
    Damaged
        If a record of the log cannot be read.
    """
    with needing_server_parts("flystore rebuild"):
        from flystore.service import Service
    with Service.open(directory, create=False) as service:
        done = service.rebuild()
    for path in done.changed:
        print(f"changed: {path}")
    for uid in done.failed:
        print(f"failed: run {uid} stays as it was")
    print(f"{done.runs} runs and {done.nodes} nodes of other writers rebuilt, {len(done.changed)} nodes changed")
