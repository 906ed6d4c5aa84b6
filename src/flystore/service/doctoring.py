"""What would keep a service from starting, or from keeping what it promises: looked at before it starts, or while it
runs. Nothing is made and nothing is changed, but for small files that are removed again.
"""

import os
import re
import resource
import stat
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flystore.catalog import examine_file, examine_server
from flystore.disk import Remark, examine_directory
from flystore.journal import network_filesystem
from flystore.model.errors import FlystoreError, Misconfigured
from flystore.readers import decodable_filters
from flystore.storage import Bucket

from .backup import CATALOG_FILE, storage_of
from .belonging import require_address
from .keeping import bucket_keep
from .limits import SPARE_DESCRIPTORS, Limits

LEAST_KEY = 16
"""Letters of a key that nobody guesses, if they are random."""

# fmt: off
_KNOWN_KEYS = frozenset({
    "secret", "password", "passwort", "changeme", "change-me", "default", "test", "testing", "admin", "apikey",
    "api_key", "api-key", "tiled", "flystore", "bluesky", "key", "none", "null", "example", "your-key-here",
})
# fmt: on
MAKE = "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"

_MOST_ENTRIES = 20_000
_MOST_SECONDS = 3.0
_SHIPPED = ("h5py", "numcodecs", "zarr", "tifffile", "pyarrow", "pillow")
_FIRST_YEAR_S = 1_700_000_000.0
_VARIABLE = re.compile(r"^\s*(?:export\s+)?FLYSTORE_API_KEY\s*=\s*(.*?)\s*$", re.MULTILINE)


def examine_store(directory: Path | None, catalog: str | None = None) -> Iterator[Remark]:
    """Look at where a service would keep its data.

    Parameters
    ----------
    catalog : str, optional
        Address of a PostgreSQL catalogue; None: a file in `directory`.
    """
    if directory is not None:
        directory = directory.expanduser()
        yield from examine_directory(directory, "store", "name another directory")
        kind = network_filesystem(directory)
        if kind is not None:
            if catalog is None:
                text = f"{directory} is on a network file system ({kind}), where SQLite loses data; name a local one, "
                yield Remark("store disk", "problem", f"{text}or keep the catalogue in PostgreSQL.")
            else:
                text = f"{directory} is on a network file system ({kind}); arrays are slower there than on local disk."
                yield Remark("store disk", "warning", text)
        if catalog is None:
            try:
                require_address(directory)
            except OSError:  # what is wrong with the directory was said above
                return
            except Misconfigured as error:
                yield Remark("database", "problem", f"{error.message}.")
                return
            yield from examine_file(directory / CATALOG_FILE)
    if catalog is not None:
        yield from examine_server(catalog)


def examine_storage(directory: Path | None, storage: str | None = None) -> Iterator[Remark]:
    """Look at the bucket that keeps the arrays, if one does: put, read and remove a small object.

    Parameters
    ----------
    storage : str, optional
        ``s3://bucket/prefix``; None: the one that the store in `directory` was given before.
    """
    try:
        known = None if directory is None else storage_of(directory.expanduser())
    except OSError:  # what is wrong with the directory was said of the store
        known = None
    if storage is None and known is None:
        return
    try:
        keep = bucket_keep(directory or Path(), str(storage or known))
        if known not in (None, keep.url):
            text = f"the store keeps its arrays in {known}, not in {keep.url}; give that address."
            yield Remark("storage", "problem", text)
        keep.examine()
    except FlystoreError as error:
        yield Remark("storage", "problem", f"{error.message}.")
        return
    if keep.conditional:
        yield Remark("storage", "ok", f"{keep.url} takes objects, gives them back, and knows conditions.")
    else:
        text = f"{keep.url} ignores the conditions If-None-Match and If-Match; let the services of one machine write, "
        yield Remark("storage", "warning", f"{text}or use a bucket that knows conditions.")


