"""Which catalogue a store's directory belongs to, where that is in PostgreSQL.

Without it, a service that is started without ``--catalog`` would begin an empty catalogue in that directory, and say
that it is ready.
"""

from pathlib import Path

from flystore.catalog import Catalog, shown_address
from flystore.disk import replace_file
from flystore.model.errors import Misconfigured

from .backup import CATALOG_AT_FILE

_GIVE = "give its address with --catalog, or in FLYSTORE_CATALOG"


def require_address(directory: Path) -> None:
    """Refuse to open a catalogue in a directory whose catalogue is in PostgreSQL.

    Raises
    ------
    Misconfigured
        Says where it is.
    """
    told = _told(directory)
    if told is not None:
        raise Misconfigured(
            f"the catalogue of the store {directory} is {told[1]}; {_GIVE}. If it was given up, remove the file "
            f"{directory / CATALOG_AT_FILE}",
            directory=str(directory),
        )


def belong(directory: Path, address: str, catalog: Catalog) -> None:
    """Have a directory say, from now on, that its catalogue is at `address`, in PostgreSQL.

    Raises
    ------
    Misconfigured
        If it says already that it belongs to another one.
    """
    told = _told(directory)
    with catalog.read() as snapshot:
        store = snapshot.store()
    if told is None:
        mark(directory, address, store)
    elif told[0] != store:
        raise Misconfigured(
            f"the directory {directory} keeps the arrays of another catalogue, which was {told[1]}; {_GIVE}, or name "
            "another directory",
            directory=str(directory),
        )


def mark(directory: Path, address: str, store: str) -> None:
    """Note in a directory to which store it belongs, and that its catalogue is at `address`, in PostgreSQL."""
    replace_file(directory / CATALOG_AT_FILE, f"{store}\n{shown_address(address)}\n".encode())


def _told(directory: Path) -> tuple[str, str] | None:
    """Return the store that a directory belongs to, and where its catalogue was when it was told."""
    try:
        store, _, where = (directory / CATALOG_AT_FILE).read_text().strip().partition("\n")
    except (FileNotFoundError, NotADirectoryError):  # making the directory says what is wrong with it
        return None
    return store, where or "in PostgreSQL"
