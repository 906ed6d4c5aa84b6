"""Files that others wrote: which can be registered, and what more is known of those that are."""

import msgspec

from flystore.model.errors import InvalidRequest, NotFound, Unsupported
from flystore.model.structures import DataSource, Family, Management
from flystore.readers import is_readable
from flystore.storage import candidate_paths

from .changing import Changing, log_operation, touch
from .operations import DataSourcePut
from .table_files import file_kind

OCTETS = "application/octet-stream"


class Registering(Changing):
    """Keeps what is known of files up to date."""

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
                log_operation(tx, path, DataSourcePut(more, True), now)
            touch(tx, node.run_uid, now)
        self._prober.enqueue([node.id] if has_files([merged]) else [])


def unknown_mimetype(mimetype: str) -> Unsupported:
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
    require_known(wanted)
    require_files(wanted)


def require_known(source: DataSource) -> None:
    readable = file_kind(source.mimetype) if source.family is Family.TABLE else is_readable(source.mimetype)
    if not readable and source.mimetype != OCTETS:
        raise unknown_mimetype(source.mimetype)


def require_files(source: DataSource) -> None:
    """Refuse what is no file by its name alone; nothing is looked for, and nothing fetched."""
    for asset in source.assets:
        candidate_paths(asset.data_uri)


def has_files(sources: list[DataSource]) -> bool:
    return any(
        source.management is Management.EXTERNAL and source.assets and source.family is Family.ARRAY
        for source in sources
    )
