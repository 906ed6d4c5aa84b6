"""Backup and restore: a store copied while others write to it, whole or not at all.

A backup is a directory::

    manifest.json   what is in it: files, sizes, SHA-256, the catalogue's last position, the time
    store/          the catalogue as one file, and the arrays: what `flystore serve` keeps

It is made under another name and gets its own by a rename, once all of it is durable, so half a backup is never
taken for one. The catalogue is copied first, at one moment; bytes of arrays are durable before the catalogue names
them, so they are there when they are copied. An array that was deleted in between would be missing: then the
catalogue is copied again. An array that was written to in between may hold newer values than the catalogue's moment.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex

import msgspec

from flystore.catalog import SCHEMA, Catalog, copy_catalog, make_one_file, version_of
from flystore.disk import failpoints, make_directory, replace_file, sync_directory
from flystore.model.errors import Damaged, DiskFull, Misconfigured, Unavailable
from flystore.model.structures import KEPT_IN_FILES, Management

ARRAYS_DIRECTORY = "arrays"
CATALOG_FILE = "catalog.sqlite"
CATALOG_AT_FILE = "catalog"
"""In the directory of a store whose catalogue is in PostgreSQL: which store, and where that was."""

MANIFEST = "manifest.json"
STORAGE_FILE = "storage"
"""In the directory of a store that keeps its arrays in a bucket: the address."""

STORE = "store"

FORMAT = 1
"""Of the manifest; a newer one is refused."""

_PIECE = 1 << 20
_PARTIAL = ".partial-"


def storage_of(directory: Path) -> str | None:
    """Return in which bucket the store in a directory keeps its arrays; None if in the directory."""
    try:
        return (directory / STORAGE_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a backup: its path below ``store/``, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds.

    Attributes
    ----------
    flystore : str
        Version of the program that made it.
    schema : int
        Of the catalogue.
    position : int
        Last position of the log that it holds; 0: nothing was stored yet.
    runs : int
        Runs that were ever begun, deleted ones too.
    started, finished : float
        Unix seconds. The catalogue is as it was between the two.
    missing : list of str
        Arrays that the catalogue named and that were not there: the store itself had lost them.
    sha256 : str
        Of all the rest, in hex.
    """

    format: int
    flystore: str
    schema: int
    position: int
    runs: int
    started: float
    finished: float
    files: list[StoredFile]
    missing: list[str] = []
    sha256: str = ""

    def summed(self) -> "Manifest":
        """Return it with its own checksum."""
        blank = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(self, sha256=hashlib.sha256(msgspec.json.encode(blank)).hexdigest())

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


