"""Releases of the stock client: one that is too old is told so, and older ones are answered in the words they know."""

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from starlette.types import Scope

from flystore.model.errors import InvalidRequest

OLDEST = "0.1.0a104"

WORDS = "flystore.words"
"""Key in a request's scope of the `Words` that its client knows; absent where it knows all."""

_CLIENT = b"python-tiled/"
_RECENT = re.compile(rb"0\.2\.(?:19|[2-9][0-9])|0\.[3-9]\.[0-9]{1,3}")
"""Releases that need no closer look; on all others the library is asked, whose import takes its time."""

_MOST_LETTERS = 100
_PERSONS = ("user:", "service:")

log = logging.getLogger("flystore.http")


class Words(msgspec.Struct, frozen=True):
    """What releases of the client stumble over, or miss.

    Attributes
    ----------
    blob : bool
        Tags are wanted as ``access_blob`` (before 0.2.19).
    size : bool
        Sizes of assets are known (from 0.2.13).
    properties : bool
        Properties of data sources are known (from 0.2.4).
    """

    blob: bool
    size: bool
    properties: bool

    def attributes(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes of a node, or an answer to a change of one, in these words."""
        found = dict(found)
        if self.blob and "access_tags" in found:
            found["access_blob"] = _blob(found.pop("access_tags"))
        if found.get("data_sources") is not None:
            found["data_sources"] = [self._source(source) for source in found["data_sources"]]
        return found

    def _source(self, source: dict[str, Any]) -> dict[str, Any]:
        source = {key: value for key, value in source.items() if self.properties or key != "properties"}
        source["assets"] = [
            {key: value for key, value in asset.items() if self.size or key != "size"} for asset in source["assets"]
        ]
        return source


def _blob(tags: Sequence[str] | None) -> dict[str, Any] | None:
    if tags is None:
        return None
    for tag in sorted(tags):
        for person in _PERSONS:
            if tag.startswith(person):
                return {"user": tag.removeprefix(person)}
    return {"tags": sorted(tags)}


def told_tags(content: dict[str, Any]) -> Any:
    """Return tags, or a patch of them, of a body; older clients send them as ``access_blob``. None: none are told."""
    told, blob = content.get("access_tags"), content.get("access_blob")
    if told is not None or not blob:
        return told
    if isinstance(blob, dict) and blob.keys() == {"tags"}:
        return blob["tags"]
    if isinstance(blob, list) and all(isinstance(step, dict) and _of_tags(step.get("path")) for step in blob):
        return [{**step, "path": step["path"].removeprefix("/tags")} for step in blob]
    raise InvalidRequest("access_blob must be {'tags': [...]}, or a patch of it")


def _of_tags(path: Any) -> bool:
    return isinstance(path, str) and (path == "/tags" or path.startswith("/tags/"))


def require_recent(scope: Scope) -> None:
    """Let a request pass unless it says that it comes from a stock client older than `OLDEST`; note its words.

    Versions that make no sense pass, and so do those between releases: who works on the client knows what it can.

    Raises
    ------
    InvalidRequest
    """
    for name, value in scope["headers"]:
        if name == b"user-agent":
            if value.startswith(_CLIENT):
                told = value[len(_CLIENT) :]
                if not _RECENT.fullmatch(told):
                    words = _words_of(told[: _MOST_LETTERS + 1])
                    if isinstance(words, str):
                        raise _refused(words)
                    if words is not None:
                        scope[WORDS] = words
            return


@lru_cache(maxsize=256)
def _words_of(told: bytes) -> Words | str | None:
    """Return what a release does not know; None if it knows all; a release that is too old as it should be written."""
    from packaging.version import InvalidVersion, Version

    text = told.decode("latin-1")
    try:
        if len(text) > _MOST_LETTERS:
            raise InvalidVersion(text)
        found = Version(text)
    except InvalidVersion:
        log.warning("a Tiled client reports version %r, which is no version", text)
        return None
    if found < Version(OLDEST) and not found.is_devrelease:
        return str(found)
    blob = Version(found.base_version) < Version("0.2.19")
    size, properties = found >= Version("0.2.13"), found >= Version("0.2.4")
    return None if size and properties and not blob else Words(blob, size, properties)


def _refused(version: str) -> InvalidRequest:
    return InvalidRequest(
        f"Python Tiled client reports version {version}. Version {OLDEST} or higher is needed to communicate with "
        "this Tiled server.",
        status=400,
    )
