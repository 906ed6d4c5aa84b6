"""Checking: every stored byte against its checksum, every registered file against what was observed.

What carries a checksum is *checked* or *damaged*; what carries none is *unverified*, never passed over in silence.
"""

from collections.abc import Callable, Iterator

import msgspec

from flystore.catalog import Catalog, LogRecord, Node, Segment, is_as_stored, is_column, problem_of
from flystore.model.errors import Damaged, FlystoreError, NotFound
from flystore.model.frames import FrameDecoder
from flystore.model.structures import KEPT_IN_FILES, ZARR_MIMETYPE, Family, Management
from flystore.storage import ArrayStore, PartStore, decode_column, decode_header, decode_segment

from .changed import compared
from .findings import Check, checked
from .log_bodies import in_order, payloads_of, place_of
from .observed import OK
from .operations import ACTIONS
from .probing import Prober

_PAGE = 256
_DIGEST = 16


def check_store(
    catalog: Catalog,
    arrays: ArrayStore,
    prober: Prober,
    *,
    deep: bool = False,
    is_there: Callable[[int], bool] = lambda node_id: True,
) -> list[Check]:
    """Check log, rows, arrays, index and registered files of a store.

    Parameters
    ----------
    deep
        Read files whose content carries checksums from beginning to end.
    is_there
        Whether a node is there now: where `catalog` is an earlier copy, its arrays may have been deleted since.
    """
    steps = [
        ("log", lambda check: _verify_log(catalog, check)),
        ("rows", lambda check: _verify_rows(catalog, check)),
        ("arrays", lambda check: _verify_arrays(catalog, arrays, check, is_there)),
        ("index", lambda check: _verify_index(catalog, check)),
        ("files", lambda check: _verify_files(catalog, prober, check, deep)),
    ]
    return [checked(what, step) for what, step in steps]


# --------------------------------------------------------------------------- log


def run_uids(catalog: Catalog) -> Iterator[str]:
    """Yield the uids of all runs, tombstones too, with no transaction open in between."""
    after = ""
    while True:
        with catalog.read() as snapshot:
            uids = snapshot.run_uids(after)
        if not uids:
            return
        yield from uids
        after = uids[-1]


def _verify_log(catalog: Catalog, check: Check) -> None:
    with catalog.read() as snapshot:
        last = snapshot.last_position()
        stored = snapshot.count_records("documents", last)
    seen = 0
    for uid in run_uids(catalog):
        seen += _verify_run(catalog, uid, last, check)
    if seen != stored:
        check.bad("the log", f"{stored} records of documents are there, {seen} belong to runs")
    _verify_operations(catalog, last, check)


def _verify_run(catalog: Catalog, uid: str, last: int, check: Check) -> int:
    """Check all documents of a run against their frames' checksums and their hashes; return how many records it has."""
    with catalog.read() as snapshot:
        run = snapshot.run(uid)
    watermark = 0 if run is None else run.watermark
    decoder, seen = FrameDecoder(), 0
    try:
        for record in in_order(catalog.documents(uid), uid, watermark):
            if record.position > last:
                break
            seen += 1
            _check_record(record, decoder, check)
    except Exception as error:  # noqa: BLE001  a damaged page may raise anything; the other runs are looked at all the same
        check.bad(f"the log of run {uid}", error)
    return seen


def _check_record(record: LogRecord, decoder: FrameDecoder, check: Check) -> None:
    hashes, at = record.hashes or b"", 0
    try:
        for payload in payloads_of(record):
            raw = bytes(payload)
            decoded = decoder.decode(raw)
            if decoded is None:
                continue
            if hashes[at : at + _DIGEST] != decoder.digest(raw):
                ordinal = (record.first_ordinal or 0) + at // _DIGEST
                raise Damaged(f"document {ordinal} is not the one that its hash was made of")
            at += _DIGEST
        if at != len(hashes):
            raise Damaged(f"there are {len(hashes)} bytes of hashes for {record.count} documents")
    except FlystoreError as error:
        check.bad(place_of(record), error)
    else:
        check.checked += 1


def _verify_operations(catalog: Catalog, last: int, check: Check) -> None:
    after = 0
    while True:
        with catalog.read() as snapshot:
            records = list(snapshot.operations(after, limit=_PAGE))
        for record in records:
            after = record.position
            if after > last:
                return
            _check_operation(record, check)
        if not records:
            return


def _check_operation(record: LogRecord, check: Check) -> None:
    where = f"the log, record {record.position}, {record.action} on /{'/'.join(record.path or ())}"
    fits = is_as_stored(record)
    if fits is False:
        check.bad(where, "the operation does not fit its hash")
        return
    known = ACTIONS.get(record.action or "")
    if known is not None:
        try:
            msgspec.msgpack.decode(record.body, type=known)
        except msgspec.MsgspecError as error:
            check.bad(where, error)
            return
    if fits is None:
        check.unknown(where, "stored before operations had hashes")
    else:
        check.checked += 1


