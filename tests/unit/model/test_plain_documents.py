"""If these fail, StreamDatums are journaled differently from how they would be with care, and hashes do not match."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from flystore.model.encoding import encode
from flystore.model.frames import FrameDecoder, FrameEncoder

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.just("\ud800"),
    st.just(np.int64(3)), st.just((1, 2)), st.just([1, {"a": 2}]),
)  # fmt: skip
_KEYS = st.sampled_from(["uid", "indices", "seq_nums", "\ud800", "é"]) | st.integers(0, 3)
_PARTS = _SCALARS | st.dictionaries(_KEYS, _SCALARS | st.dictionaries(_KEYS, _SCALARS, max_size=2), max_size=3)


@given(st.dictionaries(_KEYS, _PARTS, max_size=5))
@example({"uid": "a/0", "indices": {"start": 0, "stop": 1}, "seq_nums": {"start": 1, "stop": 2}})
@example({"uid": "a/0", "indices": {"start": 2**70, "stop": 1}})
@example({"uid": "a/0", "indices": {0: 1}})
def test_a_stream_datum_is_encoded_as_any_document_and_comes_back(doc):
    (payload,) = FrameEncoder().encode("stream_datum", doc)
    assert payload == encode([0, "stream_datum", doc])
    assert FrameDecoder().decode(payload) == ("stream_datum", doc)
