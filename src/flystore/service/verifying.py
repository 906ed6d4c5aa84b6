"""Verifying a store, or a backup of one, in a directory: is all of it what was stored?

It changes nothing and goes on while a service writes: the catalogue is copied at one moment and the copy looked at.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flystore.catalog import Catalog, copy_catalog, has_node, problems_in_file
from flystore.model.errors import Damaged, Misconfigured
from flystore.storage import ArrayStore, PathMap, Roots

from .backup import CATALOG_FILE, STORE, is_backup, verify_backup
from .checking import check_store
from .comparing import compare_trees
from .findings import Check, Verified, checked
from .keeping import kept_in
from .probing import Prober


def verify(
    directory: Path,
    *,
    deep: bool = False,
    read: Sequence[Path | str] = (),
    maps: Sequence[PathMap] = (),
    scratch: Path | None = None,
) -> Verified:
    """Check a store, or a backup of one.

    Parameters
    ----------
    directory : Path
        What `flystore serve` was given, or what `flystore backup` made.
    deep : bool
        Also work the trees out again from the log and compare, and read files that carry checksums whole.
    read, maps
        As the service has them; files elsewhere are not looked at, and reported as unverified.
    scratch : Path, optional
        Where a copy of the catalogue is made; None is the system's place for temporary files.

    Raises
    ------
    Misconfigured
        If there is neither a store nor a backup, or it is of a newer flystore.
    DiskFull
        If the copy does not fit.
    """
    directory = Path(directory).expanduser()
    checks = []
    if is_backup(directory):
        checks.append(checked("backup", lambda check: _verify_backup(directory, check)))
        directory = directory / STORE
    catalogue = directory / CATALOG_FILE
    if not catalogue.is_file():
        if checks:
            return Verified(checks)
        raise Misconfigured(
            f"there is neither a store nor a backup in {directory}; name what `flystore serve` or `flystore backup` "
            "was given",
            directory=str(directory),
        )
    with TemporaryDirectory(prefix="flystore-verify-", dir=scratch) as temporary:
        copy = Path(temporary) / CATALOG_FILE
        pages = Check("pages")
        checks.append(pages)
        try:
            copy_catalog(catalogue, copy)
        except Damaged as error:
            pages.bad(str(catalogue), error)
            return Verified(checks)
        for problem in problems_in_file(copy):
            pages.bad(str(catalogue), problem)
        pages.checked = 0 if pages.damaged else 1
        try:
            catalog = Catalog.open(f"sqlite:///{copy}", create=False)
        except Misconfigured:
            raise
        except Exception as error:  # noqa: BLE001  a damaged page may raise anything
            pages.bad(str(catalogue), error)
            return Verified(checks)
        with catalog:
            prober = Prober(catalog, Roots(read, maps))
            arrays = ArrayStore(kept_in(directory))
            checks += check_store(
                catalog, arrays, prober, deep=deep, is_there=lambda node_id: has_node(catalogue, node_id)
            )
            if deep:
                place = Path(temporary)
                checks.append(checked("trees", lambda check: compare_trees(catalog, check, place)))
    return Verified(checks)


def _verify_backup(directory: Path, check: Check) -> None:
    manifest, problems = verify_backup(directory)
    for problem in problems:
        check.bad(f"the backup {directory}", problem)
    for missing in manifest.missing:
        check.unknown(f"the backup {directory}", f"{missing} was not in the store any more when it was backed up")
    check.checked = len(manifest.files) - len(problems)
