"""The service: one directory opened, and the use cases over it."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from flystore.catalog import Catalog
from flystore.disk import Trust, make_directory
from flystore.model.errors import Misconfigured, NotFound
from flystore.model.structures import Family, Management
from flystore.storage import ArrayStore, Budget, NearNames, PartStore, PathMap, Roots, require_root

from .arrays import Arrays
from .assets import Assets
from .awkward import Awkward
from .backup import CATALOG_FILE
from .belonging import belong, require_address
from .browse import Browse, everything_below
from .documents import Documents
from .exporting import Exports
from .following import Following
from .health import Readiness
from .ingest import Ingest
from .keeping import opened_keep
from .kept import KeptNodes
from .limits import Limits
from .merging import Merger
from .metrics import Measure, Read
from .nodes import Nodes
from .probing import Prober
from .ragged import Ragged
from .rebuilding import Rebuilt, rebuild
from .short_reads import ShortReads
from .sighted import Sights
from .sparse import Sparse
from .stored_forms import StoredForms
from .streaming import Streaming
from .table_files import TableFiles
from .tables import Tables
from .validating import Validating
from .verdicts import Verdicts
from .versions import Versions
from .waking import Waking
from .zarr_view import ZarrView


class Service:
    """Use cases over one catalogue, its storage, and the files that others wrote.

    Attributes
    ----------
    browse, arrays, short_reads, tables, ragged, awkward, sparse, assets, zarr, documents, following, verdicts, versions
        Reading.
    ingest, nodes
        Writing: documents, and the Tiled protocol.
    budget : Budget
        The memory of all requests; whoever serves requests opens an account for each.
    """

    def __init__(
        self,
        catalog: Catalog,
        array_store: ArrayStore,
        roots: Roots,
        limits: Limits | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._trust = trust or Trust()
        self.budget = Budget(self.limits.budget_bytes)
        self._catalog = catalog
        self._place = array_store.directory
        self.readiness = Readiness(catalog, array_store.keep, self._trust)
        self._prober = Prober(catalog, roots, budget=self.budget)
        parts = PartStore(array_store.keep, self._trust)
        self.browse = Browse(catalog, self.limits, roots=roots, table_files=TableFiles(catalog, parts, roots))
        self.merger = Merger(catalog)
        self.tables = Tables(catalog, self.browse, self.limits, self.merger)
        near = NearNames()
        self.arrays = Arrays(catalog, self.browse, array_store, roots, self._prober, self.limits, near)
        self.short_reads = ShortReads(self._prober, roots, near, self.limits.response_bytes)
        kept = KeptNodes(catalog, self.browse, parts)
        self.ragged = Ragged(catalog, self.browse, self.limits, kept)
        self.awkward = Awkward(kept, self.limits)
        self.sparse = Sparse(kept, self.limits)
        self.assets = Assets(self.browse, array_store, roots)
        self.zarr = ZarrView(self.browse, self.arrays, StoredForms(self.arrays, array_store, roots), self._prober)
        self.documents = Documents(catalog)
        self.following = Following(catalog, Waking(catalog, most=self.limits.followers))
        self.streaming = Streaming(catalog, self.browse, self.arrays, self.tables)
        self.exports = Exports(catalog, self.browse, self.arrays, self.ragged, self.documents)
        self.versions = Versions(self.browse, self._prober, Sights(catalog))
        self.verdicts = Verdicts(catalog, self._prober, self.limits)
        self.ingest = Ingest(catalog, self._prober, self.limits, self._ended, keep=self.following.keep_frames)
        self.nodes = Nodes(catalog, self.browse, array_store, kept, self._prober, self.limits)
        self.validating = Validating(catalog, self.browse, self.nodes, self.arrays, self.exports, self.verdicts, roots)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        read: Sequence[Path | str] = (),
        maps: Sequence[PathMap] = (),
        limits: Limits | None = None,
        create: bool = True,
        catalog: str | None = None,
        connections: int | None = None,
        storage: str | None = None,
    ) -> Self:
        """Open `directory`, making or migrating what is in it.

        Parameters
        ----------
        read : sequence of Path or str
            Directories, or places in buckets (``s3://bucket/prefix``), whose files may be served; the service's own
            arrays always may.
        create : bool
            Make a store where there is none.
        catalog : str, optional
            ``postgresql://USER@HOST/NAME`` of the catalogue; the directory keeps arrays only. None: a file in it.
        connections : int, optional
            To PostgreSQL, at most, at a time.
        storage : str, optional
            ``s3://bucket/prefix`` for arrays and tables; None: the directory.

        Raises
        ------
        Unavailable
            If the catalogue's database, or the bucket, does not answer.
        Misconfigured
            If the directory cannot be written or belongs to another catalogue, a read root is no directory or bucket,
            there is no store and `create` is false, or the bucket refuses or is not this store's; says what to do.
        """
        directory = Path(directory).expanduser()
        if catalog is None:
            require_address(directory)
        if catalog is None and not create and not (directory / CATALOG_FILE).is_file():
            raise Misconfigured(
                f"there is no store in {directory}; name the directory that `flystore serve` was given",
                directory=str(directory),
            )
        _require_writable(directory)
        for root in read:
            require_root(root)
        trust = Trust()
        url = catalog or f"sqlite:///{directory.resolve() / CATALOG_FILE}"
        opened = Catalog.open(url, create=create, trust=trust, connections=connections)
        try:
            if catalog is not None:
                belong(directory, catalog, opened)
            keep = opened_keep(directory, storage, opened)
            return cls(opened, ArrayStore(keep, trust), Roots(read, maps), limits, trust)
        except BaseException:
            opened.close()
            raise

    @property
    def stores_nothing(self) -> str | None:
        """Why nothing is stored until the service is started anew: its disk failed a write; None while all is well."""
        return self._trust.lost

    def measures(self) -> Iterator[Measure]:
        """Yield what is to be told of the use cases to who watches over the process."""
        yield from self.ingest.counts.measures()
        for name, what, read in (
            ("memory_budget_bytes", "Memory that all requests may hold together.", lambda: self.budget.total_bytes),
            ("memory_held_bytes", "Memory that requests hold now.", lambda: self.budget.held_bytes),
            ("probing_queue", "Nodes whose files wait to be looked at.", lambda: self._prober.waiting),
            ("feed_subscribers", "Who follows a run or the catalogue now.", lambda: len(self.following.waking)),
            ("storage_free_bytes", "Free space where arrays are kept.", lambda: shutil.disk_usage(self._place).free),
            ("stores_nothing", "1 after the disk failed a write: restart.", lambda: self._trust.lost is not None),
        ):
            yield Read(f"flystore_{name}", what, read)

    def rebuild(self) -> Rebuilt:
        """Work all trees out again from the log; see `flystore.service.rebuilding`."""
        done = rebuild(self._catalog)
        self.ingest.forget()
        return done

    def accept_files(self, path: tuple[str, ...]) -> list[str]:
        """Take the files of the node at `path` and of those below for what they are now; return the nodes' paths.

        For files that were changed on purpose after their run.

        Raises
        ------
        NotFound
            If there is no such node.
        """
        with self._catalog.read() as snapshot:
            root = snapshot.node(path)
            if root is None:
                raise NotFound(f"No such entry: {list(path)}", path=list(path))
            nodes = [root, *everything_below(snapshot, path)]
            sources = snapshot.data_sources([node.id for node in nodes])
        accepted = []
        for node in nodes:
            source = sources.get(node.id)
            if node.family is Family.ARRAY and source is not None and source.management is Management.EXTERNAL:
                self._prober.look(node, accept=True)
                accepted.append("/".join(node.path))
        return accepted

    def _ended(self, uid: str) -> str | None:
        """Return the line for people about a run that has ended; its rows are merged meanwhile."""
        self.merger.ask(uid)
        return self.verdicts.line_after_stop(uid)

    def close(self) -> None:
        """Finish what is under way and let go of the directory."""
        self.following.waking.end()
        self.merger.close()
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
