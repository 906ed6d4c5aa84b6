"""File URIs and paths: what writers call a file, as paths to look for.

Writers in the field put raw paths after ``file://localhost``, spaces, ``#`` and ``%`` included; others
percent-encode as the standard asks. Which of the two a URI is cannot be told from its text, so both
readings are candidates, in this fixed order: the path as it stands, then the percent-decoded one.
Objects in a bucket are named ``s3://bucket/key``; the key, too, may be meant as it stands or encoded.
A query or fragment is never split off, because ``#`` and ``?`` are legal in file names.
"""

import re
from urllib.parse import quote, unquote_to_bytes

from flystore.model.errors import InvalidRequest, Unsupported

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")
_DRIVE = re.compile(r"[A-Za-z]:(?:[/\\]|$)")

MAX_URI = 8192
"""Longest URI in characters; Linux paths end at 4096 bytes, percent-encoding triples them at most."""


def is_windows(path: str) -> bool:
    r"""Return whether a path can only be meant for Windows: ``C:\data``, ``C:/data``, ``\\server\share``."""
    return bool(_DRIVE.match(path)) or path.startswith("\\\\")


def is_object(path: str) -> bool:
    """Return whether a URI or path names an object in a bucket."""
    return path[:5].lower() == "s3://"


def candidate_paths(uri: str) -> tuple[str, ...]:
    r"""Return the absolute paths that a file URI can mean, most literal first.

    Parameters
    ----------
    uri : str
        ``file://localhost/abs``, ``file:///abs``, ``file:/abs``, a bare absolute path, or a Windows path in
        any of these forms (``C:\data\x``, ``file:///C:/data/x``, ``file://localhost/C:/x``,
        ``\\server\share\x``, ``file://server/share/x``), or ``s3://bucket/key``.

    Returns
    -------
    tuple of str
        One or two paths. POSIX paths begin with ``/``; Windows paths with a drive or with ``\\``; objects are
        ``s3://bucket/key``.

    Raises
    ------
    Unsupported
        If the scheme is another than ``file`` and ``s3``.
    InvalidRequest
        If there is no absolute path in it, it holds a NUL, or it is longer than `MAX_URI`.
    """
    if len(uri) > MAX_URI:
        raise InvalidRequest(f"a file URI may have at most {MAX_URI} characters, this one has {len(uri)}")
    if "\0" in uri:
        raise InvalidRequest("a file URI cannot hold a NUL character")
    literal = _path_part(uri)
    # surrogateescape: a file name on disk is bytes and need not be UTF-8.
    decoded = unquote_to_bytes(literal.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
    if "\0" in decoded:
        raise InvalidRequest("a file URI cannot hold a NUL character, percent-encoded or not")
    return (literal,) if decoded == literal else (literal, decoded)


def _path_part(uri: str) -> str:
    if uri.startswith("/") or is_windows(uri):
        return uri
    if is_object(uri):
        if not uri[5:].partition("/")[0] or "/" not in uri[5:]:
            raise InvalidRequest(f"{_shown(uri)} names no object in a bucket (s3://bucket/key)")
        return "s3" + uri[2:]
    match = _SCHEME.match(uri)
    if match is None:
        raise InvalidRequest(f"{_shown(uri)} is not an absolute path and not a file URI")
    if match["scheme"].lower() != "file":
        raise Unsupported(
            f"{_shown(uri)} has the scheme {match['scheme']!r}; only files can be read (file://localhost/…), and "
            "objects in a bucket (s3://bucket/key)",
            scheme=match["scheme"],
        )
    rest = uri[match.end() :]
    if not rest.startswith("//"):
        return _absolute(rest, uri)
    host, slash, path = rest[2:].partition("/")
    if host.lower() in ("", "localhost"):
        return _absolute(slash + path, uri)
    if is_windows(rest[2:]):  # file://C:/data: malformed, and common
        return rest[2:]
    return "\\\\" + host + (slash + path).replace("/", "\\")


def _absolute(path: str, uri: str) -> str:
    stripped = path.lstrip("/")
    if is_windows(stripped):
        return stripped
    if not path.startswith("/"):
        raise InvalidRequest(f"{_shown(uri)} has no absolute path")
    return "/" + stripped


def _shown(uri: str) -> str:
    return repr(uri if len(uri) <= 200 else uri[:200] + "…")


def uri_of_path(path: str) -> str:
    """Return the percent-encoded ``file://localhost`` URI of an absolute POSIX path."""
    return "file://localhost" + quote(path.encode("utf-8", "surrogateescape"), safe="/")
