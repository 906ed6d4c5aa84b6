"""Waking those who wait for something new: one object a process, whoever commits.

A follower asks for its `mark`, reads, and waits for a mark beyond that one: what is committed while it reads ends the
wait at once, so no news is lost, and a wake-up that tells nothing new costs one more look. A follower that waits is
an object of a few hundred bytes with neither thread nor timer of its own, and a commit looks only at those who follow
what it touched.

Commits of this process announce themselves through the catalogue. Those of others are `heard`: from the database, where
it tells of them, and by a look every so often while anybody follows.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from flystore.catalog import Catalog, Committed, NotAtOnce
from flystore.model.errors import FlystoreError, Unavailable

from .limits import Limits

log = logging.getLogger("flystore.service")

EVERYTHING = ""
"""The topic of those who follow all that happens."""

LOOK_SECONDS = 0.5
"""How long a commit of another process may go unnoticed, if nothing else tells of it."""

CHEAP_LOOK_SECONDS = 0.05
"""The same, where it costs next to nothing to learn that there was none."""

SOON_SECONDS = 0.02
"""How long after another process was found to commit just now."""

_BUSY_SECONDS = 10.0
_MOST_TOUCHED = 1_000


def topic_of_path(path: Iterable[str]) -> str:
    """Return the topic of those who follow a node and all below it; of the root: `EVERYTHING`."""
    text = "/".join(path)
    return f"path:{text}" if text else EVERYTHING


def topic_of_run(uid: str) -> str:
    """Return the topic of those who follow a run's documents."""
    return f"run:{uid}"


_Sleeper = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]
"""Who waits on which event loop."""


class Follower:
    """Waits for commits that touch its topic; made by `Waking.follower`, for use in one thread or task at a time."""

    __slots__ = ("_ended", "_event", "_loop", "_mark", "_waiter", "_waking", "topic")

    def __init__(self, waking: "Waking", topic: str) -> None:
        self.topic = topic
        self._waking = waking
        self._mark = 0
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._event: threading.Event | None = None

    @property
    def mark(self) -> int:
        """Grows with each commit that touches the topic; to be asked for before reading."""
        return self._mark

    @property
    def ended(self) -> bool:
        """Whether nothing will be told any more, because the service ends."""
        return self._ended

    async def wait(self, mark: int, seconds: float | None = None) -> bool:
        """Wait until something is committed that touches the topic, on an event loop.

        Parameters
        ----------
        mark
            As it was before what is known was read.
        seconds
            None: however long it takes.

        Returns
        -------
        bool
            False if the time is over; True if something is new, or the service ends.
        """
        loop = asyncio.get_running_loop()
        with self._waking.lock:
            if self._mark != mark or self._ended:
                return True
            waiter = self._waiter = loop.create_future()
            self._loop = loop
        handle = None if seconds is None else loop.call_later(max(seconds, 0.0), _end_wait, waiter)
        try:
            await waiter
        finally:
            if handle is not None:
                handle.cancel()
            self._waiter = None
        with self._waking.lock:
            return self._mark != mark or self._ended

    def wait_here(self, mark: int, seconds: float | None = None) -> bool:
        """Wait as `wait` does, in a thread."""
        with self._waking.lock:
            if self._mark != mark or self._ended:
                return True
            event = self._event = threading.Event()
        event.wait(seconds)
        with self._waking.lock:
            self._event = None
            return self._mark != mark or self._ended

    def stop(self) -> None:
        """End the wait, now and from now on; from any thread."""
        with self._waking.lock:
            sleeper = self._end()
        _wake([sleeper])

    def close(self) -> None:
        """Follow no more. Closing twice is harmless."""
        self._waking._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self) -> _Sleeper | None:
        """Note news, under the lock; return whom to wake on a loop."""
        self._mark += 1
        return self._rouse()

    def _end(self) -> _Sleeper | None:
        self._ended = True
        return self._rouse()

    def _rouse(self) -> _Sleeper | None:
        if self._event is not None:
            self._event.set()
        if self._waiter is None or self._loop is None:
            return None
        waiter, self._waiter = self._waiter, None
        return self._loop, waiter


