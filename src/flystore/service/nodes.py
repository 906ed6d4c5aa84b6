"""Nodes made and changed by the Tiled protocol: what stock writers do.

Each change is one transaction: the operation in the log and what it does to the catalogue. Bytes
are durable before the transaction that makes them visible. Nodes worked out from documents are
not writable this way (kind ``made-from-documents``).
"""

import hashlib
import re
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import msgspec
import pyarrow as pa

from flystore.catalog import Catalog, Node, Run, Transaction
from flystore.model.errors import Conflict, InvalidRequest, MadeFromDocuments, NotFound, TooLarge, Unsupported
from flystore.model.structures import (
    AWKWARD_MIMETYPE,
    BLUESKY_RUN,
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
from flystore.storage import ArrayStore, PartStore, candidate_paths, decode_untrusted, encode_segment, uri_of_path

from .browse import Browse, everything_below, is_run, require_family
from .chunks import reserve_chunks
from .columns import series_of_table
from .entries import Entry
from .limits import Limits
from .operations import ArrayWritten, Created, DataSourcePut, MetadataSet, Operation, RowsWritten, StructureSet
from .patches import apply_patch
from .probing import Prober
from .requests import MetadataPatch, NewNode, seconds_of, specs_from_wire

OCTETS = "application/octet-stream"
_PLAIN_INDEX = re.compile(r"__index_level_\d+__")
_PARTS = {
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
        parts: PartStore,
        prober: Prober,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._browse = browse
        self._arrays = arrays
        self._parts = parts
        self._prober = prober
        self._limits = limits
        self._clock = clock
        self._patching = Lock()

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
            node = tx.put_node(path, new.family, new.specs, new.metadata, structure, origin="protocol", run_uid=run_uid)
            sources = [tx.put_data_source(node.id, self._kept(node, source)) for source in new.data_sources]
            made = Created(new.family, new.specs, new.metadata, structure, sources[0] if sources else None, run_uid)
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
        return node.run_uid

    def _kept(self, node: Node, source: DataSource) -> DataSource:
        """Return the data source as it will be stored, with a place for data that we keep."""
        if source.management is Management.EXTERNAL or source.assets:
            if not is_readable(source.mimetype) and source.mimetype != OCTETS:
                raise _unknown_mimetype(source.mimetype)
            _require_files(source)
            return source
        if source.family is Family.TABLE and source.mimetype in ("", SEGMENTS_MIMETYPE):
            schema = TableStructure.from_wire(source.structure).arrow_schema
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
            known = tx.data_source(node.id)
            if known is None or (source.id is not None and source.id != known.id):
                raise NotFound(f"data source {source.id} does not belong to /{'/'.join(path)}", id=source.id)
            merged = msgspec.structs.replace(source, id=known.id, mimetype=source.mimetype or known.mimetype)
            _require_replaceable(known, merged, path)
            tx.put_data_source(node.id, merged)
            tx.set_structure(path, merged.structure)
            _log(tx, path, DataSourcePut(tx.data_source(node.id) or merged), now)
            _touch(tx, node.run_uid, now)
        self._prober.enqueue([node.id])

    def append_rows(self, path: tuple[str, ...], partition: int, body: bytes) -> None:
        """Append the rows of an Arrow body to a table.

        Raises
        ------
        InvalidRequest
            If the body is not Arrow, the partition is not 0, or its columns do not fit the table's.
        """
        if partition != 0:
            raise InvalidRequest(f"Partition out of range: this table has one partition, 0, not {partition}")
        self._write_rows(path, body, append=True)

    def replace_rows(self, path: tuple[str, ...], body: bytes) -> None:
        """Replace all rows of a table by those of an Arrow body.

        Raises
        ------
        InvalidRequest
        """
        self._write_rows(path, body, append=False)

    def _write_rows(self, path: tuple[str, ...], body: bytes, *, append: bool) -> None:
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        now = self._clock()
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            if node.family is not Family.TABLE or node.structure is None:
                raise NotFound(
                    f"The node at {'/'.join(path)} has structure family {node.family} and this endpoint "
                    "is compatible with table."
                )
            batch = fit(arrived, TableStructure.from_wire(node.structure).schema, path)
            series = series_of_table(node)
            if not append:
                tx.drop_series(series)
            first = tx.rows(series)
            if batch.num_rows:
                tx.append_segment(series, first, batch.num_rows, encode_segment(batch), now)
            digest = hashlib.blake2b(body, digest_size=16).digest()
            _log(tx, path, RowsWritten(first, batch.num_rows, not append, digest), now)
            _touch(tx, node.run_uid, now)

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

    def write_block(self, path: tuple[str, ...], block: tuple[int, ...], body: bytes) -> None:
        """Fill one block of an array.

        Raises
        ------
        InvalidRequest
        """
        node, structure = self._zarr(path)
        self._arrays.write_block(str(node.id), structure, block, body)
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
        with self._patching:
            node, structure = self._zarr(path)
            _require_few_chunks(structure, offset, shape)
            patched = self._arrays.patch(str(node.id), structure, offset, shape, body, extend).to_wire()
            self._log_array(node, StructureSet(patched, offset, shape))
        return patched

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
            if isinstance(operation, StructureSet):
                tx.set_structure(node.path, operation.structure)
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
            self._set_metadata(tx, node, metadata, specs, keep_revision)

    def replace_metadata(
        self, path: tuple[str, ...], metadata: Any, specs: tuple[Spec, ...] | None, *, keep_revision: bool
    ) -> None:
        """Replace metadata and specs; None keeps either.

        Raises
        ------
        InvalidRequest
        """
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            kept = node.metadata if metadata is None else metadata
            self._set_metadata(tx, node, kept, node.specs if specs is None else specs, keep_revision)

    def _set_metadata(
        self, tx: Transaction, node: Node, metadata: Any, specs: tuple[Spec, ...], keep_revision: bool
    ) -> None:
        if not isinstance(metadata, dict):
            raise InvalidRequest("metadata must be a JSON object")
        now = self._clock()
        tx.set_metadata(node.path, metadata=metadata, specs=specs, keep_revision=keep_revision)
        _log(tx, node.path, MetadataSet(metadata, specs), now)
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


def _without_plain_index(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Leave out the index without a name that stock clients send of every DataFrame, where the table has none.

    They announce such an index unless it merely counts the rows.
    """
    plain = [name for name in table.column_names if _PLAIN_INDEX.fullmatch(name) and name not in schema.names]
    return table.drop_columns(plain) if plain else table


def fit(table: pa.Table, schema: pa.Schema, path: tuple[str, ...]) -> pa.RecordBatch:
    """Return the rows of `table` as one batch of `schema`; columns it lacks are null.

    Raises
    ------
    InvalidRequest
        If it has a column that the table lacks, or one that does not convert without loss.
    """
    table = _without_plain_index(table, schema)
    unknown = [name for name in table.column_names if name not in schema.names]
    if unknown:
        raise InvalidRequest(
            f"/{'/'.join(path)} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}",
            columns=unknown,
        )
    if len(set(table.column_names)) < len(table.column_names):
        raise InvalidRequest(f"the rows sent for /{'/'.join(path)} have two columns of one name")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type).combine_chunks())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidRequest(
                f"column {field.name} of /{'/'.join(path)} is {field.type}; the rows sent hold "
                f"{column.type} that does not convert: {error}",
                column=field.name,
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


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
    if not is_readable(wanted.mimetype) and wanted.mimetype != OCTETS:
        raise _unknown_mimetype(wanted.mimetype)
    _require_files(wanted)


def _require_files(source: DataSource) -> None:
    """Refuse what is no file by its name alone; nothing is looked for, and nothing fetched."""
    for asset in source.assets:
        candidate_paths(asset.data_uri)


def _has_files(sources: list[DataSource]) -> bool:
    return any(source.management is Management.EXTERNAL and source.assets for source in sources)


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


def _touch(tx: Transaction, run_uid: str | None, now: float, *, closed: bool = False) -> None:
    """Note that a run's writer was heard of."""
    run = tx.run(run_uid) if run_uid is not None else None
    if run is None:
        return
    run = msgspec.structs.replace(run, last_received=now)
    if closed and (run.open or run.closed is not None):
        # A late stop document wins over somebody's word that the run was interrupted.
        run = msgspec.structs.replace(run, open=False, closed=None, verdict="complete")
    tx.save_run(run)
