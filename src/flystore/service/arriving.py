"""Batches as they arrive: from bytes to documents, in columns where they allow it."""

from collections.abc import Mapping, Sequence

import msgspec

from flystore.model.blocks import Item, decode_batch
from flystore.model.errors import Damaged, InvalidRequest
from flystore.model.frames import FrameDecoder, frame, is_document, payloads_in, split_frames


class Arrived(msgspec.Struct, frozen=True):
    """The documents of one batch.

    Attributes
    ----------
    frames : bytes
        The documents and their templates, as the log keeps them.
    items : list of Item
    digests : list of bytes
        16 bytes a document.
    templates : dict of int to bytes
        Those of the run, with those of the batch.
    """

    frames: bytes
    items: list[Item]
    digests: list[bytes]
    templates: dict[int, bytes]


def split(body: bytes) -> list[bytes]:
    """Return the payloads of a batch, documents and templates.

    Raises
    ------
    InvalidRequest
        If a frame is cut, fails its checksum or holds something else, or there is no document.
    """
    payloads, end = payloads_in(body)
    if end != len(body):
        try:
            list(split_frames(body, where="the batch"))
        except Damaged as error:
            raise InvalidRequest(f"{error.message}; nothing of it was stored", **error.facts) from error
    if not any(map(is_document, payloads)):
        raise InvalidRequest("the batch holds no document")
    return payloads


def decoded(body: bytes, payloads: Sequence[bytes], templates: Mapping[int, bytes], first: int) -> Arrived:
    """Return the documents of a batch.

    Parameters
    ----------
    payloads
        Of `body`; at least one is a document.
    templates
        Of the run so far.
    first : int
        Ordinal of the first document.

    Raises
    ------
    InvalidRequest
        If a payload cannot be decoded.
    """
    end = len(payloads)
    while not is_document(payloads[end - 1]):
        # It belongs to a document that comes with the next batch, and is sent again with that.
        end -= 1
        FrameDecoder().decode(payloads[end])
    decoder = FrameDecoder(templates)
    kept = payloads if end == len(payloads) else payloads[:end]
    found = decode_batch(decoder, kept, first)
    frames = body if kept is payloads else b"".join(map(frame, kept))
    return Arrived(frames, found.items, found.digests, decoder.templates)


def beyond(payloads: Sequence[bytes], known: int) -> tuple[bytes, list[bytes]]:
    """Return frames and payloads of all but the first `known` documents, with the templates just before the rest."""
    at = 0
    while known:
        known -= is_document(payloads[at])
        at += 1
    rest = list(payloads[at:])
    return b"".join(map(frame, rest)), rest
