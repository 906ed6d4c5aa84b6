"""What earlier writers left on this host: found, and taken over by one taker each."""

import logging
import socket
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from flystore.journal import Journal, identity, last_holder, network_filesystem, orphans, remove_spent
from flystore.model.errors import Conflict, FlystoreError

from ._target import is_local, same_target

logger = logging.getLogger("flystore.writer")


class LeftBehind:
    """The journals whose writers are gone; looked for as often as one likes.

    Parameters
    ----------
    target : str
        Only journals meant for the same service are taken.

    Attributes
    ----------
    elsewhere : tuple of str
        Targets of the journals that were meant for other services when last looked.
    """

    def __init__(self, target: str) -> None:
        self.elsewhere: tuple[str, ...] = ()
        self._target = target
        self._told: set[tuple[Path, str]] = set()

    def take(self, home: Path, *, stopping: Callable[[], bool]) -> Iterator[Journal]:
        """Yield each journal under `home` that is meant for the target, held.

        What turns out to hold nothing more is deleted on the way. One that cannot be read is reported to
        the log, once, and left as it is.

        Parameters
        ----------
        stopping : callable
            Asked before each journal whether to leave it to the next writer.
        """
        again: list[Path] = []
        for path in chain(self._meant_for_us(home), again):
            if stopping():
                return
            try:
                taken = Journal.take_over(path)
            except Conflict:
                # Another writer was first; or one only looked whether it is held, which holds it for a moment.
                if path not in again:
                    again.append(path)
                continue
            except (FlystoreError, OSError) as error:
                self._tell_once(logging.ERROR, path, f"the journal {path} cannot be taken over: {error}")
                continue
            for log in taken.logs:
                log.remove_if_done()
            if taken.logs or taken.unreadable:
                yield taken
            else:
                taken.close()

    def _meant_for_us(self, home: Path) -> list[Path]:
        ours, elsewhere = [], []
        # In a home directory that several hosts share, "localhost" means another service on each.
        shared = network_filesystem(home) is not None
        for path in self._left_behind(home):
            try:
                meant_for, holder = identity(path).target, last_holder(path)
            except (FlystoreError, OSError) as error:
                if path.exists():  # otherwise another writer finished with it just now
                    self._tell_once(logging.ERROR, path, f"the journal {path} cannot be taken over: {error}")
                continue
            foreign = shared and is_local(meant_for) and holder is not None and holder.host != socket.gethostname()
            if foreign:
                meant_for = f"{meant_for} on {holder.host}" if holder else meant_for
            elif same_target(meant_for, self._target):
                ours.append(path)
                continue
            elsewhere.append(meant_for)
            self._tell_once(
                logging.WARNING,
                path,
                f"{path} holds documents that an earlier writer meant for {meant_for}; a RunWriter for that "
                f"address sends them, or `flystore journal ship` does",
            )
        self.elsewhere = tuple(dict.fromkeys(elsewhere))
        return ours

    def _left_behind(self, home: Path) -> list[Path]:
        try:
            remove_spent(home)
            return orphans(home)
        except OSError as error:
            self._tell_once(logging.ERROR, home, f"the journals under {home} cannot be listed: {error}")
            return []

    def _tell_once(self, level: int, path: Path, text: str) -> None:
        if (path, text) not in self._told:
            self._told.add((path, text))
            logger.log(level, "%s", text)
