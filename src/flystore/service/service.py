"""The service: one directory opened, and the use cases over it."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from flystore.catalog import Catalog
from flystore.disk import make_directory
from flystore.model.errors import Misconfigured
from flystore.storage import ArrayStore, PathMap, Roots

from .arrays import Arrays
from .browse import Browse
from .documents import Documents
from .ingest import Ingest
from .limits import Limits
from .nodes import Nodes
from .probing import Prober
from .ragged import Ragged
from .rebuilding import Rebuilt, rebuild
from .tables import Tables
from .verdicts import Verdicts

CATALOG_FILE = "catalog.sqlite"
ARRAYS_DIRECTORY = "arrays"


class Service:
    """Use cases over one catalogue, its storage, and the files that others wrote.

    Attributes
    ----------
    browse, arrays, tables, ragged, documents, verdicts
        Reading.
    ingest, nodes
        Writing: documents, and the Tiled protocol.
    """

    def __init__(self, catalog: Catalog, array_store: ArrayStore, roots: Roots, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._catalog = catalog
        self._prober = Prober(catalog, roots)
        self.browse = Browse(catalog, self.limits)
        self.tables = Tables(catalog, self.browse, self.limits)
        self.arrays = Arrays(catalog, self.browse, array_store, roots, self._prober, self.limits)
        self.ragged = Ragged(catalog, self.browse, self.limits)
        self.documents = Documents(catalog)
        self.verdicts = Verdicts(catalog, self._prober, self.limits)
        self.ingest = Ingest(catalog, self._prober, self.limits, self.verdicts.line_after_stop)
        self.nodes = Nodes(catalog, self.browse, array_store, self._prober, self.limits)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        read: Sequence[Path] = (),
        maps: Sequence[PathMap] = (),
        limits: Limits | None = None,
        create: bool = True,
    ) -> Self:
        """Open `directory`, making or migrating what is in it.

        Parameters
        ----------
        read : sequence of Path
            Directories whose files may be served; the service's own arrays always may.
        create : bool
            Make a store where there is none.

        Raises
        ------
        Misconfigured
            If the directory cannot be written, a read root is not a directory, or there is no store and `create`
            is false; says what to do.
        """
        directory = Path(directory).expanduser()
        if not create and not (directory / CATALOG_FILE).is_file():
            raise Misconfigured(
                f"there is no store in {directory}; name the directory that `flystore serve` was given",
                directory=str(directory),
            )
        _require_writable(directory)
        for root in read:
            if not Path(root).is_dir():
                raise Misconfigured(f"the read root {root} is not a directory; make it or name another", root=str(root))
        arrays = directory / ARRAYS_DIRECTORY
        make_directory(arrays)
        catalog = Catalog.open(f"sqlite:///{directory.resolve() / CATALOG_FILE}")
        return cls(catalog, ArrayStore(arrays), Roots(read, maps), limits)

    def rebuild(self) -> Rebuilt:
        """Work all trees out again from the log; see `flystore.service.rebuilding`."""
        done = rebuild(self._catalog)
        self.ingest.forget()
        return done

    def close(self) -> None:
        """Finish what is under way and let go of the directory."""
        self._prober.close()
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _require_writable(directory: Path) -> None:
    try:
        make_directory(directory)
        probe = directory / f".writable-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Misconfigured(
            f"the directory {directory} cannot be written ({error.strerror}); choose another or change its permissions",
            directory=str(directory),
        ) from error
