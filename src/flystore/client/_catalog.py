"""Catalogues of runs: looked up by uid, the first characters of one, scan id, or newest first."""

from typing import Any, ClassVar

from flystore.model.errors import FlystoreError, InvalidRequest, NotFound
from flystore.model.queries import Eq, Like, encode_filters

from ._container import Container
from ._node import node_of
from ._session import is_missing, item_from_wire
from ._words import html_rows, human_time

SHORTEST_PARTIAL_UID = 5
"""Fewer characters fit too many runs to be meant."""

_SHOWN = 10  # of the latest runs, in a notebook


class CatalogOfRuns(Container):
    """A catalogue of runs, the oldest first.

    ========================  ==================================================================
    ``catalog[uid]``          the run of that uid; its first 5 or more characters do, if only one fits
    ``catalog[42860]``        the latest run of that scan id
    ``catalog[-1]``           the latest run; ``[-2]`` the one before it
    ``catalog[-10:]``         the latest ten, in order, as a list
    ========================  ==================================================================

    In `search`, `sort` and `distinct` keys mean those of the start document unless they begin with
    ``start.`` or ``stop.``: ``catalog.search(plan_name="count")``.
    """

    _prefixes: ClassVar[tuple[str, ...]] = ("start.", "stop.")

    def __getitem__(self, key: Any) -> Any:
        """Return a run, a list of runs, or a node below a run.

        Raises
        ------
        NotFound
            If there is none (it is a `KeyError` too).
        InvalidRequest
            If several runs fit; names them.
        """
        if isinstance(key, slice):
            return self._latest(key)
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            return super().__getitem__(key)
        number = key.__index__()
        return self._of_scan_id(number) if number > 0 else self._by_age(number)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            return super().__contains__(key)
        try:
            self[key]
        except FlystoreError as error:
            if is_missing(error):
                return False
            raise
        return True

    def _of_scan_id(self, number: int) -> Any:
        params = [*encode_filters((*self._queries, Eq("start.scan_id", number))), ("sort", "-")]
        for resource in self._session.search(self.path, params, limit=1):
            return node_of(self._session, item_from_wire(resource))
        raise NotFound(f"there is no run with scan id {number} in {self._shown_path}", scan_id=number)

    def _by_age(self, number: int) -> Any:
        try:
            return self.values()[number]
        except IndexError as error:
            raise NotFound(f"there are only {len(self)} runs in {self._shown_path}, no number {number}") from error

    def _latest(self, place: slice) -> list[Any]:
        if any(bound is not None and bound >= 0 for bound in (place.start, place.stop)):
            raise InvalidRequest(
                "numbers from 0 up mean scan ids, so slices count from the end: catalog[-10:]. "
                "By position use catalog.values()[0:10]."
            )
        return self.values()[place]

    def _elsewhere(self, segments: tuple[str, ...], error: NotFound) -> Any:
        if len(segments) > 1:
            return super()._elsewhere(segments, error)
        partial = segments[0]
        run = self._of_partial_uid(partial)
        if run is not None:
            return run
        hint = ""
        if len(partial) < SHORTEST_PARTIAL_UID:
            hint = f"; of a uid at least {SHORTEST_PARTIAL_UID} characters are needed"
        raise NotFound(f"there is no run {partial!r} in {self._shown_path}{hint}", key=partial) from error

    def _filtered_child(self, segments: tuple[str, ...]) -> Any:
        try:
            return super()._filtered_child(segments)
        except NotFound as error:
            if not is_missing(error):
                raise
            run = self._of_partial_uid(segments[0])
            if run is None:
                raise
            return run if len(segments) == 1 else run[segments[1:]]

    def _of_partial_uid(self, partial: str) -> Any:
        """Return the one run whose uid begins with `partial`, None if there is none."""
        if len(partial) < SHORTEST_PARTIAL_UID:
            return None
        # Not every service takes a backslash for quoting, so wildcards are let through and sorted out here.
        pattern = partial.replace("\\", "_").replace("%", "_") + "%"
        params = encode_filters((*self._queries, Like("start.uid", pattern)))
        found = [item_from_wire(resource) for resource in self._session.search(self.path, params, limit=20)]
        fitting = [item for item in found if item.key.startswith(partial)]
        if len(fitting) > 1:
            uids = ", ".join(item.key for item in fitting[:5])
            more = " and more" if len(fitting) > 5 else ""
            raise InvalidRequest(
                f"{len(fitting)} runs begin with {partial!r}: {uids}{more}. Write more of the uid.",
                uids=[item.key for item in fitting],
            )
        return node_of(self._session, fitting[0]) if fitting else None

    def _repr_html_(self) -> str:
        try:
            latest = reversed(self.values().tail(_SHOWN))
            rows = [(_scan_in_words(run.metadata.get("start", {})), run.key) for run in latest]
        except FlystoreError:
            rows = []
        return html_rows([("runs", self._contents_in_words()), *rows])

    def _contents_in_words(self) -> str:
        try:
            count = len(self)
            latest = self.values().tail(1)
        except FlystoreError as error:
            return f"cannot be listed now ({error})"
        if not count:
            return "no runs yet" if not self._queries else "no run fits"
        runs = f"{count} run{'s' if count != 1 else ''}"
        start = latest[0].metadata.get("start", {}) if latest else {}
        return f"{runs}, the latest {_scan_in_words(start)}"


def _scan_in_words(start: dict[str, Any]) -> str:
    scan = f"scan {start['scan_id']}, " if "scan_id" in start else ""
    plan = f"{start['plan_name']}, " if "plan_name" in start else ""
    return f"{scan}{plan}{human_time(start.get('time'))}"
