"""The reference pages list what the code has.

If these fail, somebody looks up an error that is not in the book.
"""

import re
from pathlib import Path

from flystore.http.failures import status_of
from flystore.model import errors

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
