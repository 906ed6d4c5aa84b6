"""Whether syncs can be believed.

After a failed sync the system may have dropped the very pages that failed, and call the next sync a success. So the
first failure is final: nothing is acknowledged any more until the process starts anew.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flystore.model.errors import DiskFull, FlystoreError, SyncFailed, Unavailable

log = logging.getLogger("flystore.disk")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a full disk, a used-up quota and a file size limit say."""


class FailedSync(OSError):
    """A sync failed: nobody knows what of the file or directory reached the disk."""

    @classmethod
    def of(cls, error: OSError, what: str) -> "FailedSync":
        return cls(error.errno, error.strerror, what)


class Trust:
    """What all who write to one store share; lost with the first sync that fails, for the life of the process."""

    def __init__(self) -> None:
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why nothing is stored any more; None while all is well."""
        return self._lost

    def require(self) -> None:
        """Let pass who wants to write.

        Raises
        ------
        SyncFailed
            If trust was lost.
        """
        if self._lost is not None:
            raise self._error()

    def lose(self, why: str) -> SyncFailed:
        """Store nothing from now on; return what to raise. `why` says which file, and what the system said."""
        if self._lost is None:
            self._lost = why
            log.critical("%s", self._error())
        return self._error()

    def _error(self) -> SyncFailed:
        return SyncFailed(
            f"the service's disk failed a write ({self._lost}), and nothing is stored until the service is restarted. "
            "What was acknowledged is kept, reads go on. Look at the disk, then restart the service.",
            reason=self._lost,
        )

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Turn what the system says while files are written within into our errors.

        Parameters
        ----------
        what : str
            What is written, as the subject of a sentence.

        Raises
        ------
        SyncFailed
            If trust is lost, or is now: a sync failed, or the disk has errors.
        DiskFull
            If there is no room; goes away when there is.
        Unavailable
            If the system refuses for another reason (no permission, too many open files).
        """
        self.require()
        try:
            yield
        except FlystoreError:
            raise
        except OSError as error:
            if error.errno in FULL and not isinstance(error, FailedSync):
                raise DiskFull(f"{what} cannot be written: the disk is full; free space, then try again") from error
            if isinstance(error, FailedSync) or error.errno == errno.EIO:
                raise self.lose(f"{what}: {error.strerror or error}") from error
            raise Unavailable(f"{what} cannot be written: {error.strerror or error}; nothing was stored") from error
