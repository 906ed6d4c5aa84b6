"""The reference pages list what the code has.

If these fail, somebody looks up an error that is not in the book.
"""

import re
from pathlib import Path

from flystore.http.failures import status_of
from flystore.model import errors
from flystore.service import Limits

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def every_class(cls=errors.FlystoreError):
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from every_class(child)


def test_every_kind_of_error_is_listed_with_its_status():
    page = (PAGES / "errors.md").read_text()
    listed = {
        kind: (int(status), name)
        for kind, status, name in re.findall(r"^\| `([a-z-]+)` \| (\d+) \| `(\w+)`", page, re.M)
    }
    known = {cls.kind: (status_of(cls("x")), cls.__name__) for cls in every_class() if cls is not errors.FlystoreError}
    assert listed == known


def test_every_limit_is_listed_with_its_default():
    page = (PAGES / "limits.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| ([0-9.]+(?: [KMG]iB)?) \|", page, re.M))
    known = {name: getattr(Limits(), name) for name in Limits.__struct_fields__}
    read = Limits.parse(f"{name}={value}" for name, value in listed.items())
    assert list(listed) == list(known)
    assert {name: getattr(read, name) for name in listed} == known