def examine_roots(roots: Sequence[Path | str], directory: Path | None = None) -> Iterator[Remark]:
    """Look at the directories and buckets whose files may be served."""
    if not roots:
        text = "no --read: files that detectors write cannot be served; name their directories, if there are any."
        yield Remark("roots", "warning", text)
    directories = [root.expanduser() for root in roots if isinstance(root, Path)]
    inside = [Path(os.path.realpath(root)) for root in directories]
    for root in directories:
        yield from _examine_root(root, inside, directory)
    for url in roots:
        if isinstance(url, str):
            yield _examine_bucket(url)


def _examine_bucket(url: str) -> Remark:
    try:
        Bucket(url).require_reachable()
    except FlystoreError as error:
        return Remark("roots", "problem", f"the read root {url} cannot be used: {error.message}.")
    return Remark("roots", "ok", f"{url} can be listed.")


def _examine_root(root: Path, inside: Sequence[Path], directory: Path | None) -> Iterator[Remark]:
    what = "roots"
    closed_to_us = (
        f"the read root {root} cannot be read by this user; add it to the group that owns it (or chmod o+rx)."
    )
    try:
        there = root.exists()
    except PermissionError:
        yield Remark(what, "problem", closed_to_us)
        return
    if not there:
        yield Remark(what, "problem", f"the read root {root} does not exist; mount it, make it, or leave it out.")
        return
    if not root.is_dir():
        yield Remark(what, "problem", f"the read root {root} is no directory; name the directory that it is in.")
        return
    if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
        yield Remark(what, "problem", closed_to_us)
        return
    if os.path.realpath(root) == "/":
        yield Remark(what, "warning", "the read root / lets the service serve every file that it can read; name less.")
        return
    if directory is not None and _is_below(Path(os.path.realpath(directory)), [Path(os.path.realpath(root))]):
        text = f"the read root {root} holds the store {directory} itself, whose catalogue could be read; name less."
        yield Remark(what, "warning", text)
    leading, closed, looked = _walk(root, inside)
    if leading:
        text = f"{len(leading)} symbolic links in {root} lead out of the roots and are refused, {leading[0]} for one; "
        yield Remark(what, "warning", f"{text}name where they lead with --read as well.")
    if closed:
        text = f"{len(closed)} of the first {looked} entries of {root} cannot be read by this user, {closed[0]} for one"
        yield Remark(what, "warning", f"{text}; change their group or mode.")
    if not leading and not closed:
        yield Remark(what, "ok", f"{root} can be read ({looked} entries looked at).")


def _walk(root: Path, inside: Sequence[Path]) -> tuple[list[Path], list[Path], int]:
    """Return links that lead out, what cannot be read, and how many entries were looked at; it ends after a while."""
    leading: list[Path] = []
    closed: list[Path] = []
    looked, until = 0, time.monotonic() + _MOST_SECONDS
    for place, directories, files in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        for name in [*directories, *files]:
            looked += 1
            path = Path(place, name)
            if path.is_symlink():
                if not _is_below(Path(os.path.realpath(path)), inside):
                    leading.append(path)
            elif name in files and not os.access(path, os.R_OK, effective_ids=True):
                closed.append(path)
            if looked >= _MOST_ENTRIES or time.monotonic() > until:
                return leading, closed, looked
    return leading, closed, looked


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path == root or root in path.parents for root in roots)


def examine_codecs() -> Iterator[Remark]:
    """Decode a sample with each filter of HDF5 that is known, and name the libraries."""
    missing = []
    for name in _SHIPPED:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        fix = "pip install --upgrade 'flystore[server]'"
        yield Remark("libraries", "problem", f"{', '.join(missing)} is not installed; {fix}.")
        return
    found = decodable_filters()
    broken = {name: why for name, why in found.items() if why is not None}
    for name, why in broken.items():
        text = f"HDF5 data compressed with {name} cannot be decoded here ({why}); install numcodecs and h5py anew."
        yield Remark("codecs", "problem", text)
    good = ", ".join(name for name in found if name not in broken)
    text = f"HDF5 filters that can be decoded: {good}; others (Blosc2, ZFP, JPEG …) are answered as unsupported."
    yield Remark("codecs", "ok", text)


