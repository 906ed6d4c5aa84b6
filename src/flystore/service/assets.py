"""Assets: the files behind a node as they are, byte by byte.

What may be had is what the node's data source names, below the read roots or in the directory that this service keeps
for the node. An asset is asked for by its id and belongs to one node.
"""

from collections import OrderedDict
from pathlib import PurePosixPath
from threading import Lock

from flystore.model.errors import InvalidRequest, MissingAsset, NotFound, TooLarge, Unreadable, Unsupported
from flystore.model.structures import KEPT_IN_FILES, Asset, DataSource, Family, Management
from flystore.storage import ArrayStore, BucketKeep, OpenedFile, Roots, candidate_paths, reserve, uri_of_path

from .browse import Browse
from .entries import Entry, Place

MOST_FILES = 1 << 20
"""Files in one directory asset, at any depth."""

_NAME_BYTES = 400
_REMEMBERED = 8


class Assets:
    """Opens and lists the files behind nodes."""

    def __init__(self, browse: Browse, store: ArrayStore, roots: Roots) -> None:
        self._browse = browse
        self._store = store
        self._roots = roots
        self._guard = Lock()
        self._recent: OrderedDict[tuple[int, int], dict[int | None, Asset]] = OrderedDict()

    def open(self, path: tuple[str, ...], asset_id: int, relative: str | None = None) -> tuple[OpenedFile, str]:
        """Open a file behind a node; return it, for the caller to close, and its name.

        Parameters
        ----------
        relative : str, optional
            Where in a directory asset.

        Raises
        ------
        NotFound
            If there is no such node, the node has no such asset, or a directory no such file.
        InvalidRequest
            If `relative` is missing, not wanted, or no path below the directory; if the asset is no file.
        Unsupported
            If the node is not of a kind that has files.
        OutsideRoots, MissingAsset, Unreadable
            If the file may not or cannot be read.
        """
        node_id, source, asset = self._found(path, asset_id)
        keep = self._store.keep
        in_bucket = _is_kept(source) and isinstance(keep, BucketKeep)
        uri, roots = self._place(node_id, source, asset) if not in_bucket else ("", self._roots)
        if not asset.is_directory:
            if relative is not None:
                raise InvalidRequest("This asset is a file; it has no relative_path.", status=400)
            return roots.open(uri), _name_in(uri)
        if relative is None:
            raise InvalidRequest(
                "This asset is a directory. Say which file by relative_path, as its manifest lists them.", status=400
            )
        if _is_kept(source) and _is_ours(relative):
            raise NotFound(f"there is no file {relative[:200]!r} in this asset", path=list(path))
        try:
            if in_bucket:
                assert isinstance(keep, BucketKeep)
                return keep.opened(str(node_id), relative), PurePosixPath(relative).name
            return roots.open_below(uri, relative), PurePosixPath(relative).name
        except MissingAsset as error:
            raise NotFound(f"there is no file {relative[:200]!r} in this asset", path=list(path)) from error
        except InvalidRequest as error:
            raise InvalidRequest(error.message, status=400) from error

    def manifest(self, path: tuple[str, ...], asset_id: int) -> list[str]:
        """Return the files of a directory asset: paths relative to it, with ``/``, in order.

        Raises
        ------
        InvalidRequest
            If the asset is a file.
        TooLarge
            If there are more than `MOST_FILES`.
        NotFound, Unsupported, OutsideRoots, MissingAsset, Unreadable
            As `open` does.
        """
        node_id, source, asset = self._found(path, asset_id)
        if not asset.is_directory:
            raise InvalidRequest("This asset is a file; only directories have a manifest.", status=400)
        if _is_kept(source) and isinstance(self._store.keep, BucketKeep):
            uri = self._store.keep.uri(str(node_id))
            names = self._in_bucket(str(node_id), uri)
        else:
            uri, roots = self._place(node_id, source, asset)
            names = roots.files_below(uri, MOST_FILES)
        reserve(_NAME_BYTES * len(names), f"the manifest of /{'/'.join(path)}")
        for name in names:
            if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
                raise Unreadable(f"{uri} holds a file whose name is no text: {name!r}", uri=uri)
        return [name for name in names if not _is_ours(name)] if _is_kept(source) else names

    def _in_bucket(self, key: str, uri: str) -> list[str]:
        names = self._store.keep.folder(key).names()
        if len(names) > MOST_FILES:
            raise TooLarge(f"{uri} has more than {MOST_FILES} files", limit=MOST_FILES)
        return sorted(names)

    def _found(self, path: tuple[str, ...], asset_id: int) -> tuple[int, DataSource, Asset]:
        with self._browse.moment() as moment:
            entry = self._browse.find(path, moment)
            node = entry.node
            if isinstance(entry, Place) or node is None or entry.column is not None or _is_own_container(entry):
                raise Unsupported("This node does not support downloading assets.", path=list(path), status=405)
            key = (node.id, node.revision)
            # The files of a long scan follow from its frame map; not once more for each that is asked for.
            known = self._recent.get(key) if node.external is not None else None
            source = moment.data_source(node.id) if known is not None else None
            if source is None:
                source = next(iter(self._browse.data_sources(entry, moment)), None)
        if source is None:
            raise Unsupported("This node does not support downloading assets.", path=list(path), status=405)
        if known is None:
            known = {asset.id: asset for asset in source.assets}
            if node.external is not None:
                self._remember(key, known)
        if asset_id not in known:
            raise NotFound(
                f"This node exists but it does not have an Asset with id {asset_id}", path=list(path), id=asset_id
            )
        return node.id, source, known[asset_id]

    def _remember(self, key: tuple[int, int], files: dict[int | None, Asset]) -> None:
        with self._guard:
            self._recent[key] = files
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)

    def _place(self, node_id: int, source: DataSource, asset: Asset) -> tuple[str, Roots]:
        """Return where an asset lies, and the roots that it must not leave."""
        if _is_kept(source):
            # Not where it was when it was made: a store can be moved, or restored elsewhere.
            directory = self._store.directory.resolve() / str(node_id)
            return uri_of_path(str(directory)), Roots([directory])
        try:
            candidate_paths(asset.data_uri)
        except Unsupported as error:
            raise Unsupported(error.message, status=400) from error
        return asset.data_uri, self._roots


def _is_own_container(entry: Entry) -> bool:
    """Return whether an entry is a container that stands for no file."""
    return entry.family is Family.CONTAINER and entry.file is None


def _is_kept(source: DataSource) -> bool:
    return source.mimetype in KEPT_IN_FILES and source.management is not Management.EXTERNAL


def _is_ours(relative: str) -> bool:
    """Return whether a file of a directory that we keep is not data: our lists, and what is being written."""
    return PurePosixPath(relative).name.startswith(".")


def _name_in(uri: str) -> str:
    """Return the last part of the path that a URI names, percent-decoded where it is encoded."""
    return candidate_paths(uri)[-1].replace("\\", "/").rstrip("/").rpartition("/")[2]
