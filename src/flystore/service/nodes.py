"""Nodes made and changed by the Tiled protocol: what stock writers do.

Each change is one transaction: the operation in the log and what it does to the catalogue. Bytes
are durable before the transaction that makes them visible. Nodes worked out from documents are
not writable this way (kind ``made-from-documents``).
"""

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, Run, Transaction
from flystore.model.errors import Conflict, InvalidRequest, MadeFromDocuments, NotFound, TooLarge, Unsupported
from flystore.model.slices import Item
from flystore.model.structures import (
    AWKWARD_MIMETYPE,
    BLUESKY_RUN,
    PARQUET_MIMETYPE,
    RAGGED_MIMETYPE,
    SEGMENTS_MIMETYPE,
    SPARSE_MIMETYPE,
    ZARR_MIMETYPE,
    ArrayStructure,
    Asset,
    DataSource,
    Family,
    Management,
    Spec,
    TableStructure,
)
from flystore.readers import is_readable
from flystore.storage import ArrayStore, FileLocks, candidate_paths, decode_untrusted, encode_segment, uri_of_path

from .browse import Browse, everything_below, is_run, require_family
from .chunks import reserve_chunks
from .columns import series_of_table
from .entries import Entry
from .fitting import fit, one_batch
from .kept import KeptNodes
from .limits import Limits
from .operations import ArrayWritten, Created, DataSourcePut, MetadataSet, Operation, RowsWritten, StructureSet
from .patches import apply_patch
from .probing import Prober
from .protocol_runs import ProtocolState
from .requests import MetadataPatch, NewNode, seconds_of, specs_from_wire, tags_from_wire
from .table_files import file_kind, in_files
from .tables import require_only_partition
from .written_tables import WrittenTables, not_appendable

log = logging.getLogger("flystore.service")

OCTETS = "application/octet-stream"
_PARTS = {
    Family.TABLE: PARQUET_MIMETYPE,
    Family.AWKWARD: AWKWARD_MIMETYPE,
    Family.RAGGED: RAGGED_MIMETYPE,
    Family.SPARSE: SPARSE_MIMETYPE,
}
MOST_CHUNKS = 1 << 20
"""Chunks along one axis of an array that grows."""


