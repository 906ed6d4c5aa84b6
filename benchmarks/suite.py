"""What the rows share: sizes, services, workers, and runs that several rows read."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import Broken
from .services import Service, flystore_service, stock_service
from .workers import Worker, worker

STOCK, FLYSTORE = "stock", "flystore"


@dataclass(frozen=True)
class Sizes:
    """How much is done in each row.

    Attributes
    ----------
    rounds : int
        Samples of each party.
    stock_rounds : int
        The same of stock where a sample of it takes more than a few seconds.
    engine_runs : int
        Runs of 10 events in a sample.
    events : int
        Of the long run.
    stock_events : int
        Of the long run that is timed with stock, to save time.
    columns : int
    fly_frames : int
        StreamDatum of each of `fly_keys` keys.
    live_events, stock_live_events : int
        Events one by one.
    live_burst : int
        Events as fast as they go; stock gets as many as before.
    frames : int
        Of 512 × 512 uint16.
    frames_asked, stock_frames_asked : int
        Single frames in a sample.
    wait_rounds : int
        Samples of another user's waits.
    wait_seconds : float
        For which they ask in each.
    load_seconds : float
    catalogue : tuple of int
        Runs in each catalogue of flystore.
    stock_catalogue : int
        Runs in that of stock; 0 leaves it out.
    asked : int
        Questions of each kind in a sample.
    starts : int
    anew : bool
        Whether rows that measure a service's memory start new ones.
    """

    rounds: int = 5
    stock_rounds: int = 2
    engine_runs: int = 10
    events: int = 100_000
    stock_events: int = 20_000
    columns: int = 20
    fly_keys: int = 20
    fly_frames: int = 1000
    live_events: int = 200
    live_burst: int = 10_000
    stock_live_events: int = 50
    frames: int = 2000
    frames_asked: int = 200
    stock_frames_asked: int = 20
    wait_rounds: int = 3
    wait_seconds: float = 6.0
    load_seconds: float = 3.0
    catalogue: tuple[int, ...] = (100_000, 1_000_000)
    stock_catalogue: int = 100_000
    asked: int = 40
    starts: int = 3
    anew: bool = True


QUICK = Sizes(
    rounds=2,
    stock_rounds=1,
    engine_runs=3,
    events=10_000,
    stock_events=2_000,
    fly_frames=100,
    live_events=60,
    live_burst=2_000,
    stock_live_events=20,
    frames=128,
    frames_asked=50,
    stock_frames_asked=5,
    wait_rounds=1,
    wait_seconds=2.0,
    load_seconds=1.0,
    catalogue=(4_000,),
    stock_catalogue=0,
    asked=10,
    starts=1,
    anew=False,
)


class Suite:
    """Services and workers, started when a row needs them, and ended with the ``with`` block.

    Parameters
    ----------
    directory : Path
        Where everything goes meanwhile.
    sizes : Sizes
    stock_python : str or None
        Interpreter of the environment with Tiled; None leaves stock out.
    recorded : Path or None
        A recording of real runs; None if there is none.
    keep : Path or None
        Where catalogues of very many runs stay for the next time; None makes them anew.
    """

    def __init__(
        self,
        directory: Path,
        sizes: Sizes,
        stock_python: str | None,
        recorded: Path | None = None,
        keep: Path | None = None,
    ) -> None:
        self.directory = directory
        self.sizes = sizes
        self.stock_python = stock_python
        self.recorded = recorded
        self.keep = keep
        self.files = directory / "files"
        self.files.mkdir()
        self._began = time.perf_counter()
        self._generation = 0
        self._kept: dict[Any, Any] = {}
        self._workers: dict[Any, Worker] = {}
        self._served = contextlib.ExitStack()
        self._working = contextlib.ExitStack()

    def __enter__(self) -> "Suite":
        return self

    def __exit__(self, *_: object) -> None:
        with self._served:
            self._working.close()

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of stock and flystore are measured."""
        return (STOCK, FLYSTORE) if self.stock_python else (FLYSTORE,)

    def python_of(self, side: str) -> str:
        """Return the interpreter of a side."""
        if side != STOCK:
            return sys.executable
        if self.stock_python is None:
            raise Broken("stock is left out")
        return self.stock_python

    def say(self, text: str) -> None:
        """Tell what is going on, on standard error."""
        sys.stderr.write(f"{time.perf_counter() - self._began:7.1f} s  {text}\n")
        sys.stderr.flush()

    # --- services ---------------------------------------------------------------------------------

    def service(self, side: str) -> Service:
        """Return the service of a side, which starts now if it does not run."""
        return self.once(
            ("service", side),
            lambda: self._served.enter_context(self.a_service(side, self.directory / f"{side}-{self._generation}")),
        )

    def a_service(self, side: str, directory: Path) -> contextlib.AbstractContextManager[Service]:
        """Return a service of a side with a directory of its own."""
        if side == STOCK:
            return stock_service(self.python_of(STOCK), directory, self.files)
        return flystore_service(directory, self.files)

    def fresh(self) -> None:
        """End the services; the next row gets new ones, with new directories. Not where `Sizes.anew` says no."""
        if not self.sizes.anew:
            return
        self._served.close()
        self._generation += 1
        self._kept.clear()

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time, for as long as the present services last."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    # --- workers ----------------------------------------------------------------------------------

    def a_worker(self, side: str, part: str) -> contextlib.AbstractContextManager[Worker]:
        """Return a new worker: part ``side`` is the side's own writer and client, others see `benchmarks.peers`."""
        name = f"{side}_side" if part == "side" else f"{part}_side"
        return worker(self.python_of(side), name, self.directory / f"worker-{name}.log")

    def worker(self, side: str, part: str = "side", number: int = 0) -> Worker:
        """Return a worker that stays from round to round."""
        key = (side, part, number)
        if key not in self._workers:
            self._workers[key] = self._working.enter_context(self.a_worker(side, part))
        return self._workers[key]

    def machine(self) -> Worker:
        """Return the worker of the floors."""
        return self.worker(FLYSTORE, "machine")

    def user(self, number: int = 0) -> Worker:
        """Return a user over bare HTTP."""
        return self.worker(FLYSTORE, "user", number)
