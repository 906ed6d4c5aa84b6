"""What earlier writers left on this host: found, and taken over by one taker each."""

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from flystore.journal import Journal, identity, orphans, remove_spent
from flystore.model.errors import Conflict, FlystoreError

logger = logging.getLogger("flystore.writer")


def take_left_behind(
    home: Path, target: str, *, elsewhere: Callable[[str], None], stopping: Callable[[], bool]
) -> Iterator[Journal]:
    """Yield each journal under `home` whose writer is gone and that is meant for `target`, held.

    What turns out to hold nothing more is deleted on the way. One that cannot be read is reported to
    the log and left as it is.

    Parameters
    ----------
    elsewhere : callable
        Told the target of each journal that is meant for another service.
    stopping : callable
        Asked before each journal whether to leave it to the next writer.
    """
    paths = [path for path in _left_behind(home) if _is_meant_for(path, target, elsewhere)]
    again: list[Path] = []
    for path in chain(paths, again):
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
            logger.error("the journal %s cannot be taken over: %s", path, error)
            continue
        for log in taken.logs:
            log.remove_if_done()
        if taken.logs or taken.unreadable:
            yield taken
        else:
            taken.close()


def _is_meant_for(path: Path, target: str, elsewhere: Callable[[str], None]) -> bool:
    try:
        meant_for = identity(path).target
    except (FlystoreError, OSError) as error:
        logger.error("the journal %s cannot be taken over: %s", path, error)
        return False
    if meant_for == target:
        return True
    logger.warning(
        "%s holds documents that an earlier writer meant for %s; a RunWriter for that address sends them",
        path,
        meant_for,
    )
    elsewhere(meant_for)
    return False


def _left_behind(home: Path) -> list[Path]:
    try:
        remove_spent(home)
        return orphans(home)
    except OSError as error:
        logger.error("the journals under %s cannot be listed: %s", home, error)
        return []