# --------------------------------------------------------------------------- rows, arrays, index


def _verify_rows(catalog: Catalog, check: Check) -> None:
    after = 0
    while True:
        with catalog.read() as snapshot:
            page = snapshot.stored_segments(after, limit=_PAGE)
        if not page:
            break
        for number, series, segment in page:
            after = number
            if is_column(series):  # looked at with the rows that it belongs to
                continue
            where = f"the rows of /{series} from {segment.first_row} on"
            problem = problem_of(segment)
            if problem is None and segment.body is not None:
                problem = _problem_within(catalog, series, segment)
            if problem is not None:
                check.bad(where, problem)
            elif segment.crc is None:
                check.unknown(where, "stored before rows had checksums; `flystore rebuild` stores those of runs anew")
            else:
                check.checked += 1
    with catalog.read() as snapshot:
        for series in snapshot.broken_series():
            check.bad(f"the rows of /{series}", "rows between those stored are not there")


def _problem_within(catalog: Catalog, series: str, segment: Segment) -> str | None:
    """Return what is wrong with rows whose body is as it was stored; None if nothing is."""
    try:
        if not segment.by_columns:
            found = decode_segment(segment.body or b"").num_rows
            return None if found == segment.rows else f"{segment.rows} rows were stored, {found} are there"
        schema = decode_header(segment.body or b"")
        with catalog.read() as snapshot:
            if snapshot.began(series) is None:  # deleted meanwhile
                return None
            for number, field in enumerate(schema):
                decode_column(field, segment.rows, snapshot.column(series, segment, number))
    except Damaged as error:
        return error.message
    return None


def _nodes(catalog: Catalog) -> Iterator[Node]:
    after = 0
    while True:
        with catalog.read() as snapshot:
            ids = snapshot.node_ids(after, _PAGE)
        if not ids:
            return
        for node_id in ids:
            with catalog.read() as snapshot:
                node = snapshot.node_by_id(node_id)
            if node is not None:
                yield node
        after = ids[-1]


def _verify_arrays(catalog: Catalog, arrays: ArrayStore, check: Check, is_there: Callable[[int], bool]) -> None:
    parts = PartStore(arrays.keep)
    for node in _nodes(catalog):
        if node.family is Family.CONTAINER:
            continue
        with catalog.read() as snapshot:
            source = snapshot.data_source(node.id)
        if source is None or source.mimetype not in KEPT_IN_FILES or source.management is Management.EXTERNAL:
            continue
        where = f"the array /{'/'.join(node.path)}"
        found = (arrays if source.mimetype == ZARR_MIMETYPE else parts).verify(str(node.id))
        if found.damaged and not is_there(node.id):
            continue
        check.checked += found.checked
        for why in found.damaged:
            check.bad(where, why)
        for why in found.unverified:
            check.unknown(where, f"stored before arrays had checksums for this: {why}")


def _verify_index(catalog: Catalog, check: Check) -> None:
    for node in _nodes(catalog):
        with catalog.read() as snapshot:
            current = snapshot.node_by_id(node.id)
            problems = [] if current is None else snapshot.problems_of(current)
        for why in problems:
            check.bad(f"/{'/'.join(node.path)}", why)
        check.checked += not problems
    with catalog.read() as snapshot:
        for node_id in snapshot.indexed_without_node():
            check.bad("the search index", f"it has entries of node {node_id}, which is not there")


# --------------------------------------------------------------------------- files


def _verify_files(catalog: Catalog, prober: Prober, check: Check, deep: bool) -> None:
    for node in _nodes(catalog):
        if node.family is not Family.ARRAY:
            continue
        with catalog.read() as snapshot:
            source = snapshot.data_source(node.id)
            known = snapshot.observation(node.id)
        if node.external is None and (source is None or source.management is not Management.EXTERNAL):
            continue
        where = f"the files of /{'/'.join(node.path)}"
        try:
            _, found = prober.found(node)
        except NotFound:  # deleted meanwhile
            continue
        for probe in compared(known, found):
            if probe.status == "outside-roots":
                check.unknown(where, "not inside the read roots that were given, so not looked at (--read, --map)")
            elif probe.status != OK:
                check.bad(where, f"{probe.status}: {probe.why}")
            elif known is None:
                check.unknown(where, "never observed before; nothing to compare with")
            elif not probe.checksummed:
                check.unknown(where, "size and time are those observed; the content carries no checksum")
            elif not deep:
                check.unknown(where, "size and time are those observed; the content is checked with --deep")
            else:
                check.checked += _read_through(prober, node, where, check)


def _read_through(prober: Prober, node: Node, where: str, check: Check) -> bool:
    try:
        prober.read_through(node)
    except FlystoreError as error:
        check.bad(where, error)
        return False
    return True
