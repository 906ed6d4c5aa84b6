"""``flystore migrate``: bring a store's catalogue to the schema of this version, ahead of the start that would."""

import time
from pathlib import Path

from flystore.embedded import needing_server_parts
from flystore.model.errors import Misconfigured


def run_migrate(directory: Path | None, catalog: str | None, *, dry_run: bool, in_use: bool) -> None:
    """Say what is to be done to a catalogue, and do it.

    Raises
    ------
    Misconfigured
        If there is no store, it is newer, or somebody has it open.
    """
    with needing_server_parts("flystore migrate"):
        from flystore.catalog import SCHEMA, UNFINISHED, Catalog, Step, others_at, steps_from, version_at
        from flystore.service.backup import CATALOG_FILE
        from flystore.service.belonging import require_address
    if catalog is not None:
        url, where = catalog, "the catalogue"
    elif directory is not None:
        require_address(directory)
        url, where = f"sqlite:///{directory.expanduser().resolve() / CATALOG_FILE}", str(directory)
    else:
        raise Misconfigured("name the directory of a store, or its catalogue with --catalog postgresql://…")
    version = version_at(url)
    if version == 0:
        raise Misconfigured(f"there is no store in {where}; name the directory that `flystore serve` was given")
    if version == UNFINISHED:
        raise Misconfigured(f"{where} is a copy that is not finished; run the same `flystore copy` again")
    if version > SCHEMA:
        raise Misconfigured(
            f"{where} has schema {version} and this flystore knows {SCHEMA}; install the newer flystore, "
            "nothing was changed"
        )
    steps = steps_from(version)
    if not steps:
        print(f"{where} has schema {version} already; nothing to do")
        return
    print(f"{where}: from schema {version} to {SCHEMA}, {len(steps)} steps")
    if dry_run:
        for step in steps:
            print(f"  {step.version}: {step.what}")
        print("nothing was changed; make a backup, stop the services that use it, then run this without --dry-run")
        return
    if not in_use and others_at(url):
        raise Misconfigured(
            f"other processes have {where} open, and an earlier flystore would go on writing to it by the old schema; "
            "end them first. Nothing was changed."
        )
    began = [0.0]

    def tell(step: Step, done: bool) -> None:
        if done:
            print(f" done in {time.monotonic() - began[0]:.1f} s", flush=True)
        else:
            began[0] = time.monotonic()
            print(f"  {step.version}: {step.what} …", end="", flush=True)

    Catalog.open(url, create=False, tell=tell).close()
    print(f"{where} has schema {SCHEMA} now")