def _end_wait(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


class Waking:
    """Tells followers of commits.

    Parameters
    ----------
    catalog : Catalog
        Watched from now on.
    look_seconds : float, optional
        How often to look for commits of other processes while anybody follows; None: as often as it is cheap.
    most : int, optional
        Followers for whom there is room; see `require_room`.

    Attributes
    ----------
    lock : threading.Lock
        Held for moments only; for followers.
    """

    def __init__(self, catalog: Catalog, *, look_seconds: float | None = None, most: int = Limits().followers) -> None:
        self.lock = threading.Lock()
        self._most = most
        self._catalog = catalog
        self._look_seconds = look_seconds
        self._topics: dict[str, set[Follower]] = {}
        self._tops: Counter[str] = Counter()
        self._known: int | None = None
        self._ahead: dict[int, int] = {}
        self._busy_until = 0.0
        self._looker: threading.Thread | None = None
        self._bell = threading.Event()
        self._ended = False
        self._changes: int | None = None
        self._unlisten: Callable[[], None] | None = None
        self._unwatch = catalog.watch(self.announce)

    def __len__(self) -> int:
        """How many follow."""
        with self.lock:
            return sum(map(len, self._topics.values()))

    def require_room(self) -> None:
        """Raise unless one more may follow.

        Those who follow stay: without a bound they would take all connections, and writers find none.

        Raises
        ------
        Unavailable
        """
        if len(self) >= self._most:
            raise Unavailable(
                f"{self._most} follow already, which is as many as this service takes; try again later, or have "
                "whoever runs it allow more with --limit followers=N",
                limit=self._most,
            )

    def follower(self, topic: str = EVERYTHING) -> Follower:
        """Return a follower of `topic`, to be closed; it is told of all that is committed from now on."""
        made = Follower(self, topic)
        with self.lock:
            if self._ended:
                made._end()
                return made
            self._topics.setdefault(topic, set()).add(made)
            self._tops[_top_of(topic)] += 1
            self._look_while_needed()
        return made

    def is_followed(self, path: tuple[str, ...], uid: str) -> bool:
        """Return whether anybody follows the run `uid` at `path`, or something in it; not whether all runs are."""
        with self.lock:
            return topic_of_run(uid) in self._topics or path[0] in self._tops

    def has(self, topic: str) -> bool:
        """Return whether anybody follows just this topic."""
        return topic in self._topics

    def announce(self, committed: Committed) -> None:
        """Tell followers of a commit that all can read by now, from any thread."""
        with self.lock:
            self._note(committed.first, committed.last)
            sleepers = self._tell(committed)
        _wake(sleepers)

    def heard(self) -> None:
        """Look for commits of other processes, and tell followers of them; from any thread but that of a loop.

        For whoever knows sooner than a look every so often would: a listener of the database, or a watched file.

        Raises
        ------
        Unavailable
            If the catalogue cannot be read now; what was committed is found by the next look.
        """
        with self.lock:
            known = self._known
        with self._catalog.read() as snapshot:
            last = snapshot.last_position()
            if last == known:
                return
            # At the first look nobody knows what was told of, so all look again.
            touched = None if known is None or last < known else snapshot.touched_since(known, _MOST_TOUCHED)
        with self.lock:
            if known is None or last < known:
                self._known = last
            else:
                self._busy_until = time.monotonic() + _BUSY_SECONDS
                self._note(0, last)
            sleepers = self._tell(touched)
        _wake(sleepers)

    def end(self) -> None:
        """Wake all followers for the last time: the service ends."""
        with self.lock:
            self._ended = True
            sleepers = [follower._end() for group in self._topics.values() for follower in group]
            self._topics.clear()
            self._tops.clear()
            looker, self._looker = self._looker, None
            self._bell.set()
        _wake(sleepers)
        self._unwatch()
        if looker is not None:
            looker.join()
        if self._unlisten is not None:
            self._unlisten()

    def _leave(self, follower: Follower) -> None:
        with self.lock:
            topic = follower.topic
            group = self._topics.get(topic)
            if group is None:
                return
            if follower not in group:
                return
            group.remove(follower)
            self._tops[_top_of(topic)] -= 1
            if not self._tops[_top_of(topic)]:
                del self._tops[_top_of(topic)]
            if not group:
                del self._topics[topic]

    def _note(self, first: int, last: int) -> None:
        """Note that positions up to `last` were told of, from `first` on; under the lock."""
        if self._known is None or last <= self._known:
            return
        if first > self._known + 1:
            self._ahead[first] = last
            return
        self._known = last
        # Announced by threads that were quicker than the one before them, or beside commits of another process.
        for begin in sorted(self._ahead):
            if begin > self._known + 1:
                break
            self._known = max(self._known, self._ahead.pop(begin))

    def _tell(self, committed: Committed | None) -> list[_Sleeper | None]:
        """Note news for those who follow what was touched, None: for all; return whom to wake."""
        if committed is None:
            groups = list(self._topics.values())
        else:
            groups = [group for topic in _topics_of(committed) if (group := self._topics.get(topic)) is not None]
        return [follower._tell() for group in groups for follower in group]

    # --- commits of other processes -------------------------------------------------------------

    def _look_while_needed(self) -> None:
        if self._looker is None:
            self._looker = threading.Thread(target=self._look, name="flystore-waking", daemon=True)
            self._looker.start()

    def _look(self) -> None:
        """Look again and again, as long as anybody follows."""
        self._changes = None
        listens = self._unlisten is not None
        while True:
            with self.lock:
                if self._ended or not self._topics:
                    self._known = None
                    self._ahead.clear()
                    if self._looker is threading.current_thread():
                        self._looker = None
                    return
            seconds = LOOK_SECONDS if self._look_seconds is None else self._look_seconds
            try:
                if not listens:
                    self._unlisten = self._catalog.listen(self._told)
                    listens = True
                changes = self._changes_now()
                if changes is None or changes != self._changes:
                    self.heard()
                if changes is not None:
                    self._changes = changes  # asked for before the look: what came since makes it another number
                    seconds = CHEAP_LOOK_SECONDS if self._look_seconds is None else seconds
            except (FlystoreError, OSError, RuntimeError) as error:  # no more files or threads: others close theirs
                log.warning("commits of other processes are not seen now: %s", error)
            busy = time.monotonic() < self._busy_until
            self._bell.wait(min(SOON_SECONDS, seconds) if busy else seconds)

    def _changes_now(self) -> int | None:
        """Return the catalogue's count of changes; None if it has to be read to learn whether there are any."""
        try:
            return self._catalog.changes()
        except NotAtOnce:
            return None

    def _told(self) -> None:
        """Look, because the database told of a commit."""
        with self.lock:
            if self._ended or not self._topics:
                return
        try:
            self.heard()
        except FlystoreError as error:
            log.warning("commits of other processes are not seen now: %s", error)


def _top_of(topic: str) -> str:
    """Return the first key of the path that is followed; empty where none is."""
    return topic.removeprefix("path:").partition("/")[0] if topic.startswith("path:") else ""


def _topics_of(committed: Committed) -> set[str]:
    topics = {EVERYTHING, *map(topic_of_run, committed.run_uids)}
    for path in committed.paths:
        at = len(path)
        while at > 0:
            topics.add(f"path:{path[:at]}")
            at = path.rfind("/", 0, at)
    return topics


def _wake(sleepers: Iterable[_Sleeper | None]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for sleeper in sleepers:
        if sleeper is not None:
            loops.setdefault(sleeper[0], []).append(sleeper[1])
    for loop, waiters in loops.items():
        try:
            # Once a loop, however many wait on it.
            loop.call_soon_threadsafe(_end_waits, waiters)
        except RuntimeError:  # the loop has ended, and whoever waited on it
            log.debug("an event loop ended with %d followers", len(waiters))


def _end_waits(waiters: "list[asyncio.Future[None]]") -> None:
    for waiter in waiters:
        _end_wait(waiter)
