"""Runs: their documents, streams and verdict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from flystore.model.errors import FlystoreError, NotFound
from flystore.wire import api_path

from ._align_request import How, Request
from ._container import Container
from ._documents import Documents
from ._follow import Calling, Change, Followed
from ._follow_documents import FollowedDocuments
from ._run_align import align_streams
from ._session import is_missing, item_from_wire
from ._stream import Stream
from ._verdict import Verdict
from ._words import html_rows, human_duration, human_time, listed


class Run(Container):
    """One run, from its start to its stop; a mapping of stream names to streams.

    ``run["primary"]`` and ``run["streams/primary"]`` are the same stream, ``run["primary/det"]`` one of
    its variables.
    """

    @property
    def start(self) -> dict[str, Any]:
        """The start document; empty if the service has none."""
        return dict(self.metadata.get("start") or {})

    @property
    def stop(self) -> dict[str, Any] | None:
        """The stop document; None while the run goes on, or if its writer never finished it."""
        stop = self.metadata.get("stop")
        return dict(stop) if stop else None

    @property
    def uid(self) -> str:
        return str(self.start.get("uid", self.key))

    @property
    def scan_id(self) -> int | None:
        """Number that people know the run by; not unique. None if it has none."""
        return self.start.get("scan_id")

    # --- streams ------------------------------------------------------------------------------

    def _elsewhere(self, segments: tuple[str, ...], error: NotFound) -> Any:
        # Older writers put a container `streams` between the run and its streams; either way both work.
        first, rest = segments[0], segments[1:]
        if first == "streams":
            return self._at(rest) if rest else Container(self._session, self._item)
        try:
            nested = self._nested_streams()
            return super()._elsewhere(segments, error) if nested is None else nested[segments]
        except NotFound as missing:
            if rest or not is_missing(missing):
                raise
            there = self._streams_in_words()
            raise NotFound(f"run {self.uid} has no stream {first!r}; it has {there}", key=first) from error

    def _nested_streams(self) -> Container | None:
        """Return the container between the run and its streams, None if there is none."""
        try:
            item = self._session.item((*self.path, "streams"))
        except NotFound:
            return None
        if item.path != (*self.path, "streams"):
            return None  # an alias of the run itself
        return None if item.has_spec("BlueskyEventStream") else Container(self._session, item)

    def _resources(
        self, *, offset: int = 0, limit: int | None = None, backwards: bool = False, keys_only: bool = False
    ) -> Iterator[dict[str, Any]]:
        found = super()._resources(offset=offset, limit=limit, backwards=backwards)
        for resource in found:
            item = item_from_wire(resource)
            if item.key == "streams" and not item.has_spec("BlueskyEventStream"):
                yield from Container(self._session, item)._resources(
                    offset=offset, limit=limit, backwards=backwards, keys_only=keys_only
                )
                return
            yield resource

    def __len__(self) -> int:
        return sum(1 for _ in self._resources())

    @property
    def descriptors(self) -> list[dict[str, Any]]:
        """Descriptor documents of all streams, as far as the streams' metadata keep them."""
        streams = (stream for stream in self.values() if isinstance(stream, Stream))
        return [descriptor for stream in streams for descriptor in stream.descriptors]

    # --- time and position --------------------------------------------------------------------

    def align(
        self,
        reference: str,
        others: Mapping[str, How | Mapping[str, How]],
        *,
        tolerance: float | Mapping[str, float | None] | None = None,
        offset: Mapping[str, float] | None = None,
        times: Mapping[str, Any] | None = None,
        window: Any = None,
        variables: Sequence[str] | None = None,
        lazy: bool = False,
    ) -> Any:
        """Return several streams on the events of one of them, as an xarray Dataset.

        ``run.align("primary", {"ring_current_monitor": "linear"}, tolerance=0.5)`` gives what
        ``run["primary"].read()`` gives and the ring current at each of its events.

        How a stream, or each of some of its variables, is put there is said by a word:

        ============ =========================================================================================
        ``ratio``    by count, exactly: event e of 4 has rows 3e-2 to 3e of 12, on an axis ``<stream>_row``; event
                     e of 12 has row ⌈e/3⌉ of 4. Rows are told apart by seq_num, so lost ones shift nothing. The
                     ratio is that of the numbers of events in the stop document of a run that ended well; else, and
                     whenever you like, give it: ``3``, or ``Fraction(1, 3)``
        ``nearest``  the sample nearest in time. Without a tolerance none for events outside the samples' time
        ``previous`` the last sample at or before the event, for signals that are sent when they change
        ``linear``   between the samples on either side, weighted by time; float64
        ``mean``     the mean of the samples in the event's window
        ``count``    their number
        ``last``     the last one
        ============ =========================================================================================

        Each variable comes with a coordinate ``<variable>_match``, the verdict for each event: ``exact`` (of this
        very event, or at its very time), ``within`` (the tolerance, or the window), ``partial`` (some of its rows
        were lost), or why there is no value: ``beyond`` (the tolerance), ``outside`` (before the first sample or
        behind the last), ``empty`` (no sample in the window), ``missing`` (the row was lost, or nobody knows the
        event's time or window). No value is NaN, and dtypes change for it as in `Stream.read`; a `MissingRows`
        warning counts them. Where the value is one sample's, ``<variable>_time`` tells when that was taken.

        Parameters
        ----------
        reference : str
            The stream whose events are kept; as `Stream.read` gives it, with ``seq_num`` always.
        others : mapping of str to word, or to mapping of variable to word
            A list of words gives a variable for each, ``<variable>_<word>``. A name that is taken gets the stream's
            name in front.
        tolerance : float or mapping of str to float, optional
            Seconds between an event and a sample (for ``linear``: either of the two), for all streams or for each;
            that far is within. None: any distance.
        offset : mapping of str to float, optional
            Seconds to be added to a stream's times, the reference among them, before anything is compared: what its
            clock is behind.
        times : mapping of str to times, optional
            Of a stream: a `PandaCapture`, the name of one of its variables, or an array with a time for each row that
            `Stream.read` gives; Unix seconds or datetime64. None: for the reference the times of its events, for
            the others those of the values (``ts_<variable>``) and else of the events. Streams that come from files
            alone have none. A `PandaCapture` adds its gates and mean positions if it is the reference's.
        window : str or pair of (n,) arrays, optional
            Of each event: ``before``, since the event before or the start of the run, up to and with the event
            itself; ``after``, from the event to the next or the end of the run; or starts and stops in Unix
            seconds, stops left out. None: the gates if the reference has a `PandaCapture` that knows them,
            else ``before``.
        variables : sequence of str, optional
            Of the reference; None means all, an empty list none.
        lazy : bool
            Whether arrays that rows are only taken from are left with the service, as dask arrays.

        Raises
        ------
        NotFound
            If there is no stream or variable of a name.
        InvalidRequest
            If a word or number makes no sense, a stream that is put by time has none, the numbers of rows give no
            whole ratio, or text is to be interpolated or averaged.
        """
        asked = Request(reference, others, tolerance, offset, times, window, variables, lazy)
        return align_streams(self, asked)

    # --- following ----------------------------------------------------------------------------

    @overload
    def follow(
        self, callback: None = None, *, after: str | None = None, lag: int | None = None, timeout: float | None = None
    ) -> Followed[Change]: ...

    @overload
    def follow(
        self,
        callback: Callable[[Change], Any],
        *,
        after: str | None = None,
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Calling[Change]: ...

    def follow(
        self,
        callback: Callable[[Change], Any] | None = None,
        *,
        after: str | None = None,
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Followed[Change] | Calling[Change]:
        """Follow what changes in this run, from its beginning to its end.

        As `Container.follow`, but it begins with the run unless `after` says otherwise, and ends when the run has ended
        and all its changes were told. For new rows follow a stream, for documents `documents`.
        """
        return self._followed(callback, after, lag, timeout, to_the_end=True)

    # --- documents and verdict ----------------------------------------------------------------

    @overload
    def documents(self, first: int = 0, *, follow: Literal[False] = False) -> Documents: ...

    @overload
    def documents(self, first: int = 0, *, follow: Literal[True]) -> FollowedDocuments: ...

    def documents(self, first: int = 0, *, follow: bool = False) -> Documents | FollowedDocuments:
        """Return the run's documents as an iterator of (name, document).

        For runs of `RunWriter` they are exactly what it was given; its ``reconstructed`` tells
        otherwise.

        Parameters
        ----------
        first : int
            Ordinal to begin with; 0 is the start document.
        follow : bool
            Wait for more, each as soon as it is stored, until the stop document or until the run is declared
            interrupted. It goes on by itself after a connection broke or the service was started anew. Its `call`
            gives the documents to a callback of Bluesky, in a thread:
            ``run.documents(follow=True).call(LiveTable(["det"]))``.

        Raises
        ------
        NotFound
            If the service keeps no documents (stock Tiled has no such route).
        InvalidRequest
            With `follow`, at the first look: if the writer of the run does not send documents.
        """
        if follow:
            return FollowedDocuments(self.transport, self.key, first)
        return Documents(self.transport, self.key, first)

    @property
    def documents_are_reconstructed(self) -> bool:
        """Whether the writer never sent the documents, so that they are worked out from what it stored."""
        with self.documents() as documents:
            return documents.reconstructed

    @property
    def verdict(self) -> Verdict:
        """What is complete and what is missing in this run, as of now.

        Raises
        ------
        NotFound
            If the service gives no verdicts (stock Tiled).
        """
        return Verdict(self._session.record(api_path("verdict", *self.path)))

    def check(self) -> Verdict:
        """Have the service look into the files of this run, and return the verdict."""
        return Verdict(self._session.record(api_path("verdict", *self.path), [("look", True)]))

    def declare_interrupted(self, reason: str) -> Verdict:
        """Say that this run lost its writer and will get no stop document; return the verdict.

        Documents that come all the same are stored, and a late stop document wins.

        Raises
        ------
        Conflict
            If the run has its stop document, or this was said before.
        """
        return Verdict(self._session.record(api_path("close", *self.path), method="POST", body={"reason": reason}))

    # --- showing ------------------------------------------------------------------------------

    def _facts(self) -> list[tuple[str, str]]:
        """Return (name, words) of what tells this run from others."""
        start, stop = self.start, self.stop
        facts = [("uid", self.uid)]
        if start.get("plan_name"):
            facts.append(("plan", str(start["plan_name"])))
        facts.append(("when", human_time(start.get("time"))))
        if stop is None:
            facts.append(("state", "no stop document yet"))
        else:
            facts.append(("state", _outcome(start, stop)))
        facts.append(("streams", self._streams_in_words()))
        return facts

    def _streams_in_words(self) -> str:
        counts = (self.stop or {}).get("num_events") or {}
        try:
            names = list(self.keys())
        except FlystoreError as error:
            return f"cannot be listed now ({error})"
        if not names:
            return "none"
        return listed(f"{name} ({counts[name]} events)" if name in counts else name for name in names)

    def __repr__(self) -> str:
        scan = f"scan {self.scan_id}" if self.scan_id is not None else "run"
        words = ", ".join(
            text if name in ("plan", "when", "state") else f"{name} {text}"
            for name, text in self._facts()
            if name != "uid"
        )
        return f"<Run {self.uid[:8]}: {scan}, {words}>"

    def _repr_html_(self) -> str:
        scan = [("scan id", str(self.scan_id))] if self.scan_id is not None else []
        return html_rows([*scan, *self._facts()])


def _outcome(start: dict[str, Any], stop: dict[str, Any]) -> str:
    status = str(stop.get("exit_status", "finished"))
    reason = f" ({stop['reason']})" if stop.get("reason") else ""
    try:
        took = f" after {human_duration(float(stop['time']) - float(start['time']))}"
    except (KeyError, TypeError, ValueError):
        took = ""
    return f"{status}{took}{reason}"
