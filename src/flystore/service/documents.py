"""A run's documents again: exactly from the log, or rebuilt for runs that came without them."""

from collections.abc import Iterator

import msgspec

from flystore.catalog import Catalog, LogRecord
from flystore.model.frames import FrameDecoder, FrameEncoder, frame, is_document

from .browse import run_at
from .log_bodies import frames_of, in_order, payloads_of
from .reconstruction import Document, reconstructed


class FoundDocuments(msgspec.Struct, frozen=True):
    """Frames of a run's documents.

    Attributes
    ----------
    pieces : iterator of bytes
        Whole frames, some at a time, read as they are asked for.
    reconstructed : bool
        True if the writer never sent the documents and these are worked out from what it stored.
    end : int
        Ordinal of the document after them.
    """

    pieces: Iterator[bytes]
    reconstructed: bool
    end: int


class ReadDocuments(msgspec.Struct, frozen=True):
    """A run's documents.

    Attributes
    ----------
    documents : iterator of (name, document)
    reconstructed : bool
        As in `FoundDocuments`.
    """

    documents: Iterator[Document]
    reconstructed: bool


class Documents:
    """Serves documents; those that came as such without holding a run in memory."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def frames(self, path: tuple[str, ...], first: int = 0) -> FoundDocuments:
        """Return the frames of run `path` from ordinal `first` on; templates are always all there.

        Raises
        ------
        NotFound
            If `path` is not a run.
        """
        with self._catalog.read() as snapshot:
            run = run_at(snapshot, path)
        if run.writer == "documents":
            return FoundDocuments(self._logged(run.uid, first, run.watermark), False, run.watermark)
        # Rebuilt before the first byte is sent, so that what cannot be read is an answer and no broken stream.
        documents = list(reconstructed(self._catalog, path))
        return FoundDocuments(_encoded(documents, first), True, len(documents))

    def read(self, path: tuple[str, ...], *, as_text: bool = False) -> ReadDocuments:
        """Return the documents of run `path` themselves, read as they are asked for.

        Parameters
        ----------
        as_text
            They are only encoded again: events may be structs instead of dictionaries.

        Raises
        ------
        NotFound
            If `path` is not a run.
        """
        with self._catalog.read() as snapshot:
            run = run_at(snapshot, path)
        if run.writer == "documents":
            return ReadDocuments(self._decoded(run.uid, run.watermark, as_text), False)
        return ReadDocuments(reconstructed(self._catalog, path), True)

    def _decoded(self, uid: str, watermark: int, as_text: bool) -> Iterator[Document]:
        decoder = FrameDecoder(as_text=as_text)
        for record in in_order(self._catalog.documents(uid), uid, watermark):
            for payload in payloads_of(record):
                document = decoder.decode(payload)
                if document is not None:
                    yield document

    def _logged(self, uid: str, first: int, watermark: int) -> Iterator[bytes]:
        # Templates come before the events that need them, so all records are walked from the first on.
        for record in in_order(self._catalog.documents(uid, 0, watermark), uid, watermark):
            piece = frames_from(record, first)
            if piece:
                yield piece


def frames_from(record: LogRecord, first: int) -> bytes:
    """Return the frames of a record of documents, those of documents before `first` left out, but no template."""
    ordinal, kept = record.first_ordinal or 0, []
    if ordinal >= first:
        return frames_of(record)
    for payload in payloads_of(record):
        document = is_document(payload)
        if not document or ordinal >= first:
            kept.append(frame(payload))
        ordinal += document
    return b"".join(kept)


def _encoded(documents: list[Document], first: int) -> Iterator[bytes]:
    encoder = FrameEncoder()
    for ordinal, (name, doc) in enumerate(documents):
        payloads = encoder.encode(name, doc)
        if ordinal < first:
            payloads = payloads[:-1]
        if payloads:
            yield b"".join(frame(payload) for payload in payloads)
