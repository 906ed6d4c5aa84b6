"""``flystore journal``: what waits on this host, shown, checked, sent or set aside."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flystore.journal import (
    JournaledDocument,
    JournaledRun,
    JournalLook,
    default_home,
    discard,
    documents,
    journals,
    look_at,
)
from flystore.model.errors import Conflict, Damaged, Misconfigured, NotFound
from flystore.writer import Delivery, deliver, same_target

from ._plain import plain

LEFT = 3
"""Exit status when something is left to send, or damaged."""


class ShipOptions(NamedTuple):
    """What ``flystore journal ship`` was told."""

    names: tuple[str, ...]
    to: str | None
    api_key: str | None
    patience: float
    home: Path | None
    verbose: bool


# -- ls ---------------------------------------------------------------------------------------------


def run_list(home: Path | None, as_json: bool) -> None:
    """Print the journals under `home`, oldest first."""
    place = _home(home)
    looks = _looks(place)
    if as_json:
        for look in looks:
            print(json.dumps(_record(look)))
        return
    for look in looks:
        print(_line(look))
        for run in look.runs:
            for trouble in _troubles(run):
                print(f"  {_called(run)}: {trouble}")
    if not looks:
        print(f"no journals under {place}: nothing waits")


def _line(look: JournalLook) -> str:
    waiting = f"{_count(len(look.runs), 'run')}, {_count(look.waiting, 'document')} waiting, {_size(look.nbytes)}"
    since = "" if look.since is None else f", since {_moment(look.since)}"
    return f"{look.name} for {look.target or '(nobody knows)'}: {_held(look)}, {waiting}{since}"


def _held(look: JournalLook) -> str:
    who = "" if look.holder is None else f" process {look.holder.pid} on {look.holder.host}"
    if look.held:
        return f"held by{who or ' a living process'}"
    if look.problem is not None:
        return f"orphan that cannot be taken over: {look.problem}"
    return f"orphan left by{who}" if who else "orphan"


def _troubles(run: JournaledRun) -> Iterator[str]:
    if run.parked is not None and run.waiting:
        yield f"parked: {run.parked}"
    if run.damage:
        yield "damaged; see flystore journal verify"


# -- show -------------------------------------------------------------------------------------------


def run_show(what: str, home: Path | None, as_lines: bool) -> int:
    """Print the runs of a journal or the documents of a run; return the exit status."""
    look, run = _find(what, _home(home))
    if run is None and not as_lines:
        print(_line(look))
        for one in look.runs:
            print(f"  {_run_line(one)}")
            for trouble in _troubles(one):
                print(f"    {trouble}")
        return LEFT if any(one.damage for one in look.runs) else 0
    status = 0
    for one in look.runs if run is None else (run,):
        if not as_lines:
            print(_run_line(one))
        try:
            for document in documents(one):
                print(_as_json(document) if as_lines else f"  {_words(document, one)}")
        except Damaged as error:
            sys.stdout.flush()
            print(f"flystore: {error}", file=sys.stderr)
            status = LEFT
    return status


def _run_line(run: JournaledRun) -> str:
    kept = f"documents {run.first} to {run.end - 1} are here" if run.end > run.first else "nothing readable is here"
    since = "" if run.since is None else f", since {_moment(run.since)}"
    return f"{_called(run)}: {kept}, {run.waiting} wait ({_size(run.nbytes)}){since}"


def _called(run: JournaledRun) -> str:
    return f"{run.label} [{run.uid}]" if run.uid else run.label


def _as_json(document: JournaledDocument) -> str:
    return json.dumps({"name": document.name, "doc": plain(document.doc)})


def _words(document: JournaledDocument, run: JournaledRun) -> str:
    state = "stored" if document.ordinal < run.acked else "waits"
    said = ", ".join(_details(document))
    return f"{document.ordinal:>7} {document.name:<15} {state}  {said}".rstrip()


_TOLD = ("scan_id", "plan_name", "name", "seq_num", "seq_nums", "data_key", "exit_status", "num_events", "reason")


def _details(document: JournaledDocument) -> Iterator[str]:
    doc = document.doc
    time_ = doc.get("time")
    if isinstance(time_, (int, float)):
        yield _moment(time_)
    for key in _TOLD:
        if doc.get(key) not in (None, ""):
            yield f"{key} {plain(doc[key])}"
    if document.name == "descriptor" and isinstance(doc.get("data_keys"), dict):
        yield f"keys {', '.join(map(str, doc['data_keys']))}"
    if not document.named:
        yield "values without names: the keys were stored with an earlier file"


# -- ship -------------------------------------------------------------------------------------------


def run_ship(options: ShipOptions) -> int:
    """Send what orphaned journals hold; return the exit status."""
    if options.to is not None and not options.names:
        raise Misconfigured(
            "--to changes for good where journals go, so it wants their names: flystore journal ship NAME --to URL; "
            "flystore journal ls shows them"
        )
    _log(options.verbose)
    place = _home(options.home)
    looks = _named(options.names, place)
    left = list(_not_ours(looks, bool(options.names)))
    ours = [look for look in looks if not look.held and look.runs and (look.problem is None)]
    groups = _by_target(ours, options.to)
    if options.api_key is not None and len(groups) > 1:
        raise Misconfigured(
            f"these journals are for {len(groups)} services ({', '.join(_shown(target) for target, _ in groups)}), "
            f"and a key is for one; name the journals that it is for: flystore journal ship NAME --api-key KEY"
        )
    stored = 0
    for target, paths in groups:
        delivery = _deliver(target, paths, options)
        stored += delivery.stored
        left += delivery.left
    for sentence in left:
        print(f"left: {sentence}", file=sys.stderr)
    print(f"{_count(stored, 'document')} stored" + ("" if left else ", nothing is left"))
    return LEFT if left else 0


def _not_ours(looks: list[JournalLook], named: bool) -> Iterator[str]:
    """Say which journals are not sent; those of living writers only if they were asked for."""
    for look in looks:
        if look.held and named:
            yield f"{look.name} is {_held(look)}, which sends it by itself; to send it here, end that process first"
        elif not look.held and look.problem is not None:
            yield f"{look.name}: {look.problem}"


def _by_target(looks: list[JournalLook], to: str | None) -> list[tuple[str, list[Path]]]:
    groups: list[tuple[str, list[Path]]] = []
    for look in looks:
        target = to or str(look.target)
        paths = next((paths for known, paths in groups if same_target(known, target)), None)
        if paths is None:
            groups.append((target, [look.path]))
        else:
            paths.append(look.path)
    return groups


def _deliver(target: str, paths: list[Path], options: ShipOptions) -> Delivery:
    print(f"sending {_count(len(paths), 'journal')} to {_shown(target)}", flush=True)
    redirect = options.to is not None
    if "://" in target:
        return deliver(paths, target, api_key=options.api_key, redirect=redirect, patience=options.patience, tell=_tell)
    from ._check import opened

    with opened(target, None) as store:
        return deliver(paths, store, redirect=redirect, patience=options.patience, tell=_tell)


def _shown(target: str) -> str:
    return target.partition("?")[0].rpartition("@")[2]


def _tell(delivery: Delivery) -> None:
    if sys.stderr.isatty():
        end = "\n" if delivery.stored >= delivery.total else "\r"
        print(f"  {delivery.stored} of {delivery.total} documents", end=end, file=sys.stderr, flush=True)


def _log(verbose: bool) -> None:
    if verbose:
        from ._logging import log_to_stderr

        log_to_stderr(True)
    else:  # what went wrong is said at the end, once
        logging.getLogger("flystore").addHandler(logging.NullHandler())


# -- verify -----------------------------------------------------------------------------------------


def run_verify(names: tuple[str, ...], home: Path | None, as_json: bool) -> int:
    """Check every frame of journals; return the exit status."""
    looks = _named(names, _home(home))
    for look in looks:
        if as_json:
            print(json.dumps(_record(look)))
        else:
            _say_how_whole(look)
    if not looks and not as_json:
        print("no journals: nothing to verify")
    return LEFT if any(_is_damaged(look) for look in looks) else 0


def _is_damaged(look: JournalLook) -> bool:
    return look.problem is not None or any(run.damage for run in look.runs)


def _say_how_whole(look: JournalLook) -> None:
    files = sum(len(run.files) for run in look.runs)
    count = sum(run.end - run.first for run in look.runs)
    damaged = _is_damaged(look)
    what = f"{_count(files, 'file')}, {_count(count, 'document')}"
    print(f"{look.name}: {what}, {'DAMAGED' if damaged else 'every frame is whole'}")
    if look.problem is not None:
        print(f"  {look.problem}")
    for run in look.runs:
        for damage in run.damage:
            print(f"  {damage}")
        for torn in run.torn:
            print(
                f"  journal file {torn.path}, segment {torn.segment}, offset {torn.offset}: a torn last frame, as is "
                f"normal after a power cut; it is no document"
            )


# -- discard ----------------------------------------------------------------------------------------


def run_discard(what: str, reason: str, home: Path | None) -> None:
    """Set a run or a journal aside."""
    look, run = _find(what, _home(home))
    if look.held:
        raise Conflict(f"{look.name} is {_held(look)}; end that process first, it would go on sending")
    runs = look.runs if run is None else (run,)
    if not runs:
        raise NotFound(f"{look.name} holds no documents; the next RunWriter deletes it")
    place = discard(look.path, [one.name for one in runs], reason)
    for one in runs:
        print(f"{_called(one)}: set aside, {_count(one.waiting, 'document')} of it never stored")
    print(f"it is in {place}; to send it after all: flystore journal ship {place.name} --journal {place.parent}")


# -- finding ----------------------------------------------------------------------------------------


def _home(home: Path | None) -> Path:
    if home is None:
        return default_home()
    home = home.expanduser().absolute()
    if not home.is_dir():
        raise Misconfigured(f"{home} is no directory; --journal names the one that RunWriter(…, journal=DIR) was given")
    return home


def _looks(home: Path) -> list[JournalLook]:
    try:
        return [look for path in journals(home) if (look := look_at(path)) is not None]
    except PermissionError as error:
        raise Misconfigured(
            f"{error.filename} may not be read by this user: journals are their writer's own; be that user, or root"
        ) from error
    except OSError as error:
        raise Misconfigured(f"the journals under {home} cannot be read: {error}") from error


def _named(names: tuple[str, ...], home: Path) -> list[JournalLook]:
    looks = _looks(home)
    if not names:
        return looks
    found = [_one([look for look in looks if look.name.startswith(name)], name, looks) for name in names]
    return list({look.name: look for look in found}.values())


def _one(found: list[JournalLook], name: str, looks: list[JournalLook]) -> JournalLook:
    exact = [look for look in found if look.name == name]
    if len(exact or found) != 1:
        raise NotFound(
            f"{name!r} names {'no journal' if not found else f'{len(found)} journals'}; there are: "
            f"{', '.join(look.name for look in found or looks) or 'none'}"
        )
    return (exact or found)[0]


def _find(what: str, home: Path) -> tuple[JournalLook, JournaledRun | None]:
    """Return the journal that is meant, or the one with the run that is meant, and the run."""
    looks = _looks(home)
    journal, slash, log = what.partition("/")
    if slash and any(look.name.startswith(journal) for look in looks):
        return _find_log(_one([look for look in looks if look.name.startswith(journal)], journal, looks), log)
    found = [look for look in looks if what and look.name.startswith(what)]
    runs = [(look, run) for look in looks for run in look.runs if _is_meant(run, what)]
    exact = [(look, run) for look, run in runs if what in (run.uid, run.name)]
    runs = exact or runs
    if not runs:
        return _one(found, what, looks), None
    if found or len(runs) > 1:
        raise NotFound(
            f"{what!r} may mean {', '.join([*(f'the journal {look.name}' for look in found), *map(_place, runs)])}; "
            f"name one of them"
        )
    return runs[0]


def _find_log(look: JournalLook, log: str) -> tuple[JournalLook, JournaledRun]:
    for run in look.runs:
        if run.name == log:
            return look, run
    raise NotFound(f"{look.name} has no log {log!r}; it has {', '.join(run.name for run in look.runs) or 'none'}")


def _place(found: tuple[JournalLook, JournaledRun]) -> str:
    look, run = found
    return f"{run.label} ({look.name}/{run.name})"


def _is_meant(run: JournaledRun, what: str) -> bool:
    if not what:
        return False
    return run.uid.startswith(what) or run.name == what or str(run.scan_id) == what


# -- words ------------------------------------------------------------------------------------------


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s"


def _record(look: JournalLook) -> dict[str, Any]:
    return {
        "name": look.name,
        "path": str(look.path),
        "target": look.target,
        "held": look.held,
        "pid": None if look.holder is None else look.holder.pid,
        "host": None if look.holder is None else look.holder.host,
        "problem": look.problem,
        "waiting": look.waiting,
        "bytes": look.nbytes,
        "since": look.since,
        "runs": [
            {
                "uid": run.uid,
                "scan_id": run.scan_id,
                "log": run.name,
                "first": run.first,
                "acknowledged": run.acked,
                "end": run.end,
                "waiting": run.waiting,
                "bytes": run.nbytes,
                "since": run.since,
                "parked": run.parked,
                "damage": [{"message": str(damage), **damage.facts} for damage in run.damage],
                "torn": [{"path": str(t.path), "segment": t.segment, "offset": t.offset} for t in run.torn],
            }
            for run in look.runs
        ],
    }
