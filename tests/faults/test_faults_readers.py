"""F27: many people read a run while it is written.

If these fail, somebody who looks at a scan while it goes on sees events that are not in the table yet, rows that were
never taken, or errors.
"""

import threading
import time
from contextlib import ExitStack, closing

import pyarrow as pa
import pytest

from flystore.model.errors import FlystoreError, NotFound
from flystore.model.frames import FrameDecoder, split_frames
from flystore.testing.faults import KEY, Acquisition, FaultFound, FaultReport, FaultyService, Findings
from flystore.testing.faults.broken import SHOWN_TO
from flystore.wire import HttpTransport, api_path

EVENTS = 60


class Reader(threading.Thread):
    """Somebody who asks again and again for the documents of a run, for its rows, and for the documents once more."""

    def __init__(self, url, load, uid, over):
        super().__init__()
        self.findings, self.answers, self.slowest = Findings(), 0, 0.0
        self.error = None
        self._load, self._uid, self._over = load, uid, over
        self._transport = HttpTransport(url, KEY)

    def run(self):
        try:
            with closing(self._transport):
                while not self._over.is_set():
                    self.look()
                self.look()
        except FlystoreError as error:
            self.error = error

    def get(self, *path, **params):
        began = time.perf_counter()
        try:
            answer = self._transport.request("GET", api_path(*path), params=params)
        except NotFound:
            return None
        self.slowest = max(self.slowest, time.perf_counter() - began)
        self.answers += 1
        return answer.body

    def look(self):
        told = self.events_told()
        body = self.get("table", "partition", self._uid, "primary", "internal", partition="0")
        rows = [] if body is None else pa.ipc.open_file(body).read_all().select(["seq_num", "motor"]).to_pylist()
        if len(rows) < told:
            self.findings.add("half", told - len(rows), f"{self._uid}: {told} events were told, {len(rows)} rows shown")
        if rows and (told := self.events_told()) < len(rows):
            self.findings.add("half", len(rows) - told, f"{self._uid}: {len(rows)} rows, of which {told} were told")
        run = self._load.number(self._uid)
        for seq_num, row in enumerate(rows, 1):
            if row != {"seq_num": seq_num, "motor": self._load.value(run, seq_num, "motor")}:
                self.findings.add("phantom", 1, f"{self._uid}: row {seq_num} is {row}")
                return

    def events_told(self):
        body = self.get("documents", self._uid)
        if body is None:
            return 0
        decoder = FrameDecoder()
        found = [document for _, payload in split_frames(body) if (document := decoder.decode(payload)) is not None]
        primary = {doc["uid"] for name, doc in found if name == "descriptor" and doc["name"] == "primary"}
        return sum(name == "event" and doc["descriptor"] in primary for name, doc in found)


def read_while_written(fork_server, scratch, report, readers, runs, variants=()):
    with ExitStack() as held:
        service = held.enter_context(FaultyService(fork_server, scratch / "store", broken=variants))
        service.start()
        acquisition = held.enter_context(Acquisition(service.url, scratch, report.seed))
        for _ in range(runs):
            uid, documents = acquisition.announce(EVENTS)
            over = threading.Event()
            people = [Reader(service.url, acquisition.load, uid, over) for _ in range(readers)]
            for person in people:
                person.start()
            try:
                for place, document in enumerate(documents):
                    acquisition.writer(*document)
                    if place % 4 == 3:
                        time.sleep(0.003)
                acquisition.finish()
            finally:
                over.set()
                for person in people:
                    person.join()
            report.cycles += 1
            report.acknowledged += sum(person.answers for person in people)
            report.notes["slowest_answer_s"] = round(max(person.slowest for person in people), 2)
            errors = [person.error for person in people if person.error is not None]
            assert not errors, errors[0]
            for person in people:
                report.count(person.findings, acknowledged=False)
                person.findings.require_none()


def test_who_reads_during_ingest_sees_whole_states_and_no_errors(fork_server, tmp_path, cycles, fault_report):
    report = fault_report("F27 readers during ingest", unit="answers")
    report.notes["readers"] = readers = cycles(50, 200)
    read_while_written(fork_server, tmp_path, report, readers, cycles(2, 20))


def test_a_service_that_commits_rows_before_their_documents_is_found(fork_server, tmp_path, seed):
    report = FaultReport("control", seed)
    with pytest.raises((FaultFound, AssertionError)):
        read_while_written(fork_server, tmp_path, report, SHOWN_TO, 10, variants=("commit-twice-and-show",))