class Nodes:
    """Creates, registers, appends, patches and deletes, one transaction each."""

    def __init__(
        self,
        catalog: Catalog,
        browse: Browse,
        arrays: ArrayStore,
        kept: KeptNodes,
        prober: Prober,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._browse = browse
        self._arrays = arrays
        self._parts = kept.store
        self._tables = WrittenTables(kept, limits)
        self._prober = prober
        self._limits = limits
        self._clock = clock
        self._patching = FileLocks(arrays.directory, "patch")

    def create(self, parent: tuple[str, ...], new: NewNode) -> tuple[Entry, list[DataSource]]:
        """Make a node below `parent`; return it and its data sources as stored.

        Raises
        ------
        NotFound
            If there is no such parent.
        Conflict
            If the key is taken (the message is the colliding path) or the parent holds no children.
        MadeFromDocuments
            If the parent belongs to a run that RunWriter wrote.
        Unsupported
            If no reader knows the data source's mimetype.
        """
        now = self._clock()
        path = (*parent, new.key)
        with self._catalog.write() as tx:
            run_uid = self._parent_run(tx, parent, path, new)
            if tx.node(path) is not None or (len(path) == 1 and tx.run(new.key) is not None):
                raise Conflict("/" + "/".join(path), path=list(path))
            structure = new.data_sources[0].structure if new.data_sources else None
            tags = new.access_tags
            node = tx.put_node(
                path,
                new.family,
                new.specs,
                new.metadata,
                structure,
                origin="protocol",
                run_uid=run_uid,
                access_tags=tags,
            )
            sources = [tx.put_data_source(node.id, self._kept(node, source)) for source in new.data_sources]
            source = sources[0] if sources else None
            made = Created(new.family, new.specs, new.metadata, structure, source, run_uid, tags)
            _log(tx, path, made, now)
            if run_uid == new.key and len(path) == 1:
                tx.save_run(_protocol_run(new, now))
            elif run_uid is not None:
                _touch(tx, run_uid, now)
        self._prober.enqueue([node.id] if _has_files(sources) else [])
        return self._browse.entry(path), sources

    def _parent_run(self, tx: Transaction, parent: tuple[str, ...], path: tuple[str, ...], new: NewNode) -> str | None:
        """Return the uid of the run that the new node will belong to."""
        if not parent:
            return new.key if any(spec.name == BLUESKY_RUN.name for spec in new.specs) else None
        node = tx.node(parent)
        if node is None:
            raise NotFound(f"No such entry: {list(parent)}", path=list(parent))
        _require_writable(node)
        if node.family is not Family.CONTAINER:
            raise Conflict(f"/{'/'.join(parent)} is of family {node.family} and holds no children")
        if node.structure is not None and tx.data_source(node.id) is not None:
            raise Conflict(f"/{'/'.join(parent)} stands for a file; its children are what is in the file")
        return node.run_uid

    def _kept(self, node: Node, source: DataSource) -> DataSource:
        """Return the data source as it will be stored, with a place for data that we keep."""
        if source.management is Management.EXTERNAL or source.assets:
            _require_known(source)
            _require_files(source)
            return source
        if source.family is Family.TABLE and source.mimetype == SEGMENTS_MIMETYPE:
            schema = TableStructure.from_wire(source.structure).arrow_schema
            npartitions = source.structure["npartitions"]
            if npartitions != 1:
                raise InvalidRequest(f"a table that rows are appended to has one partition, not {npartitions}")
            named = source.parameters.get("table_name") or f"table_{hashlib.md5(schema).hexdigest()}"
            parameters = {**source.parameters, "table_name": named, "dataset_id": node.id}
            return msgspec.structs.replace(source, mimetype=SEGMENTS_MIMETYPE, parameters=parameters)
        if source.family is Family.ARRAY and source.mimetype in ("", ZARR_MIMETYPE):
            key = str(node.id)
            # No two nodes ever have one id: what lies there was left by a transaction that came to nothing.
            self._arrays.delete(key)
            self._arrays.create(key, ArrayStructure.from_wire(source.structure))
            uri = uri_of_path(str(self._arrays.directory.resolve() / key))
            asset = Asset(uri, is_directory=True, parameter="data_uri", num=None)
            return msgspec.structs.replace(source, mimetype=ZARR_MIMETYPE, assets=(asset,))
        default = _PARTS.get(source.family)
        if default is not None and source.mimetype in ("", default):
            key = str(node.id)
            self._parts.create(key)
            uri = uri_of_path(str(self._parts.directory.resolve() / key))
            asset = Asset(uri, is_directory=True, parameter="data_uri", num=None)
            return msgspec.structs.replace(source, mimetype=default, assets=(asset,))
        raise _unknown_mimetype(source.mimetype or f"(default for {source.family})")

    def update_data_source(self, path: tuple[str, ...], source: DataSource) -> None:
        """Replace what is known of a node's files; assets listed are added to those known.

        Raises
        ------
        NotFound
            If there is no such node, or the data source is not its.
        InvalidRequest
            If it is of another family, or the service keeps the data itself.
        Unsupported
            If no reader knows its mimetype.
        """
        now = self._clock()
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            known = tx.data_source_head(node.id)
            if known is None or (source.id is not None and source.id != known.id):
                raise NotFound(f"data source {source.id} does not belong to /{'/'.join(path)}", id=source.id)
            merged = msgspec.structs.replace(source, id=known.id, mimetype=source.mimetype or known.mimetype)
            _require_replaceable(known, merged, path)
            # A scan repeats all its files with each new one: only what is new is written, here and in the log.
            added = tx.extend_data_source(node.id, merged)
            more = msgspec.structs.replace(merged, assets=added)
            if added or more != msgspec.structs.replace(known, assets=()):
                tx.set_structure(path, merged.structure)
                _log(tx, path, DataSourcePut(more, True), now)
            _touch(tx, node.run_uid, now)
        self._prober.enqueue([node.id] if _has_files([merged]) else [])

    def append_rows(self, path: tuple[str, ...], partition: int, body: bytes) -> tuple[int, int] | None:
        """Append the rows of an Arrow body to a table.

        Returns
        -------
        tuple of int, or None
            (first row, rows) of the append before if it was the same, byte for byte: both are stored, and one of
            them may be a repeat of a client that did not hear of the first.

        Raises
        ------
        InvalidRequest
            If the body is not Arrow, the partition is not 0, or its columns do not fit the table's.
        Unsupported
            If the table is kept as files.
        """
        if partition != 0:
            with self._catalog.read() as snapshot:
                node = require_family(self._browse.entry(path, snapshot), Family.TABLE).node
                if node is not None and in_files(snapshot.data_source_head(node.id)):
                    raise not_appendable(path)
            raise InvalidRequest(f"Partition out of range: this table has one partition, 0, not {partition}")
        return self._write_rows(path, body, append=True)

    def replace_rows(self, path: tuple[str, ...], body: bytes, partition: int | None = None) -> None:
        """Replace all rows of a table, or of one of its partitions, by those of an Arrow body.

        Raises
        ------
        InvalidRequest
            Also if the table has no such partition.
        """
        with self._catalog.read() as snapshot:
            node = require_family(self._browse.entry(path, snapshot), Family.TABLE).node
            assert node is not None
            kept_in_files = in_files(snapshot.data_source_head(node.id))
        if kept_in_files:
            self._tables.write(path, partition, body)
            return
        require_only_partition(partition)
        self._write_rows(path, body, append=False)

    def _write_rows(self, path: tuple[str, ...], body: bytes, *, append: bool) -> tuple[int, int] | None:
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        now = self._clock()
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            if node.family is not Family.TABLE or node.structure is None:
                raise NotFound(
                    f"The node at {'/'.join(path)} has structure family {node.family} and this endpoint "
                    "is compatible with table."
                )
            source = tx.data_source_head(node.id)
            if in_files(source):
                raise not_appendable(path)
            batch = one_batch(fit(arrived, TableStructure.from_wire(node.structure).schema, path))
            series = series_of_table(node)
            if not append:
                tx.drop_series(series)
            first, segment, repeated = tx.rows(series), encode_segment(batch), False
            if batch.num_rows:
                repeated = append and tx.ends_with(series, batch.num_rows, segment)
                tx.append_segment(series, first, batch.num_rows, segment, now)
            digest = hashlib.blake2b(body, digest_size=16).digest()
            _log(tx, path, RowsWritten(first, batch.num_rows, not append, digest, possible_repeat=repeated), now)
            _touch(tx, node.run_uid, now, repeated=batch.num_rows if repeated else 0)
        if not repeated:
            return None
        log.warning(
            "/%s: rows %d to %d are those before them, byte for byte: a possible repeat",
            "/".join(path),
            first,
            first + batch.num_rows - 1,
        )
        return first - batch.num_rows, batch.num_rows

    def write_array(self, path: tuple[str, ...], body: bytes) -> None:
        """Fill an array that this service keeps with C-ordered bytes.

        Raises
        ------
        InvalidRequest
            If the body has another length than the array.
        """
        node, structure = self._zarr(path)
        self._arrays.write_full(str(node.id), structure, body)
        self._log_array(node, ArrayWritten(len(body), None))

    def write_block(
        self, path: tuple[str, ...], block: tuple[int, ...], body: bytes, within: tuple[Item, ...] = ()
    ) -> None:
        """Fill one block of an array, or what `within` names of it, relative to the block.

        Raises
        ------
        OutOfBounds, InvalidRequest
        """
        node, structure = self._zarr(path)
        self._arrays.write_block(str(node.id), structure, block, body, within)
        self._log_array(node, ArrayWritten(len(body), block))

    def patch_array(
        self,
        path: tuple[str, ...],
        body: bytes,
        *,
        offset: tuple[int, ...],
        shape: tuple[int, ...],
        extend: bool,
    ) -> dict[str, Any]:
        """Overwrite or extend a region of an array; return its structure afterwards, in wire form.

        Raises
        ------
        Conflict
            If the region does not fit and `extend` is False.
        """
        # Two patches that extend must not both start from the structure of before: one after the other.
        first, _ = self._zarr(path)
        with self._patching.holding(first.id):
            node, structure = self._zarr(path)
            _require_few_chunks(structure, offset, shape)
            patched = self._arrays.patch(str(node.id), structure, offset, shape, body, extend).to_wire()
            self._log_array(node, StructureSet(patched, offset, shape))
        return patched

    def require_array(
        self, path: tuple[str, ...], offset: tuple[int, ...] = (), shape: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Return the structure, in wire form, of an array that could be written to, and in which a region fits.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If it could not.
        Conflict
            If the region does not fit.
        """
        _, structure = self._zarr(path)
        ends = [start + n for start, n in zip((*offset, *(0,) * len(shape)), shape, strict=False)]
        if len(shape) not in (0, len(structure.shape)) or len(offset) > len(structure.shape):
            raise InvalidRequest(f"a patch of shape {shape} at {offset} does not belong to {structure.shape}")
        if any(end > n for end, n in zip(ends, structure.shape, strict=False)):
            raise Conflict(f"a patch of shape {shape} at {offset} does not fit {structure.shape}. Use ?extend=true.")
        return structure.to_wire()

    def _zarr(self, path: tuple[str, ...]) -> tuple[Node, ArrayStructure]:
        entry = require_family(self._browse.entry(path), Family.ARRAY)
        node = entry.node
        assert node is not None
        _require_writable(node)
        sources = self._browse.data_sources(entry)
        if entry.column is not None or not sources or sources[0].mimetype != ZARR_MIMETYPE:
            raise Unsupported(f"/{'/'.join(path)} is not an array that this service keeps", status=405)
        structure = ArrayStructure.from_wire(node.structure)
        reserve_chunks(structure, path)
        return node, structure

    def _log_array(self, node: Node, operation: ArrayWritten | StructureSet) -> None:
        now = self._clock()
        with self._catalog.write() as tx:
            known = tx.node(node.path)
            if known is None or known.id != node.id:
                raise NotFound(f"No such entry: {list(node.path)}", path=list(node.path))
            if isinstance(operation, StructureSet):
                tx.set_structure(node.path, operation.structure)
            tx.note_data(node.id)
            _log(tx, node.path, operation, now)
            _touch(tx, node.run_uid, now)

    def patch_metadata(self, path: tuple[str, ...], patch: MetadataPatch, *, keep_revision: bool) -> None:
        """Apply a patch to what is stored now; two patches at once both take effect.

        Raises
        ------
        Conflict
            If the patch does not fit.
        """
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            metadata, specs = node.metadata, node.specs
            if patch.metadata is not None:
                metadata = apply_patch(metadata, patch.metadata, merge=patch.merge)
            if patch.specs is not None:
                listed = [spec.to_wire() for spec in specs]
                specs = specs_from_wire(apply_patch(listed, patch.specs, merge=patch.merge))
            tags = None
            if patch.access_tags is not None:
                tags = tags_from_wire(apply_patch(list(node.access_tags), patch.access_tags, merge=patch.merge))
            self._set_metadata(tx, node, metadata, specs, tags, keep_revision)

    def replace_metadata(
        self,
        path: tuple[str, ...],
        metadata: Any,
        specs: tuple[Spec, ...] | None,
        access_tags: tuple[str, ...] | None = None,
        *,
        keep_revision: bool,
    ) -> None:
        """Replace metadata, specs and access tags; None keeps each.

        Raises
        ------
        InvalidRequest
        """
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            kept = node.metadata if metadata is None else metadata
            self._set_metadata(tx, node, kept, node.specs if specs is None else specs, access_tags, keep_revision)

    def delete_revision(self, path: tuple[str, ...], number: int) -> None:
        """Forget what a node's metadata was before a change.

        Raises
        ------
        NotFound
            If there is no such node or revision.
        """
        with self._catalog.write() as tx:
            tx.delete_revision(path, number)
            tx.append_operation(path, "delete-revision", str(number).encode(), self._clock())

    def _set_metadata(
        self,
        tx: Transaction,
        node: Node,
        metadata: Any,
        specs: tuple[Spec, ...],
        tags: tuple[str, ...] | None,
        keep_revision: bool,
    ) -> None:
        if not isinstance(metadata, dict):
            raise InvalidRequest("metadata must be a JSON object")
        now = self._clock()
        tx.set_metadata(node.path, metadata=metadata, specs=specs, access_tags=tags, keep_revision=keep_revision)
        _log(tx, node.path, MetadataSet(metadata, specs, tags), now)
        _touch(tx, node.run_uid, now, closed=is_run(node) and bool(metadata.get("stop")))

    def delete(self, path: tuple[str, ...], *, recursive: bool, external_only: bool) -> None:
        """Remove a node; files that others wrote are never touched.

        Raises
        ------
        Conflict
            If it has children and `recursive` is False, or holds data that this service keeps and
            `external_only` is True.
        """
        if not path:
            raise InvalidRequest("the root cannot be deleted", status=405)
        with self._catalog.write() as tx:
            node = tx.node(path)
            if node is None:
                raise NotFound(f"No such entry: {list(path)}", path=list(path))
            if node.origin == "documents" and len(path) > 1:
                raise _made_from_documents(node)
            below = list(everything_below(tx, path))
            if below and not recursive:
                raise Conflict(
                    "Cannot delete a node that is not empty. Delete its contents first or pass `recursive=True`."
                )
            kept = [found for found in (node, *below) if _internal(tx, found)]
            if kept and external_only:
                raise Conflict(
                    "Some items in this tree are internally managed. Pass external_only=False to delete them too."
                )
            for found in kept:
                tx.drop_series(series_of_table(found))
            tx.delete_node(path, recursive=recursive)
            tx.append_operation(path, "delete", b"", self._clock())
            run = tx.run(path[0]) if len(path) == 1 else None
            if run is not None:
                tx.save_run(msgspec.structs.replace(run, deleted=True, open=False, state=b""))
        for found in kept:
            self._arrays.delete(str(found.id))

    def close(self, path: tuple[str, ...]) -> None:
        """Record that the writer will add no more to this node.

        Raises
        ------
        NotFound
        """
        with self._catalog.write() as tx:
            node = tx.node(path)
            if node is None:
                raise NotFound(f"No such entry: {list(path)}", path=list(path))
            tx.append_operation(path, "close", b"", self._clock())

    def _node(self, tx: Transaction, path: tuple[str, ...]) -> Node:
        if not path:
            raise InvalidRequest("the root cannot be changed", status=405)
        node = tx.node(path)
        if node is None:
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        _require_writable(node)
        return node


def _require_few_chunks(structure: ArrayStructure, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse an offset so far out that the list of chunks, which every structure carries, would not fit."""
    for start, n, lengths in zip(offset, shape, structure.chunks, strict=False):
        chunk = max(*lengths, 1) if any(lengths) else max(n, 1)
        if (start + n) // chunk > MOST_CHUNKS:
            raise TooLarge(
                f"an axis of {start + n} in chunks of {chunk} has more than {MOST_CHUNKS} chunks; "
                "create the array with larger ones",
                limit=MOST_CHUNKS,
            )


def _require_writable(node: Node) -> None:
    if node.origin == "documents":
        raise _made_from_documents(node)


def _made_from_documents(node: Node) -> MadeFromDocuments:
    return MadeFromDocuments(
        f"/{'/'.join(node.path)} is worked out from the documents of run {node.run_uid}; it cannot be changed by itself"
    )


def _unknown_mimetype(mimetype: str) -> Unsupported:
    return Unsupported(
        f"The given data source mimetype, {mimetype}, is not one that the Tiled server knows how to read.",
        mimetype=mimetype,
        status=415,
    )


def _require_replaceable(known: DataSource, wanted: DataSource, path: tuple[str, ...]) -> None:
    where = "/" + "/".join(path)
    if wanted.family is not known.family:
        raise InvalidRequest(f"{where} is of family {known.family}, not {wanted.family}")
    if known.management is not Management.EXTERNAL or wanted.management is not Management.EXTERNAL:
        raise InvalidRequest(f"the data of {where} is kept by this service; write to it instead", status=405)
    _require_known(wanted)
    _require_files(wanted)


def _require_known(source: DataSource) -> None:
    readable = file_kind(source.mimetype) if source.family is Family.TABLE else is_readable(source.mimetype)
    if not readable and source.mimetype != OCTETS:
        raise _unknown_mimetype(source.mimetype)


def _require_files(source: DataSource) -> None:
    """Refuse what is no file by its name alone; nothing is looked for, and nothing fetched."""
    for asset in source.assets:
        candidate_paths(asset.data_uri)


def _has_files(sources: list[DataSource]) -> bool:
    return any(
        source.management is Management.EXTERNAL and source.assets and source.family is Family.ARRAY
        for source in sources
    )


def _internal(tx: Transaction, node: Node) -> bool:
    source = tx.data_source(node.id)
    return source is not None and source.management is not Management.EXTERNAL


def _log(tx: Transaction, path: tuple[str, ...], operation: Operation, now: float) -> None:
    tx.append_operation(path, operation.action, operation.to_bytes(), now)


def _protocol_run(new: NewNode, now: float) -> Run:
    start = new.metadata.get("start")
    return Run(
        uid=new.key,
        writer="protocol",
        watermark=0,
        projected=0,
        epoch=0,
        state=b"",
        open=True,
        last_received=now,
        start_time=seconds_of(start),
        verdict="running",
    )


def _touch(tx: Transaction, run_uid: str | None, now: float, *, closed: bool = False, repeated: int = 0) -> None:
    """Note that a run's writer was heard of, and that so many rows that it sent may be repeats."""
    run = tx.run(run_uid) if run_uid is not None else None
    if run is None:
        return
    run = msgspec.structs.replace(run, last_received=now)
    if repeated and run.writer == "protocol":
        run = msgspec.structs.replace(run, state=ProtocolState.of(run).repeated(repeated).to_bytes())
    if closed and (run.open or run.closed is not None):
        # A late stop document wins over somebody's word that the run was interrupted.
        run = msgspec.structs.replace(run, open=False, closed=None, verdict="complete")
    tx.save_run(run)
