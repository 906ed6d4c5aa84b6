"""Making nodes: with a place for data that this service will keep, or for files that others wrote."""

import hashlib

import msgspec

from flystore.catalog import Node, Run, Transaction
from flystore.model.errors import Conflict, InvalidRequest, NotFound
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
    TableStructure,
)

from .changing import Changing, log_operation, require_writable, touch
from .entries import Entry
from .operations import Created
from .registering import has_files, require_files, require_known, unknown_mimetype
from .requests import NewNode, seconds_of

_PARTS = {
    Family.TABLE: PARQUET_MIMETYPE,
    Family.AWKWARD: AWKWARD_MIMETYPE,
    Family.RAGGED: RAGGED_MIMETYPE,
    Family.SPARSE: SPARSE_MIMETYPE,
}


class Making(Changing):
    """Makes nodes."""

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
            log_operation(tx, path, made, now)
            if run_uid == new.key and len(path) == 1:
                tx.save_run(_protocol_run(new, now))
            elif run_uid is not None:
                touch(tx, run_uid, now)
        self._prober.enqueue([node.id] if has_files(sources) else [])
        return self._browse.entry(path), sources

    def _parent_run(self, tx: Transaction, parent: tuple[str, ...], path: tuple[str, ...], new: NewNode) -> str | None:
        """Return the uid of the run that the new node will belong to."""
        if not parent:
            return new.key if any(spec.name == BLUESKY_RUN.name for spec in new.specs) else None
        node = tx.node(parent)
        if node is None:
            raise NotFound(f"No such entry: {list(parent)}", path=list(parent))
        require_writable(node)
        if node.family is not Family.CONTAINER:
            raise Conflict(f"/{'/'.join(parent)} is of family {node.family} and holds no children")
        if node.structure is not None and tx.data_source(node.id) is not None:
            raise Conflict(f"/{'/'.join(parent)} stands for a file; its children are what is in the file")
        return node.run_uid

    def _kept(self, node: Node, source: DataSource) -> DataSource:
        """Return the data source as it will be stored, with a place for data that we keep."""
        if source.management is Management.EXTERNAL or source.assets:
            require_known(source)
            require_files(source)
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
            uri = self._arrays.keep.uri(key)
            asset = Asset(uri, is_directory=True, parameter="data_uri", num=None)
            return msgspec.structs.replace(source, mimetype=ZARR_MIMETYPE, assets=(asset,))
        default = _PARTS.get(source.family)
        if default is not None and source.mimetype in ("", default):
            key = str(node.id)
            self._parts.create(key)
            uri = self._parts.keep.uri(key)
            asset = Asset(uri, is_directory=True, parameter="data_uri", num=None)
            return msgspec.structs.replace(source, mimetype=default, assets=(asset,))
        raise unknown_mimetype(source.mimetype or f"(default for {source.family})")


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
