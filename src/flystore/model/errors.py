"""Errors: a tree cut by what a handler would do, each with a `kind` that never changes.

FlystoreError
├── NotFound            (also KeyError)      ask for something else
│   └── MissingAsset                         a registered file is not where it was announced
├── InvalidRequest      (also ValueError)    change the request
│   ├── OutOfBounds     (also IndexError)    ask for what is there
│   ├── TooLarge                             ask for less, or in pieces
│   └── Unsupported                          ask in another form
├── Conflict                                 read again, then decide
│   ├── SequenceGap                          send from the expected ordinal
│   ├── ContentClash                         the ordinal is taken by another document
│   ├── StaleEpoch                           a newer writer took over; stop sending
│   ├── WrongToken                           the place is not in this store's feed; begin anew
│   └── MadeFromDocuments                    structures of a document-made run are not writable
├── NotPermitted                             log in, or ask someone
│   ├── Unauthenticated                      send a key, or another one
│   └── OutsideRoots                         the operator did not name this place
├── Unreadable                               the bytes are there but make no sense, or not yet
│   ├── Truncated                            the file ends before what was announced
│   ├── Changed                              the file is another one than was observed
│   ├── NoAccess                             let the service's user read the file
│   └── NotReady                             try again in a moment
├── Unavailable                              try again later
│   ├── DeadlineExceeded (also TimeoutError) wait longer, or look why
│   ├── DiskFull                             free space on the service's host
│   └── SyncFailed                           look at the disk, then restart the service
├── JournalFull         (also OSError)       free space on the acquisition host
├── Misconfigured                            the operator mends the start command
└── Damaged                                  stored bytes are wrong; tell the operator

Every error carries facts as keyword attributes; `facts` goes over the wire beside `kind` and the message.
"""

from typing import Any, ClassVar


class FlystoreError(Exception):
    """Anything flystore raises on purpose.

    Parameters
    ----------
    message
        What, where, which limit, and what to do next, for a person.
    **facts
        The same for a program; JSON-serialisable. Also readable as attributes.
    """

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, /, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        # Only called when ordinary lookup fails, so facts never hide a real attribute.
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return self.message  # KeyError would show the repr

    def __reduce__(self) -> Any:
        return (_restore, (type(self), self.message, self.facts))


def _restore(cls: type["FlystoreError"], message: str, facts: dict[str, Any]) -> "FlystoreError":
    return cls(message, **facts)


class NotFound(FlystoreError, KeyError):
    """There is no such run, node, column or asset, or the caller may not see it."""

    kind = "not-found"


class MissingAsset(NotFound):
    """A file that documents announced does not exist where the server looks for it."""

    kind = "missing-asset"


class InvalidRequest(FlystoreError, ValueError):
    """The request makes no sense; nothing was changed."""

    kind = "invalid-request"


class OutOfBounds(InvalidRequest, IndexError):
    """An index, slice or block lies outside the array."""

    kind = "out-of-bounds"


class TooLarge(InvalidRequest):
    """The request would cost more than the limit it names."""

    kind = "too-large"


class Unsupported(InvalidRequest):
    """The request is well formed but this node, format or file offers no such thing."""

    kind = "unsupported"


class Conflict(FlystoreError):
    """What is stored contradicts the request; read again, then decide."""

    kind = "conflict"


class SequenceGap(Conflict):
    """A batch starts after the next ordinal; `expected` says where to go on."""

    kind = "sequence-gap"


class ContentClash(Conflict):
    """A known ordinal arrives with a different document; `ordinal` names the first."""

    kind = "content-clash"


class StaleEpoch(Conflict):
    """A batch of an older epoch than the run's; another writer has taken over."""

    kind = "stale-epoch"


class WrongToken(Conflict):
    """A token names a place in the feed of another store, or one that this store does not have, or has no more."""

    kind = "wrong-token"


class MadeFromDocuments(Conflict):
    """Structures and data of a run worked out from its documents are not writable by protocol."""

    kind = "made-from-documents"


class NotPermitted(FlystoreError):
    """The caller is known and may not do this."""

    kind = "not-permitted"


class Unauthenticated(NotPermitted):
    """No key, or one that this service does not know."""

    kind = "unauthenticated"


class OutsideRoots(NotPermitted):
    """A file, link or virtual source leads outside the read roots that the operator named."""

    kind = "outside-roots"


class Unreadable(FlystoreError):
    """The file is there but cannot be read as announced; never the same as missing, never zeros."""

    kind = "unreadable"


class Truncated(Unreadable):
    """The file holds less than announced; carries `announced` and `found` counts."""

    kind = "truncated"


class Changed(Unreadable):
    """A file is not the one that was observed when its run ended; what it holds now is not served in its place."""

    kind = "changed"


class NoAccess(Unreadable):
    """The file is there, and the user that the service runs as may not read it."""

    kind = "no-access"


class NotReady(Unreadable):
    """The data is still being written; try again in a moment."""

    kind = "not-ready"


class Unavailable(FlystoreError):
    """The service cannot be reached or cannot answer now; nothing is known about the request."""

    kind = "unavailable"


class DeadlineExceeded(Unavailable, TimeoutError):
    """The wait ended before what was waited for happened."""

    kind = "deadline-exceeded"


class DiskFull(Unavailable):
    """The service's disk is full: nothing of the request was stored, reads go on; it mends itself with space."""

    kind = "disk-full"


class SyncFailed(Unavailable):
    """The service's disk failed a write, and nothing is stored until the service is restarted; reads go on."""

    kind = "sync-failed"


class JournalFull(FlystoreError, OSError):
    """The journal's disk is full; the one storage condition that may stop a plan."""

    kind = "journal-full"


class Misconfigured(FlystoreError):
    """The start command or a setting cannot work; says what to do."""

    kind = "misconfigured"


class Damaged(FlystoreError):
    """Stored bytes fail their checksum or their format; names the place."""

    kind = "damaged"


def _tree(cls: type[FlystoreError]) -> list[type[FlystoreError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


def error_of_kind(kind: str, message: str, facts: dict[str, Any] | None = None) -> FlystoreError:
    """Return the error that a service reported, as the same class it was raised with.

    An unknown `kind` (a newer service) gives a plain `FlystoreError`.
    """
    # Reversed: a class that inherits its kind must not stand for the one that has it.
    by_kind = {cls.kind: cls for cls in reversed(_tree(FlystoreError))}
    return by_kind.get(kind, FlystoreError)(message, **(facts or {}))
