"""What a look at a store says: kind by kind, what is as it was stored, what is not, and what nobody can tell."""

import logging
from collections.abc import Callable

import msgspec

from flystore.model.errors import FlystoreError

log = logging.getLogger("flystore.service")


class Finding(msgspec.Struct, frozen=True):
    """Something about one place.

    Attributes
    ----------
    where : str
        The place, in words.
    why : str
        What there is to say, in words.
    """

    where: str
    why: str


class Check(msgspec.Struct):
    """What was found of one kind of thing.

    Attributes
    ----------
    what : str
        ``pages``, ``log``, ``rows``, ``arrays``, ``index``, ``files`` or ``trees``.
    checked : int
        Things that are as they were stored.
    damaged, unverified : list of Finding
        Things that are not, and things of which nobody can tell.
    """

    what: str
    checked: int = 0
    damaged: list[Finding] = []
    unverified: list[Finding] = []

    def bad(self, where: str, why: object) -> None:
        self.damaged.append(Finding(where, _sentence(why)))

    def unknown(self, where: str, why: str) -> None:
        self.unverified.append(Finding(where, why))


def _sentence(why: object) -> str:
    if isinstance(why, FlystoreError):
        return why.message
    return repr(why) if isinstance(why, BaseException) else str(why)


class Verified(msgspec.Struct, frozen=True):
    """What verifying a store found, kind by kind."""

    checks: list[Check]

    @property
    def damaged(self) -> list[Finding]:
        """All that is wrong; empty if all is well."""
        return [finding for check in self.checks for finding in check.damaged]


def checked(what: str, step: Callable[[Check], None]) -> Check:
    """Return what a step found; what ends it early is damage too, since a damaged page may raise anything."""
    check = Check(what)
    try:
        step(check)
    except Exception as error:  # see above
        log.debug("verifying %s ended early", what, exc_info=True)
        check.bad(f"the catalogue, looking at {what}", error)
    return check
