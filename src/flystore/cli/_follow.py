"""``flystore follow``: what is measured, as it is measured, in a terminal."""

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from flystore.model.errors import FlystoreError

from ._check import opened, run_named

_MOST_COLUMNS = 8
_WIDTH, _WIDEST = 12, 24
_LOOK_S = 0.1


def run_follow(run: str | None, at: str, api_key: str | None, as_json: bool) -> None:
    """Print a run's events until it ends, or without a run what begins and ends, until Ctrl-C."""
    logger = logging.getLogger("flystore.client")
    logger.propagate = False  # what ends it is raised here
    logger.setLevel(logging.INFO)
    logger.handlers = [_LOST]
    with contextlib.suppress(KeyboardInterrupt), opened(at, api_key) as client:
        if run is None:
            _all_runs(client, as_json)
        else:
            _one_run(run_named(client, run), as_json)


class _Lost(logging.Handler):
    """Says once that the service is away, and again only after something came from it."""

    told = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO and not self.told:
            self.told = True
            print("The service does not answer; this goes on by itself when it does.", file=sys.stderr, flush=True)


_LOST = _Lost()


def _all_runs(client: Any, as_json: bool) -> None:
    ended: set[str] = set()
    ready = threading.Event()

    def tell(change: Any) -> None:
        ready.wait()
        _LOST.told = False
        if as_json:
            print(json.dumps({"path": change.path, "what": change.what, "token": change.token}), flush=True)
            return
        # A run's top node changes when the run begins and when it ends.
        if change.run is None or len(change.path) != 1 or change.what == "deleted" or change.run in ended:
            return
        with contextlib.suppress(FlystoreError):  # deleted since
            found = client[change.path]
            if change.what == "created":
                print(f"{_time(found.start.get('time'))}  {_named(found)} begins", flush=True)
            if found.stop is not None:
                ended.add(change.run)
                print(f"{_time(found.stop.get('time'))}  {found.verdict.line}", flush=True)

    with client.follow(tell) as calling:
        print("Waiting for runs; Ctrl-C ends it.", flush=True)
        ready.set()
        _wait(calling)


def _one_run(run: Any, as_json: bool) -> None:
    columns: dict[str, list[str]] = {}

    def tell(name: str, doc: dict[str, Any]) -> None:
        _LOST.told = False
        if as_json:
            print(json.dumps({"name": name, "doc": doc}, default=_plain), flush=True)
            return
        for line in _lines(run, name, doc, columns):
            print(line, flush=True)

    with run.documents(follow=True).call(tell) as calling:
        _wait(calling)
    if not as_json:
        print(run.verdict.line, flush=True)


def _wait(calling: Any) -> None:
    """Wait for the end, and hear Ctrl-C soon.

    A thread that reads from a socket hears a signal only with the next byte, if it came just before; so another thread
    reads, and this one looks up now and then. An exception in the middle of a wait could leave a lock taken, or a
    thread for ended that runs; so the signal leaves a note.

    Raises
    ------
    KeyboardInterrupt
        When there is no wait any more.
    """
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        while not asked and not calling.wait(_LOOK_S):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _lines(run: Any, name: str, doc: dict[str, Any], columns: dict[str, list[str]]) -> Iterator[str]:
    """Yield what a document is worth in a terminal."""
    if name == "start":
        yield f"{_time(doc.get('time'))}  {_named(run)} begins"
    elif name == "descriptor":
        named = columns[doc["uid"]] = _scalars(doc)
        heads = "".join(f"{column[-_WIDEST:]:>{_wide(column)}}" for column in named)
        yield f"{doc.get('name', '?')}: {'seq_num':>7} {'time':>12}{heads}"
    elif name == "event" and doc.get("descriptor") in columns:
        values = "".join(f"{_value(doc['data'].get(column)):>{_wide(column)}}" for column in columns[doc["descriptor"]])
        yield f"{doc.get('seq_num', ''):>9} {_time(doc.get('time')):>12}{values}"
    elif name == "stream_resource":
        columns[doc["uid"]] = [doc.get("data_key", "?")]
    elif name == "stream_datum":
        last = (doc.get("seq_nums") or {}).get("stop", 0) - 1
        rows = doc.get("indices") or {}
        count = rows.get("stop", 0) - rows.get("start", 0)
        (key,) = columns.get(doc.get("stream_resource", ""), ["?"])
        yield f"{last if last > 0 else '':>9} {'':>12}  {key}: {count} more"


def _wide(column: str) -> int:
    """Return how many letters a column takes, with the space before it."""
    return max(_WIDTH, min(len(column), _WIDEST)) + 1


def _scalars(descriptor: dict[str, Any]) -> list[str]:
    keys = descriptor.get("data_keys") or {}
    hinted = [name for device in (descriptor.get("hints") or {}).values() for name in device.get("fields", ())]
    first = [name for name in hinted if name in keys]
    found = [*first, *(name for name in keys if name not in first)]
    return [name for name in found if not keys[name].get("shape") and "external" not in keys[name]][:_MOST_COLUMNS]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)[:_WIDTH]


def _named(run: Any) -> str:
    plan = f", {run.start['plan_name']}" if run.start.get("plan_name") else ""
    return f"scan {run.scan_id}{plan} [{run.uid[:8]}]" if run.scan_id is not None else f"run {run.uid[:8]}{plan}"


def _time(seconds: Any) -> str:
    try:
        return datetime.fromtimestamp(float(seconds)).strftime("%H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
