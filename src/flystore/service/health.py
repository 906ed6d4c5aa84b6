"""Whether a service can do its work now, in words that anybody may read."""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from flystore.catalog import Catalog
from flystore.disk import Trust
from flystore.model.errors import FlystoreError
from flystore.storage import BucketKeep, Keep

READY = "ready"
READ_ONLY = "read-only"
NOT_READY = "not-ready"

FRESH_S = 1.0
"""For so long an answer holds: who asks without a key must not make work."""

BUCKET_FRESH_S = 10.0
"""For so long, what was found of a bucket: each look is a request that somebody pays for."""

_BLOCK = bytes(4096)


class Health(msgspec.Struct, frozen=True):
    """How a service is.

    Attributes
    ----------
    status : str
        ``ready``; ``read-only``: reads go on, a restart is needed; ``not-ready``: look at the reason and the log.
    reason : str
        A sentence without names of places; empty if all is well.
    """

    status: str
    reason: str = ""


class Readiness:
    """Asks the catalogue and the storage whether they work."""

    def __init__(self, catalog: Catalog, keep: Keep, trust: Trust, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._keep = keep
        self._bucket_looked = -BUCKET_FRESH_S
        self._bucket_lost = False
        self._trust = trust
        self._clock = clock
        self._last: tuple[float, Health] | None = None

    def look(self) -> Health:
        """Return how the service is, as of the last second; it may wait for the database and the disk."""
        now = self._clock()
        if self._last is not None and now - self._last[0] < FRESH_S and self._trust.lost is None:
            return self._last[1]
        found = self._look()
        self._last = now, found
        return found

    def _look(self) -> Health:
        if self._trust.lost is not None:
            return Health(READ_ONLY, "its disk failed a write, so nothing is stored until it is started anew")
        try:
            with self._catalog.read() as snapshot:
                snapshot.last_position()
        except Exception:  # noqa: BLE001  whatever the database says, it is not for everybody
            return Health(NOT_READY, "the catalogue does not answer")
        if isinstance(self._keep, BucketKeep):
            return self._look_at_bucket(self._keep)
        try:
            _write_a_block(self._keep.directory)
        except OSError:
            return Health(NOT_READY, "the storage cannot be written")
        return Health(READY)

    def _look_at_bucket(self, keep: BucketKeep) -> Health:
        now = self._clock()
        if self._bucket_lost or now - self._bucket_looked >= BUCKET_FRESH_S:
            try:
                keep.look()
                self._bucket_lost = False
            except FlystoreError:
                self._bucket_lost = True
            self._bucket_looked = self._clock()
        if self._bucket_lost:
            return Health(NOT_READY, "the bucket that keeps the arrays does not answer")
        return Health(READY)


def _write_a_block(place: Path) -> None:
    path = place / f".writing-{secrets.token_hex(4)}"
    try:
        with open(path, "xb", buffering=0) as file:
            if file.write(_BLOCK) != len(_BLOCK):
                raise OSError("the disk is full")
    finally:
        with suppress(OSError):
            os.unlink(path)
