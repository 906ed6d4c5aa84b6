"""The fault harness itself: ledger, model, proxy, failpoints and broken variants do what fault tests take for granted.

If these fail, a fault test may find nothing because it did nothing.
"""

import socket
import threading
from collections.abc import Iterator

import pytest

from flystore.disk import failpoints
from flystore.model.encoding import encode
from flystore.testing.faults import Ledger, Load, Proxy, broken
from flystore.testing.faults.broken import names
from flystore.testing.faults.checker import Findings, check_documents
from flystore.testing.faults.ledger import Known
from flystore.testing.faults.load import seq_nums
from flystore.testing.faults.model import Model, Outcome
from flystore.testing.faults.points import Handler, names_in_source, parse, written

ANSWER = b"0123456789"


# --- load, ledger, model ---------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_documents_and_another_gives_others():
    first, again, other = (encode([list(doc) for doc in Load(seed).documents(3, 20)]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_run_has_the_events_that_were_asked_for():
    documents = Load(1).documents(3, 20)
    assert seq_nums(documents, "primary") == list(range(1, 21))
    assert [name for name, _ in documents][-1] == "stop"
    assert Load(1).number(documents[0][1]["uid"]) == 3


def test_a_ledger_is_read_again_without_its_torn_last_line(tmp_path):
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.begun("a-0", 0, 5)
        ledger.sent("a-0", 4)
        ledger.acknowledged("a-0", 3)
        ledger.unknown("a-0")
    with open(tmp_path / "ledger", "ab") as file:
        file.write(b'["acknowledged", "a-0", 4')
    with Ledger(tmp_path / "ledger") as again:
        assert again.runs["a-0"] == Known(0, 5, sent=4, acknowledged=3, unknown=1)


def test_a_ledger_sees_what_another_process_wrote_once(tmp_path):
    with Ledger(tmp_path / "ledger") as one, Ledger(tmp_path / "ledger") as other:
        one.begun("a-0", 0, 5)
        one.unknown("a-0")
        other.reload()
        other.journaled("a-0", 2)
        one.reload()
        assert one.runs["a-0"] == other.runs["a-0"] == Known(0, 5, journaled=2, unknown=1)


def test_the_model_says_gap_clash_and_stale_epoch():
    documents, model = Load(1).documents(1, 5), Model()
    assert model.batch("a", 2, 1, documents[2:4]) == Outcome("sequence-gap", 0)
    assert model.batch("a", 0, 1, documents[:4]) == Outcome("stored", 4)
    assert model.batch("a", 2, 2, documents[2:6]) == Outcome("stored", 6)
    assert model.batch("a", 1, 2, [documents[1], documents[4]]) == Outcome("content-clash", 2)
    assert model.batch("a", 0, 1, documents[:1]) == Outcome("stale-epoch", 2)


@pytest.mark.parametrize(
    ("acknowledged", "keep", "found"),
    [(6, lambda d: d[:6], ""), (6, lambda d: d[:5], "lost"), (2, lambda d: [*d[:4], d[3]], "doubled")]
    + [(2, lambda d: [*d[:3], d[4]], "lost"), (2, lambda d: [*d[:3], ("event", {"odd": 1})], "phantom")],
)
def test_the_checker_tells_lost_doubled_and_phantom_documents(acknowledged, keep, found):
    documents, findings = Load(1).documents(1, 5), Findings()
    check_documents(findings, documents, Known(1, 5, sent=7, acknowledged=acknowledged), keep(documents))
    assert findings.clean == (found == "")
    assert not found or getattr(findings, found) > 0


# --- failpoints and variants ------------------------------------------------------------------------------


def test_a_failpoint_fails_the_time_it_was_asked_to():
    reached: list[str] = []
    handler = Handler(parse(written({"room.before_x": "error@2"})), reached.append)
    handler("room.before_x")
    handler("room.before_y")
    with pytest.raises(OSError, match=r"room\.before_x"):
        handler("room.before_x")
    handler("room.before_x")
    assert reached == ["room.before_x", "room.before_y"]


def test_nothing_is_installed_unless_a_test_does():
    assert failpoints._handler is None


def test_places_in_the_source_are_found_by_name():
    assert {"journal.before_append", "catalog.before_commit", "disk.before_rename"} <= set(names_in_source())


@pytest.mark.parametrize("name", names())
def test_a_broken_variant_is_mended_at_the_end_of_the_block(name):
    from flystore.testing.faults.broken import _VARIANTS

    before = [getattr(patch.target, patch.name) for patch in _VARIANTS[name]()]
    with broken(name):
        pass
    assert [getattr(patch.target, patch.name) for patch in _VARIANTS[name]()] == before


# --- the proxy --------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that answers each line with ten bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while connection.recv(100):
                        connection.sendall(ANSWER)
                except OSError:
                    return

        accepting = threading.Thread(target=serve)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join()


def asked(connection: socket.socket) -> bytes:
    connection.sendall(b"question\n")
    found = b""
    while len(found) < len(ANSWER):
        piece = connection.recv(100)
        if not piece:
            break
        found += piece
    return found


def test_a_proxy_passes_on_what_is_said(echo):
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        assert asked(connection) == ANSWER
        assert asked(connection) == ANSWER


def test_a_proxy_loses_an_answer_after_so_many_bytes_and_only_that(echo):
    with Proxy(echo) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            proxy.lose_reply(after=4, reset=False)
            assert asked(connection) == ANSWER[:4]
        assert proxy.lost_replies == 1
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            assert asked(connection) == ANSWER


def test_a_proxy_that_loses_an_answer_by_a_reset_says_so(echo):
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        proxy.lose_reply(reset=True)
        with pytest.raises(ConnectionResetError):
            asked(connection)


def test_a_silent_proxy_says_nothing_until_it_is_restored(echo):
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        assert asked(connection) == ANSWER
        proxy.silence()
        connection.sendall(b"question\n")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.restore()
        connection.settimeout(10)
        assert connection.recv(100) == ANSWER


def test_a_cut_proxy_resets_what_is_open_and_what_comes(echo):
    with Proxy(echo) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            assert asked(connection) == ANSWER
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as late:
            late.recv(1)  # the reset may come before the connection is told to be one
        proxy.restore()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            assert asked(connection) == ANSWER
