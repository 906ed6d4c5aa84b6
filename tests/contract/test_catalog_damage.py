"""What the catalogue finds wrong with itself: rows that fail their checksum, operations that fail their hash, indexes.

If these fail, a damaged row is a wrong value and not an error, or ``flystore verify`` does not see what was lost.
"""

import msgspec
import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog, is_as_stored, problem_of
from flystore.catalog._migrations import MIGRATIONS, migrate
from flystore.catalog._schema import schema_version, segments
from flystore.model.errors import Damaged
from flystore.model.structures import Family


@pytest.fixture
def filled(catalog):
    with catalog.write() as tx:
        tx.put_node(("box",), Family.CONTAINER, [], {"colour": "blue"}, None)
        tx.put_node(("box", "inner"), Family.CONTAINER, [], {}, None)
        for first in (0, 3, 6):
            tx.append_segment("box/rows", first, 3, b"rows %d" % first)
        tx.append_operation(("box",), "create", b"body", 1.0)
    return catalog


def change(catalog, statement):
    """Change what is stored behind the catalogue's back, as damage does."""
    with catalog.write() as tx:
        tx._session.connection.execute(statement)


def test_rows_are_stored_with_their_checksum(filled):
    with filled.read() as snapshot:
        stored = snapshot.stored_segments()
        assert [(series, segment.first_row) for _, series, segment in stored] == [("box/rows", n) for n in (0, 3, 6)]
        assert all(segment.crc is not None and problem_of(segment) is None for _, _, segment in stored)
        last = stored[1][0]
        assert [segment.first_row for _, _, segment in snapshot.stored_segments(last)] == [6]
        assert len(snapshot.stored_segments(limit=2)) == 2


def test_rows_that_fail_their_checksum_are_not_given(filled):
    change(filled, segments.update().where(segments.c.first_row == 3).values(body=b"rows 4"))
    with filled.read() as snapshot:
        assert [segment.first_row for segment in snapshot.segments("box/rows", 0, 3)] == [0]
        with pytest.raises(Damaged, match=r"the segment of box/rows at row 3 fails its checksum") as found:
            list(snapshot.segments("box/rows"))
        assert found.value.facts == {"series": "box/rows", "first_row": 3}
        assert [problem_of(segment) for _, _, segment in snapshot.stored_segments()] == [
            None,
            "fails its checksum",
            None,
        ]


def test_rows_that_are_gone_are_not_passed_over(filled):
    change(filled, segments.delete().where(segments.c.first_row == 3))
    with filled.read() as snapshot:
        with pytest.raises(Damaged, match="should begin at row 3"):
            list(snapshot.segments("box/rows"))
        assert snapshot.broken_series() == ["box/rows"]


def test_rows_of_before_there_were_checksums_are_given(filled):
    change(filled, segments.update().values(crc=None))
    with filled.read() as snapshot:
        assert len(list(snapshot.segments("box/rows"))) == 3
        assert {problem_of(segment) for _, _, segment in snapshot.stored_segments()} == {None}
        assert snapshot.broken_series() == []


def test_an_operation_is_known_by_its_hash(filled):
    with filled.read() as snapshot:
        (record,) = snapshot.operations()
        assert snapshot.count_records("operation", snapshot.last_position()) == 1
        assert snapshot.count_records("documents", snapshot.last_position()) == 0
    assert is_as_stored(record) is True
    for part in ({"body": b"bodx"}, {"path": ("bax",)}, {"action": "delete"}):
        assert is_as_stored(msgspec.structs.replace(record, **part)) is False
    assert is_as_stored(msgspec.structs.replace(record, hashes=None)) is None


def test_a_whole_catalogue_has_no_problems(filled):
    with filled.read() as snapshot:
        ids = snapshot.node_ids()
        assert len(ids) == 3
        assert snapshot.node_ids(ids[0], 1) == [ids[1]]
        assert [snapshot.problems_of(snapshot.node_by_id(number)) for number in ids] == [[], [], []]
        assert snapshot.indexed_without_node() == []
        assert snapshot.count_runs() == 0


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE child_counts SET count = count + 1", "children are counted"),
        ("UPDATE nodes SET metadata = '{\"colour\": \"red\"}' WHERE path = 'box'", "search index"),
        ("UPDATE nodes SET parent_id = 1 WHERE path = 'box/inner'", "its parent is another node"),
        ("DELETE FROM leaves WHERE key = 'colour'", "search index"),
    ],
)
def test_what_is_kept_twice_must_agree(filled, statement, problem):
    change(filled, sa.text(statement))
    with filled.read() as snapshot:
        found = [why for number in snapshot.node_ids() for why in snapshot.problems_of(snapshot.node_by_id(number))]
    assert any(problem in why for why in found), found


def test_an_index_entry_of_no_node_is_found(filled):
    change(filled, sa.text("UPDATE leaves SET node_id = 77 WHERE key = 'colour'"))
    with filled.read() as snapshot:
        assert snapshot.indexed_without_node() == [77]


def test_a_catalogue_of_before_there_were_checksums_is_brought_up_to_date(catalog_url):
    with Catalog.open(catalog_url) as catalog:
        with catalog.write() as tx:
            tx.append_segment("old", 0, 1, b"old rows")
        change(catalog, sa.text("ALTER TABLE segments DROP COLUMN crc"))
        change(catalog, schema_version.update().values(version=1))
    with Catalog.open(catalog_url) as catalog:
        with catalog.write() as tx:
            tx.append_segment("old", 1, 1, b"new rows")
        with catalog.read() as snapshot:
            assert [segment.crc is None for segment in snapshot.segments("old")] == [True, False]
        migrate(catalog._database, MIGRATIONS, create=False)
