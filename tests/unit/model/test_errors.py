"""An error is the same on both sides of the wire.

If these fail, a program that handles one kind of error meets another, or a message loses its facts.
"""

import copy
import pickle

import pytest

from flystore.model import errors
from flystore.model.errors import FlystoreError, error_of_kind


def every_class(cls=FlystoreError):
    return [cls, *(found for child in cls.__subclasses__() for found in every_class(child))]


ERRORS = [cls for cls in every_class() if cls.__module__ == errors.__name__]


def test_kinds_are_unique_and_never_change():
    assert {cls.__name__: cls.kind for cls in ERRORS} == {
        "FlystoreError": "error",
        "NotFound": "not-found",
        "MissingAsset": "missing-asset",
        "InvalidRequest": "invalid-request",
        "OutOfBounds": "out-of-bounds",
        "TooLarge": "too-large",
        "Unsupported": "unsupported",
        "Conflict": "conflict",
        "SequenceGap": "sequence-gap",
        "ContentClash": "content-clash",
        "StaleEpoch": "stale-epoch",
        "MadeFromDocuments": "made-from-documents",
        "NotPermitted": "not-permitted",
        "Unauthenticated": "unauthenticated",
        "WrongToken": "wrong-token",
        "OutsideRoots": "outside-roots",
        "Unreadable": "unreadable",
        "Truncated": "truncated",
        "NotReady": "not-ready",
        "Unavailable": "unavailable",
        "DeadlineExceeded": "deadline-exceeded",
        "DiskFull": "disk-full",
        "SyncFailed": "sync-failed",
        "JournalFull": "journal-full",
        "Misconfigured": "misconfigured",
        "Damaged": "damaged",
        "Changed": "changed",
        "NoAccess": "no-access",
    }


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_comes_back_from_its_kind_with_message_and_facts(cls):
    raised = cls("the file ends early", announced=5, found=3)
    again = error_of_kind(raised.kind, raised.message, raised.facts)
    assert type(again) is cls
    assert str(again) == "the file ends early"
    assert (again.announced, again.found) == (5, 3)


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize("through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_survives_a_process_boundary(cls, through):
    again = through(cls("no", expected=7))
    assert type(again) is cls
    assert (str(again), again.expected, again.facts) == ("no", 7, {"expected": 7})


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.NotFound, KeyError),
        (errors.MissingAsset, KeyError),
        (errors.InvalidRequest, ValueError),
        (errors.OutOfBounds, IndexError),
        (errors.DeadlineExceeded, TimeoutError),
        (errors.JournalFull, OSError),
    ],
)
def test_code_that_knows_only_built_in_errors_can_handle_it(cls, builtin):
    with pytest.raises(builtin, match=r"^what and where$"):
        raise cls("what and where")


def test_a_kind_that_a_newer_service_invented_is_still_an_error():
    error = error_of_kind("from-the-future", "message", {"limit": 3})
    assert type(error) is FlystoreError
    assert error.limit == 3


@pytest.mark.parametrize("name", ["message", "self", "facts", "args", "kind", "cls"])
def test_facts_may_have_any_name(name):
    error = error_of_kind("conflict", "two writers", {name: "x"})
    assert error.facts == {name: "x"}
    assert str(error) == "two writers"
    assert error.kind == "conflict"


def test_an_attribute_that_is_no_fact_is_missing():
    assert not hasattr(errors.Conflict("no"), "expected")


def test_a_class_that_inherits_its_kind_does_not_stand_for_it():
    class Narrower(errors.Conflict):
        pass

    assert type(error_of_kind("conflict", "x")) is errors.Conflict
    assert Narrower.kind == "conflict"
