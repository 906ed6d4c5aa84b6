"""Keys, values and items of a container: views that fetch only what is looked at."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar, overload

from flystore.model.errors import InvalidRequest, OutOfBounds

T = TypeVar("T")


class Pager(Protocol):
    """Hands out a container's children by position."""

    def __len__(self) -> int: ...

    def _resources(
        self, *, offset: int = 0, limit: int | None = None, backwards: bool = False, keys_only: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield resource objects from position `offset` on, counted from the end if `backwards`."""
        ...


class View(Generic[T]):
    """An ordered view of a container's children.

    Parameters
    ----------
    pager : Pager
    make : callable
        Turns a resource object into what the view shows.
    keys_only : bool
        Whether keys are all that `make` needs; the requests are smaller then.
    """

    def __init__(self, pager: Pager, make: Callable[[dict[str, Any]], T], *, keys_only: bool = False) -> None:
        self._pager = pager
        self._make = make
        self._keys_only = keys_only

    def __len__(self) -> int:
        return len(self._pager)

    def __iter__(self) -> Iterator[T]:
        return self._some()

    def __repr__(self) -> str:
        shown = [repr(one) for one in self.head(5)]
        more = ", …" if len(shown) == 5 and len(self) > 5 else ""
        return f"[{', '.join(shown)}{more}]"

    def head(self, n: int = 5) -> list[T]:
        """Return the first `n`."""
        return list(self._some(limit=n))

    def tail(self, n: int = 5) -> list[T]:
        """Return the last `n`, in order."""
        return list(self._some(limit=n, backwards=True))[::-1]

    def first(self) -> T:
        """Return the first one.

        Raises
        ------
        OutOfBounds
            If there is none.
        """
        return self[0]

    def last(self) -> T:
        """Return the last one.

        Raises
        ------
        OutOfBounds
            If there is none.
        """
        return self[-1]

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return self._slice(place)
        offset = -place - 1 if place < 0 else place
        for one in self._some(offset=offset, limit=1, backwards=place < 0):
            return one
        raise OutOfBounds(f"there is no number {place} among {len(self)}", index=place)

    def _slice(self, place: slice) -> list[T]:
        start, stop, step = place.start, place.stop, place.step
        if step == 0:
            raise InvalidRequest("a slice cannot have step 0")
        if step is not None and step < 0:
            every = range(*place.indices(len(self)))
            return self._slice(slice(every[-1], every[0] + 1))[::-1][::-step] if len(every) else []
        if (start or 0) >= 0 and (stop is None or stop >= 0):
            limit = None if stop is None else stop - (start or 0)
            return list(self._some(offset=start or 0, limit=limit))[::step]
        if start is not None and start < 0 and (stop is None or stop < 0):
            skipped = 0 if stop is None else -stop
            return list(self._some(offset=skipped, limit=-start - skipped, backwards=True))[::-1][::step]
        begin, end, _ = place.indices(len(self))
        return self._slice(slice(begin, max(begin, end), step))

    def _some(self, *, offset: int = 0, limit: int | None = None, backwards: bool = False) -> Iterator[T]:
        resources = self._pager._resources(offset=offset, limit=limit, backwards=backwards, keys_only=self._keys_only)
        return (self._make(resource) for resource in resources)