def back_up(directory: Path, target: Path, *, clock: Callable[[], float] = time.time) -> Manifest:
    """Copy the store in `directory` into `target`, a directory that is made; services that write go on.

    Raises
    ------
    Misconfigured
        If there is no store, or `target` exists already, lies inside the store, or cannot be made.
    Damaged
        If the catalogue is so damaged that it cannot be copied.
    DiskFull
        If the disk of `target` is full; nothing stays of the backup.
    """
    directory, target = Path(directory), Path(target).absolute()
    if not (directory / CATALOG_FILE).is_file():
        raise Misconfigured(f"there is no store in {directory}; name the directory that `flystore serve` was given")
    storage = storage_of(directory)
    if storage is not None:
        raise Misconfigured(
            f"the store {directory} keeps its arrays in {storage}, which a backup does not hold; end what writes to it "
            "and copy it to a directory (flystore copy), and let the bucket keep versions"
        )
    _require_new(target, directory)
    with _making(target) as partial:
        started = clock()
        failpoints.reach("backup.before_copy")
        copied = _copy_store(directory, partial / STORE)
        manifest = Manifest(
            format=FORMAT,
            flystore=version("flystore"),
            schema=copied.facts.schema,
            position=copied.facts.position,
            runs=copied.facts.runs,
            started=started,
            finished=clock(),
            files=copied.files,
            missing=copied.missing,
        ).summed()
        failpoints.reach("backup.before_manifest")
        replace_file(partial / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        failpoints.reach("backup.after_manifest")
    return manifest


def verify_backup(backup: Path) -> tuple[Manifest, list[str]]:
    """Return the manifest of a backup, and what is wrong with its files, in sentences; none if all is well.

    Raises
    ------
    Misconfigured
        If there is no backup, or a newer flystore made it.
    Damaged
        If the manifest itself is not what was written.
    """
    manifest = read_manifest(backup)
    store = Path(backup) / STORE
    problems = [problem for file in manifest.files if (problem := _problem_of(store / file.path, file)) is not None]
    known = {file.path for file in manifest.files}
    extra = sorted(path for path in _files_below(store) if path not in known)
    return manifest, [*problems, *(f"{path} does not belong to the backup" for path in extra)]


def restore(backup: Path, directory: Path) -> Manifest:
    """Make a store of a backup, in a directory that is empty or not there; all of it is checked first.

    Raises
    ------
    Misconfigured
        If there is no backup, a newer flystore made it, or `directory` is not empty.
    Damaged
        If a file of the backup is not what was written; nothing is restored.
    DiskFull
    """
    backup, directory = Path(backup), Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Misconfigured(f"{directory} is not empty; restore into a directory of its own and then put it in place")
    manifest, problems = verify_backup(backup)
    if problems:
        raise Damaged(
            f"the backup {backup} is damaged and nothing was restored: {problems[0]}"
            + (f", and {len(problems) - 1} more" if len(problems) > 1 else ""),
            problems=problems,
        )
    with _making(directory) as partial:
        make_directory(partial / ARRAYS_DIRECTORY)
        for file in manifest.files:
            source = backup / STORE / file.path
            if not source.exists() or _copy_file(source, partial, file.path) != file:
                raise Damaged(f"{file.path} of the backup {backup} changed while it was restored", path=file.path)
        _sync_directories(partial)
        failpoints.reach("restore.before_rename")
    return manifest


def read_manifest(backup: Path) -> Manifest:
    """Return what a backup says it holds; raises as `verify_backup` does."""
    path = Path(backup) / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Misconfigured(f"{backup} is not a finished backup: it has no {MANIFEST}", path=str(backup)) from error
    try:
        described = msgspec.json.decode(content)
        if isinstance(described, dict) and isinstance(described.get("format"), int) and described["format"] > FORMAT:
            raise Misconfigured(f"the backup {backup} was made by a newer flystore; use that one to restore it")
        manifest = msgspec.convert(described, Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is not what was written: {error}", path=str(path)) from error
    if manifest.summed() != manifest:
        raise Damaged(f"{path} fails its own checksum", path=str(path))
    return manifest


def is_backup(directory: Path) -> bool:
    """Return whether a directory holds a backup, whole or damaged."""
    return (Path(directory) / MANIFEST).exists()


# --------------------------------------------------------------------------- making a directory whole or not at all


@contextmanager
def _making(target: Path) -> Iterator[Path]:
    """Give a directory beside `target` to fill; it gets its name at the end, or is removed after an exception."""
    partial = target.parent / f"{_PARTIAL}{target.name}-{token_hex(4)}"
    try:
        make_directory(partial)
    except OSError as error:
        raise Misconfigured(f"{target.parent} cannot be written ({error.strerror}); choose another place") from error
    try:
        yield partial
        sync_directory(partial)
        partial.rename(target)
        sync_directory(target.parent)
        failpoints.reach("backup.after_rename")
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise _in_words(error, target) from error
        raise


def _in_words(error: OSError, target: Path) -> DiskFull | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"the disk of {target} is full; nothing was left there. Free space, then try again.")
    return Unavailable(f"{target} cannot be written ({error.strerror}); nothing was left there")


def _require_new(target: Path, directory: Path) -> None:
    if target.exists():
        raise Misconfigured(f"{target} is there already; a backup makes a directory of its own")
    if directory.resolve() in (target.resolve(), *target.resolve().parents):
        raise Misconfigured(f"{target} is inside the store {directory}; back up to another place, better another disk")


# --------------------------------------------------------------------------- copying


class _Facts(msgspec.Struct, frozen=True):
    """What a copied catalogue says of itself; `arrays` are the keys of those that it names."""

    schema: int
    position: int
    runs: int
    arrays: set[str]


class _Copied(msgspec.Struct, frozen=True):
    facts: _Facts
    files: list[StoredFile]
    missing: list[str]


def _copy_store(directory: Path, target: Path) -> _Copied:
    """Copy catalogue and arrays so that all that the catalogue names is there."""
    make_directory(target)
    catalogue = target / CATALOG_FILE
    copied: dict[str, tuple[_Look, list[StoredFile]]] = {}
    gone: set[str] = set()
    while True:
        catalogue.unlink(missing_ok=True)
        copy_catalog(directory / CATALOG_FILE, catalogue)
        failpoints.reach("backup.after_catalog")
        facts = _facts_of(catalogue, target.parent)
        for key in sorted(facts.arrays):
            source = directory / ARRAYS_DIRECTORY / key
            look = _look_at(source)
            if key in copied and copied[key][0] == look:
                continue
            shutil.rmtree(target / ARRAYS_DIRECTORY / key, ignore_errors=True)
            copied.pop(key, None)
            files = _copy_array(source, target, f"{ARRAYS_DIRECTORY}/{key}")
            if files is not None:
                copied[key] = look, files
        before, gone = gone, facts.arrays - set(copied)
        # What is missing was deleted since the catalogue was copied: a newer copy does not name it. What that one
        # names as well was not there in the first place.
        if gone <= before:
            break
    for key in set(copied) - facts.arrays:
        shutil.rmtree(target / ARRAYS_DIRECTORY / key)
    with catalogue.open("rb") as file:
        os.fsync(file.fileno())
    _sync_directories(target)
    files = [StoredFile(CATALOG_FILE, catalogue.stat().st_size, _sha256(catalogue))]
    for key in sorted(facts.arrays - gone):
        files += copied[key][1]
    return _Copied(facts, files, sorted(f"{ARRAYS_DIRECTORY}/{key}" for key in gone))


_Look = list[tuple[str, int, int, int]]
"""Name, inode, size and modification time in ns of each file: what differs once an array was written to."""


def _look_at(directory: Path) -> _Look:
    look = []
    for name in _files_below(directory):
        try:
            status = (directory / name).stat()
        except FileNotFoundError:
            continue
        look.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return look


def _facts_of(copy: Path, scratch: Path) -> _Facts:
    schema = version_of(copy)
    opened = copy
    if schema != SCHEMA:  # an older catalogue is copied as it is, and read as a newer one
        opened = scratch / "migrated.sqlite"
        shutil.copyfile(copy, opened)
    try:
        with Catalog.open(f"sqlite:///{opened}", create=False) as catalog, catalog.read() as snapshot:
            named: set[str] = set()
            after = 0
            while ids := snapshot.node_ids(after):
                after = ids[-1]
                for node_id, source in snapshot.data_sources(ids).items():
                    if source.mimetype in KEPT_IN_FILES and source.management is not Management.EXTERNAL:
                        named.add(str(node_id))
            return _Facts(schema, snapshot.last_position(), snapshot.count_runs(), named)
    finally:
        if opened is not copy:
            for path in scratch.glob("migrated.sqlite*"):
                path.unlink()
        make_one_file(copy)


def _copy_array(source: Path, target: Path, relative: str) -> list[StoredFile] | None:
    """Copy the files of an array; None if it is deleted meanwhile."""
    try:
        if not source.is_dir():
            raise FileNotFoundError(source)
        make_directory(target / relative)
        # Lists come before the files that they name, and those are looked for after.
        lists = [name for name in _files_below(source) if name.startswith(".")]
        copied = [_copy_file(source / name, target, f"{relative}/{name}") for name in lists]
        others = [name for name in _files_below(source) if name not in lists]
        return copied + [_copy_file(source / name, target, f"{relative}/{name}") for name in others]
    except FileNotFoundError:
        shutil.rmtree(target / relative, ignore_errors=True)
        return None


def _copy_file(source: Path, target: Path, relative: str) -> StoredFile:
    """Copy a file durably; return what was copied."""
    failpoints.reach("backup.before_file")
    copy = target / relative
    make_directory(copy.parent)
    summed, size = hashlib.sha256(), 0
    with source.open("rb") as given, copy.open("xb") as taken:
        while piece := given.read(_PIECE):
            summed.update(piece)
            size += len(piece)
            taken.write(piece)
        taken.flush()
        os.fsync(taken.fileno())
    failpoints.reach("backup.after_file")
    return StoredFile(relative, size, summed.hexdigest())


def _files_below(directory: Path) -> Iterator[str]:
    """Yield the paths of files below a directory, relative to it; files that are being written are left out."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.name.startswith(".writing-"):
            yield path.relative_to(directory).as_posix()


def _sync_directories(top: Path) -> None:
    for path in top.rglob("*"):
        if path.is_dir():
            sync_directory(path)
    sync_directory(top)


def _problem_of(path: Path, file: StoredFile) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{file.path} has {size} bytes; {file.size} were written"
        return None if _sha256(path) == file.sha256 else f"{file.path} fails its checksum"
    except FileNotFoundError:
        return f"{file.path} is gone"
    except OSError as error:
        return f"{file.path} cannot be read: {error.strerror}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
