"""Containers: mappings of keys to nodes, searched and sorted by the service."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, overload

from flystore.model.errors import FlystoreError, InvalidRequest, NotFound
from flystore.model.queries import Eq, Lookup, Query, Verdict, encode_filters

from ._follow import Calling, Change, Followed, changes
from ._node import Node, node_of
from ._queries import prefixed, with_prefix
from ._session import Item, Session, is_missing, item_from_wire, node_route
from ._views import View
from ._words import listed

Sorting = tuple[tuple[str, int], ...]
"""Metadata keys and directions, 1 ascending and -1 descending."""


class Container(Node, Mapping[str, Any]):
    """A mapping of keys to nodes.

    ``container["a"]``, ``container["a/b/c"]`` and ``container["a", "b", "c"]`` each look up one node.
    Iteration, `keys`, `values` and `items` are in order of insertion unless sorted, and fetch only what
    is looked at: ``container.keys().head()``, ``container.values().last()``, ``container.items()[10:20]``.
    """

    _prefixes: ClassVar[tuple[str, ...]] = ()
    """What search puts in front of keys that do not begin with one of these; none: nothing."""

    def __init__(
        self,
        session: Session,
        item: Item,
        queries: tuple[Query, ...] = (),
        sorting: Sorting = (),
    ) -> None:
        super().__init__(session, item)
        self._queries = queries
        self._sorting = sorting

    __eq__ = Node.__eq__
    __hash__ = Node.__hash__

    # --- looking up ---------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        """Return the node at a key or path.

        Raises
        ------
        NotFound
            If nothing is there (it is a `KeyError` too).
        InvalidRequest
            If `key` is neither text nor a tuple of texts.
        """
        return self._at(segments_of(key))

    def __contains__(self, key: object) -> bool:
        try:
            self._at(segments_of(key))
        except FlystoreError as error:
            if is_missing(error) or isinstance(error, InvalidRequest):
                return False
            raise
        return True

    def _at(self, segments: tuple[str, ...]) -> Any:
        if not segments:
            return self
        if self._queries:
            return self._filtered_child(segments)
        try:
            return node_of(self._session, self._session.item((*self.path, *segments)))
        except NotFound as error:
            if not is_missing(error):
                raise
            return self._elsewhere(segments, error)

    def _elsewhere(self, segments: tuple[str, ...], error: NotFound) -> Any:
        """Find what is not at the path itself: a child may know other names for its own children."""
        if len(segments) > 1:
            child = self._at(segments[:1])
            if isinstance(child, Mapping):
                return child[segments[1:]]
        raise NotFound(f"there is no {'/'.join(segments)!r} in {self._shown_path}", key="/".join(segments)) from error

    def _filtered_child(self, segments: tuple[str, ...]) -> Any:
        params = encode_filters((*self._queries, Lookup(segments[0])))
        for resource in self._session.search(self.path, params, limit=1):
            child = node_of(self._session, item_from_wire(resource))
            return child if len(segments) == 1 else child[segments[1:]]  # type: ignore[index]
        raise NotFound(f"there is no {segments[0]!r} among what was searched for in {self._shown_path}")

    # --- going through ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return self._session.count(self.path, encode_filters(self._queries))

    def keys(self) -> View[str]:  # type: ignore[override]
        """Return the keys, in order."""
        return View(self, lambda resource: str(resource["id"]), keys_only=True)

    def values(self) -> View[Any]:  # type: ignore[override]
        """Return the nodes, in order."""
        return View(self, lambda resource: node_of(self._session, item_from_wire(resource)))

    def items(self) -> View[tuple[str, Any]]:  # type: ignore[override]
        """Return (key, node) pairs, in order."""
        return View(self, lambda resource: (str(resource["id"]), node_of(self._session, item_from_wire(resource))))

    def _resources(
        self, *, offset: int = 0, limit: int | None = None, backwards: bool = False, keys_only: bool = False
    ) -> Iterator[dict[str, Any]]:
        params: list[tuple[str, Any]] = [*encode_filters(self._queries)]
        params += [("sort", text) for text in self._sort_texts(backwards)]
        if keys_only:
            params.append(("fields", ""))
        found = self._session.search(self.path, params, offset=offset, limit=limit)
        if not backwards or self._sorting:
            return found
        return self._backwards_anyway(found, params, offset, limit)

    def _backwards_anyway(
        self,
        found: Iterator[dict[str, Any]],
        params: list[tuple[str, Any]],
        offset: int,
        limit: int | None,
    ) -> Iterator[dict[str, Any]]:
        """Go through `found`; where the service cannot sort (inside files) turn the whole listing round."""
        try:
            first = next(found, None)
        except InvalidRequest:
            plain = [pair for pair in params if pair[0] != "sort"]
            every = list(self._session.search(self.path, plain))[::-1]
            yield from every[offset : None if limit is None else offset + limit]
            return
        if first is not None:
            yield first
            yield from found

    def _sort_texts(self, backwards: bool) -> list[str]:
        if not backwards:
            return [("-" if direction < 0 else "") + key for key, direction in self._sorting]
        # The bare minus makes the order total: what the keys leave equal is turned round as well.
        return [("" if direction < 0 else "-") + key for key, direction in self._sorting] + ["-"]

    # --- following ----------------------------------------------------------------------------

    @overload
    def follow(
        self, callback: None = None, *, after: str | None = "now", lag: int | None = None, timeout: float | None = None
    ) -> Followed[Change]: ...

    @overload
    def follow(
        self,
        callback: Callable[[Change], Any],
        *,
        after: str | None = "now",
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Calling[Change]: ...

    def follow(
        self,
        callback: Callable[[Change], Any] | None = None,
        *,
        after: str | None = "now",
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Followed[Change] | Calling[Change]:
        """Follow what changes here and in all below: ``for change in catalog.follow(): …``.

        It waits for more, and goes on by itself after a connection broke or the service was started anew: no change
        is missed and none comes twice. Use it in a ``with`` block, or close it.

        Parameters
        ----------
        callback : callable, optional
            Called with each `Change` in a thread of its own, until what is returned is closed. None: iterate.
        after : str or None
            ``now``: only what comes. The `token` of a change: what came behind it, also in another program, and later.
            None: everything since the store was made.
        lag : int, optional
            If more changes than this wait to be told, they are skipped, and one `Change` says so: its `what` is
            ``lagged``. None: they are all told, as fast as they are taken.
        timeout : float, optional
            Seconds without a change after which the iteration ends; None: it waits for ever.

        Returns
        -------
        Followed or Calling
            An iterator of `Change`; or, with a callback, what ends it.

        Raises
        ------
        WrongToken
            At the first look: if `after` is of another store, or of this one before it was set back.
        """
        return self._followed(callback, after, lag, timeout, to_the_end=False)

    def _followed(
        self,
        callback: Callable[[Change], Any] | None,
        after: str | None,
        lag: int | None,
        timeout: float | None,
        *,
        to_the_end: bool,
    ) -> Followed[Change] | Calling[Change]:
        found = changes(self.transport, self.path, after=after, lag=lag, timeout=timeout, to_the_end=to_the_end)
        return found if callback is None else Calling(found, callback)

    # --- searching ----------------------------------------------------------------------------

    def search(self, *queries: Query, verdict: str | None = None, **equal: Any) -> Self:
        """Return the same container with only the children that match; searches add up.

        Parameters
        ----------
        *queries
            ``Key("plan_name") == "scan"``, ``FullText("gold")`` … all of which must match.
        verdict : str, optional
            Only runs of that state: ``complete``, ``running``, ``interrupted``, ``gaps`` … flystore only.
        **equal
            Metadata keys and the values they must equal: ``search(plan_name="scan")``.

        Raises
        ------
        InvalidRequest
            If something is not a query.
        """
        for query in queries:
            if not isinstance(query, Query):
                raise InvalidRequest(
                    f'search takes queries such as Key("plan_name") == "scan" or FullText("gold"), not {query!r}'
                )
        found = [*queries, *(Eq(key, value) for key, value in equal.items())]
        if self._prefixes:
            found = [with_prefix(query, self._prefixes) for query in found]
        if verdict is not None:
            found.append(Verdict(verdict))
        return self._variation(queries=(*self._queries, *found))

    def sort(self, *keys: str | tuple[str, int]) -> Self:
        """Return the same container in another order.

        Parameters
        ----------
        *keys
            Metadata keys, the most important first: ``"scan_id"`` ascending, ``"-time"`` or
            ``("time", -1)`` descending. None at all: order of insertion.
        """
        sorting = []
        for given in keys:
            key, direction = given if isinstance(given, tuple) else (given.lstrip("+-"), 1)
            if not isinstance(given, tuple) and given.startswith("-"):
                direction = -1
            if direction not in (1, -1):
                raise InvalidRequest(f"a direction is 1 or -1, not {direction!r}")
            sorting.append((prefixed(key, self._prefixes), direction))
        return self._variation(sorting=tuple(sorting))

    def distinct(
        self, *keys: str, structure_families: bool = False, specs: bool = False, counts: bool = False
    ) -> dict[str, Any]:
        """Return which values occur among the children.

        Parameters
        ----------
        *keys
            Metadata keys.
        structure_families, specs : bool
            Whether to tell those too.
        counts : bool
            Whether to count how often each occurs; None otherwise.

        Returns
        -------
        dict
            ``{"metadata": {key: [{"value", "count"}, …]}, "structure_families": …, "specs": …}``, keys as
            given; what was not asked for is None.
        """
        asked = {prefixed(key, self._prefixes): key for key in keys}
        params: list[tuple[str, Any]] = [("metadata", key) for key in asked]
        params += [("structure_families", structure_families), ("specs", specs), ("counts", counts)]
        params += encode_filters(self._queries)
        answer = self._session.record(node_route("distinct", self.path), params)
        found = answer.get("metadata") or {}
        answer["metadata"] = {asked.get(key, key): values for key, values in found.items()}
        return dict(answer)

    def _variation(self, *, queries: tuple[Query, ...] | None = None, sorting: Sorting | None = None) -> Self:
        return type(self)(
            self._session,
            self._item,
            self._queries if queries is None else queries,
            self._sorting if sorting is None else sorting,
        )

    # --- showing ------------------------------------------------------------------------------

    def _ipython_key_completions_(self) -> list[str]:
        return self.keys().head(100)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._shown_path}: {self._contents_in_words()}>"

    def _contents_in_words(self) -> str:
        try:
            count = len(self)
            shown = self.keys().head(10)
        except FlystoreError as error:
            return f"cannot be listed now ({error})"
        what = "found" if self._queries else "in it"
        return f"{count} {what}: {listed(shown, 10)}{', …' if count > len(shown) else ''}" if count else "empty"


def segments_of(key: object) -> tuple[str, ...]:
    """Return the keys of a path written as text with slashes or as a tuple; empty ones are left out.

    Raises
    ------
    InvalidRequest
        If it is neither.
    """
    parts: Sequence[Any] = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, str) for part in parts):
        raise InvalidRequest(f"a key is text such as 'a' or 'a/b', or a tuple of texts, not {key!r}")
    return tuple(segment for part in parts for segment in part.split("/") if segment)