def examine_clock() -> Iterator[Remark]:
    """Look at this machine's clock as far as it can be judged alone."""
    before, began = time.time(), time.monotonic()
    if before < _FIRST_YEAR_S:
        moment = time.strftime("%Y-%m-%d", time.gmtime(before))
        yield Remark(
            "clock", "problem", f"this machine believes it is {moment}; set its clock (timedatectl set-ntp true)."
        )
        return
    zone = os.environ.get("TZ", "").lstrip(":")
    if zone and "/" in zone and not zone.startswith("/") and not Path("/usr/share/zoneinfo", zone).exists():
        text = f"TZ={zone} is no time zone of this machine, so times in logs are UTC; correct it, or install tzdata."
        yield Remark("clock", "warning", text)
        return
    elapsed = time.monotonic() - began
    if not -1.0 < (time.time() - before) - elapsed < 1.0:
        yield Remark("clock", "warning", "the clock jumped just now; have it follow a time server smoothly (chrony).")
        return
    yield Remark("clock", "ok", f"it is {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(before))} here.")


def examine_key(key: str | None, file: Path | None = None) -> Iterator[Remark]:
    """Look at the API key, and at the file that sets it.

    Parameters
    ----------
    file : Path, optional
        With a line ``FLYSTORE_API_KEY=…``, as systemd's EnvironmentFile.
    """
    if file is not None:
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            found = _VARIABLE.findall(file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            fix = "make it, with mode 600"
            if isinstance(error, PermissionError):
                fix = "run this as its owner; systemd reads it as root before the service becomes its user"
            yield Remark("key", "problem", f"the key file {file} cannot be read ({why}); {fix}.")
            return
        if mode & 0o077:
            yield Remark("key", "problem", f"others may read the key file {file} (mode {mode:o}); chmod 600 {file}.")
        if not found:
            yield Remark("key", "problem", f"{file} sets no FLYSTORE_API_KEY; add a line FLYSTORE_API_KEY=….")
            return
        key = found[-1].strip("\"'")
    if key is None:
        text = "no key is given, so each start makes a new one and clients lose theirs; set FLYSTORE_API_KEY, and "
        yield Remark("key", "warning", f"{text}{MAKE}.")
        return
    if not key.isascii() or not key.isprintable() or " " in key or not key:
        yield Remark("key", "problem", f"the key is empty or has spaces or letters beyond ASCII; {MAKE}.")
    elif key.lower() in _KNOWN_KEYS or len(set(key)) < 6:
        yield Remark("key", "problem", f"the key is one that everybody tries first; {MAKE}.")
    elif len(key) < LEAST_KEY:
        yield Remark("key", "problem", f"the key has {len(key)} letters, fewer than {LEAST_KEY}; {MAKE}.")
    else:
        yield Remark("key", "ok", f"a key of {len(key)} letters is set.")


def examine_process(limits: Limits) -> Iterator[Remark]:
    """Look at what the system lets a process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # what a shell starts with is less, and the service raises it
    wanted = limits.connections + SPARE_DESCRIPTORS
    if hard not in (resource.RLIM_INFINITY, 0) and hard < wanted:
        fix = f"LimitNOFILE=65536 in the unit, or ulimit -n {wanted} as root"
        state = "problem" if hard < 256 else "warning"
        text = f"a process may have {hard} files open, fewer than {limits.connections} connections and their files need"
        yield Remark("open files", state, f"{text}; {fix}.")  # type: ignore[arg-type]
    else:
        yield Remark("open files", "ok", "a process may have as many files open as its connections need.")
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        text = f"files may not grow beyond {size / 1e9:,.3f} GB (RLIMIT_FSIZE); ulimit -f unlimited."
        yield Remark("file size", "problem" if size < 1 << 30 else "warning", text)


def examine_limits(texts: Sequence[str]) -> tuple[Limits, list[Remark]]:
    """Return the limits that an operator typed, or the usual ones with what is wrong."""
    try:
        return Limits.parse(texts), []
    except FlystoreError as error:
        return Limits(), [Remark("limits", "problem", f"{error.message}.")]
