"""What test processes do: serve, or write. The only place that reads the variables of the fault tests."""

import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from flystore.model.errors import DeadlineExceeded, Misconfigured, Unavailable

from . import disk_roles, points
from ._messages import say
from .broken import apply
from .ledger import Ledger
from .load import Load
from .storing import frames_of, store_array, store_documents

BROKEN_VARIABLE = "FLYSTORE_BROKEN"
"""Names of broken variants (`broken`), separated by commas."""


def import_everything() -> None:
    """Import what the roles need, so that the processes forked from here have it."""
    import pyarrow.compute
    import uvicorn.lifespan.on
    import uvicorn.loops.auto
    import uvicorn.protocols.http.auto
    import uvicorn.protocols.websockets.auto

    import flystore.cli
    import flystore.cli._serve
    import flystore.embedded
    import flystore.http
    import flystore.service
    import flystore.writer

    with suppress(ImportError):  # not on every system
        import uvicorn.loops.uvloop
    assert pyarrow.compute
    assert uvicorn.lifespan.on
    assert flystore.cli._serve
    _store_once()
    _mistake_once()


def _mistake_once() -> None:
    """Run the command without what it needs, so that its parser has imported what it imports late."""
    from flystore.cli import main

    sys.argv = ["flystore", "serve"]
    with redirect_stderr(io.StringIO()), suppress(SystemExit):
        main()


def _store_once() -> None:
    """Store and read one run, so that statements are compiled and what is imported late is there; leaves no thread."""
    from flystore.catalog import Catalog
    from flystore.service import Service
    from flystore.service.service import CATALOG_FILE

    with tempfile.TemporaryDirectory() as directory, Service.open(Path(directory)) as warm:
        load = Load(0)
        warm.ingest.batch(load.uid(1), 0, 1, frames_of(load.documents(1, 10)))
        with Catalog.open(f"sqlite:///{Path(directory) / CATALOG_FILE}") as catalog, catalog.read() as snapshot:
            assert snapshot.run(load.uid(1)) is not None


def play(role: str, options: dict[str, Any]) -> int:
    """Do what `role` names; return the status of the process."""
    points.install_from_environment()
    apply(*filter(None, os.environ.get(BROKEN_VARIABLE, "").split(",")))
    known: dict[str, Callable[..., int]] = {
        "service": service,
        "writer": writer,
        "backup": backup,
        "store": store,
        "journal": disk_roles.journal,
        "stubborn": disk_roles.stubborn,
    }
    return known[role](**options)


def service(directory: str, port: int, key: str, read: list[str], options: list[str]) -> int:
    """Be ``flystore serve``; its own line says when it is ready. `options` are further ones of the command."""
    from flystore.cli import main

    # Standard output is a pipe now; the object Python made for it belonged to another file.
    sys.stdout = os.fdopen(os.dup(1), "w")
    roots = [part for root in read for part in ("--read", root)]
    sys.argv = ["flystore", "serve", directory, "--port", str(port), "--api-key", key, *roots, *options]
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def backup(directory: str, target: str) -> int:
    """Be ``flystore backup``."""
    from flystore.service.backup import back_up

    back_up(Path(directory), Path(target))
    return 0


def writer(
    url: str,
    key: str,
    journal: str,
    ledger: str,
    seed: int,
    runs: list[tuple[int, int]],
    pause: float,
    flush: float,
    options: dict[str, Any],
) -> int:
    """Be an acquisition: a RunWriter that is given whole runs, and takes over what others left.

    Parameters
    ----------
    runs : list of (int, int)
        Number in the load and events of each; their documents are interleaved.
    pause : float
        Seconds after each document.
    flush : float
        Seconds to wait until everything is stored; 0 does not.
    """
    from flystore.writer import RunWriter

    load = Load(seed)
    with Ledger(Path(ledger)) as book:
        try:
            taking = RunWriter(url, api_key=key, journal=journal, **options)
        except Misconfigured as error:  # before any document was taken
            say(event="refused", why=str(error))
            return 0
        say(event="ready")
        feeds = []
        for number, events in runs:
            book.begun(load.uid(number), number, events)
            feeds.append((load.uid(number), iter(enumerate(load.documents(number, events)))))
        while feeds:
            for feed in tuple(feeds):
                uid, documents = feed
                found = next(documents, None)
                if found is None:
                    feeds.remove(feed)
                    continue
                ordinal, (name, doc) = found
                book.sent(uid, ordinal + 1)
                try:
                    taking(name, doc)
                except Unavailable as error:  # as a plan that is stopped by it
                    say(event="refused", why=str(error))
                    feeds.remove(feed)
                    continue
                book.journaled(uid, ordinal + 1)
                if pause:
                    time.sleep(pause)
        say(event="written")
        if flush:
            with suppress(DeadlineExceeded):
                taking.flush(flush)
                say(event="stored")
        taking.close(flush)
    return 0


def store(directory: str, ledger: str, seed: int, run: int, size: int, batch: int) -> int:
    """Be a service without a socket that works in one thread, so that system calls can be counted.

    It stops (SIGSTOP) before its first call, until someone lets it go on.

    Parameters
    ----------
    size : int
        Events of the run, or blocks of the array.
    batch : int
        Documents in one batch; 0 stores an array instead of a run.
    """
    with Ledger(Path(ledger)) as book:
        say(event="waiting")
        os.kill(os.getpid(), signal.SIGSTOP)
        if batch:
            store_documents(Path(directory), book, Load(seed), run, size, batch)
        else:
            store_array(Path(directory), book, Load(seed), run, size)
    return 0
