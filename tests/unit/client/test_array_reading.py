"""Arrays of a service of the protocol (stock Tiled, on a socket) read like numpy arrays.

If these fail, people get other numbers than were stored, or an error where numpy would answer.
"""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from flystore.client import Array, from_uri
from flystore.client import _array as array_module
from flystore.client import _pieces as pieces_module
from flystore.model.errors import FlystoreError, InvalidRequest, NotFound, OutOfBounds
from flystore.testing.stock_server import API_KEY

STACK = np.arange(7 * 5 * 4, dtype="<u2").reshape(7, 5, 4)

KINDS = {
    "bool": np.array([True, False, True]),
    "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "complex": np.array([1 + 2j, 3 - 4j]),
    "text": np.array(["a", "längst", ""]),
    "bytes": np.array([b"ab", b"c"]),
    "times": np.array(["2026-01-01", "NaT"], "M8[ns]"),
    "float16": np.linspace(0, 1, 5, dtype="f2"),
}


@pytest.fixture(scope="module")
def written(stock_client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = stock_client.create_container("arrays")
        home.write_array(STACK, key="stack", dims=("frame", "y", "x"))
        home.write_array(np.float64(3.5) * np.ones(()), key="scalar")
        home.write_array(np.zeros((0, 3)), key="empty")
        for name, values in KINDS.items():
            home.write_array(values, key=name)


@pytest.fixture
def arrays(catalog, written):
    return catalog["arrays"]


@pytest.fixture
def stack(arrays):
    return arrays["stack"]


def test_an_array_says_what_it_is_before_it_is_read(stack):
    assert isinstance(stack, Array)
    assert (stack.shape, stack.dtype, stack.ndim) == ((7, 5, 4), np.dtype("<u2"), 3)
    assert (stack.size, stack.nbytes, len(stack)) == (140, 280, 7)
    assert stack.dims == ("frame", "y", "x")
    assert tuple(map(sum, stack.chunks)) == stack.shape


def test_its_repr_tells_a_person_what_they_have(stack):
    assert repr(stack) == "<Array /arrays/stack: 7 × 5 × 4 uint16, 280 B, axes frame, y, x>"


def test_the_whole_array_is_what_was_written(stack):
    found = stack.read()
    np.testing.assert_array_equal(found, STACK)
    assert found.dtype == STACK.dtype


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=basic_indices(STACK.shape, allow_newaxis=False))
def test_every_numpy_slice_gives_what_numpy_gives(stack, index):
    np.testing.assert_array_equal(stack[index], STACK[index])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=basic_indices(STACK.shape, allow_newaxis=False), wanted=st.integers(8, 100))
def test_reads_in_many_requests_at_once_give_the_same(stack, index, wanted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module.cut, "__kwdefaults__", {"wanted": wanted, "most": 2 * wanted})
        np.testing.assert_array_equal(stack[index], STACK[index])


@pytest.mark.parametrize("rows", [[0], [5, 1, 1, 2], [-1, 0], np.array([True, False] * 3 + [True]), []])
def test_rows_can_be_picked_by_a_list_or_a_mask(stack, rows):
    index = np.asarray(rows, int) if isinstance(rows, list) else rows
    np.testing.assert_array_equal(stack[rows], STACK[index])
    np.testing.assert_array_equal(stack[rows, ::-1, 0], STACK[index][:, ::-1, 0])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_value_comes_back_with_its_dtype(arrays, name):
    found = arrays[name].read()
    np.testing.assert_array_equal(found, KINDS[name])
    assert found.dtype == KINDS[name].dtype


def test_a_scalar_is_read_without_axes(arrays):
    scalar = arrays["scalar"]
    assert scalar.read().shape == ()
    assert scalar[()] == scalar[...] == 3.5
    with pytest.raises(TypeError, match="no length"):
        len(scalar)


def test_an_array_without_items_is_not_asked_for(arrays, monkeypatch):
    empty = arrays["empty"]
    monkeypatch.setattr(type(empty.transport), "readinto", None)
    assert empty.read().shape == (0, 3)
    assert empty[:, 1].shape == (0,)


def test_numpy_functions_take_it(stack):
    assert np.asarray(stack).sum() == STACK.sum()
    assert np.asarray(stack, dtype=float).dtype == float
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(stack, copy=False)


def test_it_can_be_gone_through_row_by_row(stack):
    np.testing.assert_array_equal(np.stack(list(stack)), STACK)


def test_a_lazy_array_reads_when_computed(stack):
    lazy = stack.dask
    assert (lazy.shape, lazy.dtype) == (STACK.shape, STACK.dtype)
    np.testing.assert_array_equal(lazy[1:5, 0].compute(), STACK[1:5, 0])
    np.testing.assert_array_equal(lazy.sum(axis=0).compute(), STACK.sum(axis=0))
    assert stack.to_dask(chunks=(2, 5, 4)).chunks[0] == (2, 2, 2, 1)


def test_a_lazy_scalar_can_be_computed(arrays):
    assert arrays["scalar"].dask.compute() == 3.5


def test_an_array_can_be_handed_to_another_process(stack):
    copy = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(copy[2], STACK[2])
    copy.close()


def test_indices_outside_are_refused_before_anything_is_sent(stack):
    with pytest.raises(OutOfBounds):
        stack[7]
    with pytest.raises(IndexError):
        stack[0, 0, 4]
    with pytest.raises(InvalidRequest, match="new axes"):
        stack[None]


def test_an_array_of_another_size_than_known_is_never_read_as_if_it_were_the_same(stock_client, catalog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writable = stock_client.write_array(np.arange(4), key="changing")
    array = catalog["changing"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writable.delete(external_only=False)
        stock_client.write_array(np.arange(6, dtype="i2"), key="changing")
    # Stock Tiled says it with a status of its own; what counts is that no numbers come.
    with pytest.raises(FlystoreError, match="shape"):
        array.read()
    assert array.refresh().shape == (6,)
    np.testing.assert_array_equal(array.read(), np.arange(6))


def test_an_array_nobody_announced_frames_for_says_so(stack):
    with pytest.raises(NotFound, match="nobody announced which frames"):
        stack.frames()
    with pytest.raises(KeyError):
        _ = stack.seq_num


def test_the_first_failure_of_requests_sent_together_is_raised():
    def work(number):
        if number >= 3:
            raise OutOfBounds(f"piece {number}")

    with pytest.raises(OutOfBounds, match="piece"):
        array_module.in_parallel(work, list(range(8)))


def test_a_node_is_found_by_its_address(stack):
    with from_uri(stack.uri, api_key=API_KEY) as again:
        assert again == stack
        assert hash(again) == hash(stack)
        np.testing.assert_array_equal(again.read(), STACK)
