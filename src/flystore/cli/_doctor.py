"""``flystore doctor``: what would keep a service or a writer from working, each in a sentence with what to do."""

import dataclasses
import email.utils
import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from flystore.disk import Remark, examine_directory
from flystore.embedded import needing_server_parts
from flystore.model.errors import (
    Conflict,
    FlystoreError,
    InvalidRequest,
    Misconfigured,
    NotPermitted,
    Unauthenticated,
)

from ._listen import listener_at

WRONG = 1
"""Exit status when there is a problem; remarks that only warn are none."""

SKEW_S = 5.0
"""Between the clocks of writer and service; the header has whole seconds."""

_MARKS = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """The options of ``flystore doctor``, as typed."""

    directory: Path | None
    catalog: str | None
    storage: str | None
    read: tuple[Path | str, ...]
    host: str
    port: int | None
    api_key: str | None = dataclasses.field(repr=False)
    key_file: Path | None
    limits: tuple[str, ...]
    to: str | None
    journal: Path | None
    as_json: bool


def run_doctor(options: DoctorOptions) -> int:
    """Look at everything, print what was found, and return the exit status."""
    if options.directory is None and options.catalog is None and options.storage is None and options.to is None:
        raise Misconfigured(
            "nothing to look at; name the directory of a store (flystore doctor DIR), or the service that a writer "
            "sends to (flystore doctor --to URL)"
        )
    remarks: list[Remark] = []
    if options.to is not None:
        remarks += examine_writer(options.to, options.api_key, options.journal)
    if options.directory is not None or options.catalog is not None or options.storage is not None:
        remarks += _examine_service(options)
    _show(remarks, options.as_json)
    return WRONG if any(remark.state == "problem" for remark in remarks) else 0


def _show(remarks: Iterable[Remark], as_json: bool) -> None:
    remarks = list(remarks)
    problems = sum(remark.state == "problem" for remark in remarks)
    if as_json:
        print(json.dumps({"problems": problems, "checks": [remark._asdict() for remark in remarks]}))
        return
    for remark in remarks:
        print(f"{_MARKS[remark.state]} {remark.check}: {remark.text}")
    warnings = sum(remark.state == "warning" for remark in remarks)
    counts = f"{problems} problem{'s'[: problems != 1]}, {warnings} warning{'s'[: warnings != 1]}"
    print(counts if problems or warnings else "all is well")


def _examine_service(options: DoctorOptions) -> Iterator[Remark]:
    with needing_server_parts("flystore doctor of a store"):
        from flystore.service import doctoring
    limits, remarks = doctoring.examine_limits(options.limits)
    yield from remarks
    yield from doctoring.examine_store(options.directory, options.catalog)
    yield from doctoring.examine_storage(options.directory, options.storage)
    yield from doctoring.examine_roots(options.read, options.directory)
    yield from doctoring.examine_codecs()
    yield from doctoring.examine_clock()
    yield from doctoring.examine_key(options.api_key, options.key_file)
    yield from doctoring.examine_process(limits)
    if options.port is not None:
        yield examine_port(options.host, options.port)


def examine_port(host: str, port: int) -> Remark:
    """Try to listen as a service would."""
    try:
        with closing(listener_at(host, port)):
            return Remark("port", "ok", f"port {port} at {host} is free.")
    except Misconfigured as error:
        if _is_ours("127.0.0.1" if host in ("", "0.0.0.0", "::") else host, port):
            return Remark("port", "ok", f"a flystore service answers at {host}, port {port}.")
        return Remark("port", "problem", f"{error.message}.")


def _is_ours(host: str, port: int) -> bool:
    """Return whether a service answers there."""
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(f"GET /healthz HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            return b'{"status":' in connection.recv(4096) + connection.recv(4096)
    except OSError:
        return False


# --- the writer's side; a base install is enough


def examine_writer(to: str, api_key: str | None, journal: Path | None) -> Iterator[Remark]:
    """Look at the way from this host to a service, and at this host's journal."""
    yield from _examine_journal(journal)
    from flystore.wire import HttpTransport, api_path

    try:
        transport = HttpTransport(to, api_key, timeout=10.0)
    except InvalidRequest as error:
        yield Remark("service", "problem", f"{error.message}; it looks like http://host:8000.")
        return
    with closing(transport):
        try:
            before = time.time()
            answer = transport.request("GET", "/healthz", headers={"Cache-Control": "no-cache"})
            after = time.time()
        except FlystoreError as error:
            yield Remark("service", "problem", _not_reached(error, transport.where))
            return
        yield Remark("service", "ok", f"{transport.where} is ready ({(after - before) * 1e3:.0f} ms).")
        yield _clocks(answer.headers.get("date", ""), before, after)
        try:
            transport.request("GET", api_path("metadata"))
            # A journal of no name, from a gap that no batch fills: it is refused for what it says, not for the key.
            transport.request("POST", api_path("close", "flystore-doctor"), body=b"{}", headers=_JSON)
        except (Unauthenticated, NotPermitted) as error:
            fix = "set FLYSTORE_API_KEY to what the service was started with"
            yield Remark(
                "key", "problem", f"{transport.where} does not take this key for writing ({error.message}); {fix}."
            )
            return
        except (InvalidRequest, Conflict):
            pass
        except FlystoreError as error:
            if error.kind != "not-found":
                yield Remark("key", "problem", f"the key could not be tried: {error.message}.")
                return
        yield Remark("key", "ok", f"{transport.where} takes the key for reading and writing.")


_JSON = {"Content-Type": "application/json"}


def _not_reached(error: FlystoreError, where: str) -> str:
    if "not-ready" in error.message or "read-only" in error.message:
        return f"{where} answers, but is not ready ({error.message}); look at its log, or restart it."
    return f"{where} cannot be reached ({error.message}); start it, or correct the address, firewall or proxy."


def _clocks(date: str, before: float, after: float) -> Remark:
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return Remark(
            "clock", "warning", "the service sends no Date, so the clocks cannot be compared; look at its proxy."
        )
    # Whole seconds: what the clock there said is up to a second later than the header.
    skew = max(0.0, there - after) + min(0.0, there + 1.0 - before)
    if abs(skew) > SKEW_S:
        text = f"the service's clock is {skew:+,.0f} s off this host's, and documents bear this host's time; "
        return Remark("clock", "problem" if abs(skew) > 60 else "warning", f"{text}have both follow a time server.")
    return Remark("clock", "ok", f"this host's clock agrees with the service's to {SKEW_S:g} s.")


def _examine_journal(journal: Path | None) -> Iterator[Remark]:
    from flystore.journal import default_home, journals, network_filesystem, orphans

    try:
        home = default_home() if journal is None else journal.expanduser()
    except Misconfigured as error:
        yield Remark("journal", "problem", f"{error.message}.")
        return
    yield from examine_directory(home, "journal", "give another to RunWriter(…, journal=DIR)")
    kind = network_filesystem(home)
    if kind is not None:
        text = f"the journal {home} is on a network file system ({kind}), and plans wait for it; give a local directory"
        yield Remark("journal disk", "problem", f"{text}: RunWriter(…, journal=DIR).")
    if home.is_dir():
        left = len(orphans(home))
        if left:
            text = f"{left} of {len(journals(home))} journals in {home} were left by writers that ended; "
            yield Remark("journal", "warning", f"{text}the next RunWriter sends them, or now: flystore journal ship.")
