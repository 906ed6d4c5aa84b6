"""A PandA's position capture: when each gate opened, how long it was open, where the axes were meanwhile.

A PandA counts clock ticks (8 ns) from the moment its PCAP block is both armed and enabled; only the header of its
data stream, and attributes of the HDF5 file made from it, tell when that was. Each capture gives a row:

=========================== ====================================================================================
``PCAP.TS_START``           first tick of the capture at which the gate was high, relative to enabling
``PCAP.TS_END``             the tick behind the last at which it was high
``PCAP.TS_TRIG``            tick of the capture itself
``PCAP.GATE_DURATION``      ticks that the gate was high, shifted right by ``PCAP.SHIFT_SUM``; once called ``SAMPLES``
``X.Mean``                  sum of X over those ticks, divided by their number
=========================== ====================================================================================

(PandABlocks-FPGA, ``modules/pcap``: ``pcap.block.ini``, ``pcap_frame.vhd``; PandABlocks-server, data capture.) The
server and its HDF5 writer scale stamps to seconds and leave ``GATE_DURATION`` in ticks.

Two things go wrong with stamps. A capture during which the gate was never high has no start: the hardware sends -1
tick. If it is the first capture after enabling, it sends the stamp left over from the acquisition before instead, a
believable number, and only those behind it give it away.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from flystore.model.errors import InvalidRequest, NotFound

from ._numbered import Layout
from ._panda_columns import (
    MEAN,
    as_column,
    as_instant,
    chosen_columns,
    first_known,
    numbers_of_captures,
    require_columns,
    weighted_mean,
    without_gateless,
)
from ._stream import Stream
from ._timing import first_disorder, places_of
from ._words import listed

TICK = 8e-9
"""Seconds of one tick of a PandA's clock (125 MHz)."""


class DoubtfulTimes(UserWarning):
    """A capture whose stamps cannot all be right."""


class Finding(NamedTuple):
    """Something that is wrong with a capture.

    Attributes
    ----------
    what : str
        ``first-stamp``: the first stamp lies before arming, is left over, or later than can be. ``order``: a stamp is
        not above the one before it. ``no-gate``: captures during which the gate was never high. ``gate``: a gate
        that ends before it starts or behind the start of the next, or was high for longer than it lasted.
    row : int
        The first capture concerned, counted from 0.
    words : str
        The same for people.
    """

    what: str
    row: int
    words: str


class PandaCapture:
    """The gates of a PandA's capture, one row each.

    Make one of a stream or of arrays with `read`; hand it to `Run.align` as the times of that stream.

    Parameters
    ----------
    gate_start, gate_end, trigger : (n,) float64, optional
        Seconds since the PandA was armed and enabled. A negative stamp means that the gate was never high. At least
        one of start and trigger.
    gate_duration : (n,) float64, optional
        Seconds that the gate was high.
    means : mapping of str to (n,) float64, optional
        Mean of each position while the gate was high, in the axis unit.
    start_time : str, datetime64 or float, optional
        When the PandA was armed and enabled: its ISO 8601 ``start_time`` (UTC unless it says otherwise), or Unix
        seconds. None: only relative times are known.
    arm_time : str, datetime64 or float, optional
        When it was armed.
    number : (n,) int64, optional
        Which capture each row is, counted from 1 and ascending. None: the rows are all there.
    hw_time_offset_ns : int
        Nanoseconds from the clock of ``start_time`` to that of the computers, as the PandA reports it when it has
        its time from hardware; it is added.

    Attributes
    ----------
    gate_start, gate_end, trigger, gate_duration : (n,) float64 or None
        As given, NaN where the gate was never high (the trigger excepted).
    means : dict of str to (n,) float64
    number : (n,) int64
        Which capture each row is, counted from 1; captures that were lost on their way have no row.
    per_event : bool
        Whether somebody said how many captures make an event: true of what `per_frame` gives.
    start, armed : datetime64[ns] or None
        On the clock of the computers, UTC.

    Raises
    ------
    InvalidRequest
        If there are no stamps, lengths differ, or a time makes no sense.
    """

    def __init__(
        self,
        gate_start: Any = None,
        gate_end: Any = None,
        gate_duration: Any = None,
        means: Mapping[str, Any] | None = None,
        *,
        trigger: Any = None,
        number: Any = None,
        start_time: Any = None,
        arm_time: Any = None,
        hw_time_offset_ns: int = 0,
    ) -> None:
        started = as_column(gate_start)
        no_gate = np.zeros(0, bool) if started is None else started < 0
        self._no_gate = np.flatnonzero(no_gate)
        self.gate_start = without_gateless(started, no_gate)
        self.gate_end = without_gateless(as_column(gate_end), no_gate)
        self.gate_duration = as_column(gate_duration)
        self.trigger = as_column(trigger)
        self.means = {name: values for name, given in (means or {}).items() if (values := as_column(given)) is not None}
        self.start = as_instant("start_time", start_time)
        self.armed = as_instant("arm_time", arm_time)
        if self.start is not None:
            self.start = self.start + np.timedelta64(int(hw_time_offset_ns), "ns")
        if self.gate_start is None and self.trigger is None:
            raise InvalidRequest("a capture without stamps has no times: give gate_start (PCAP.TS_START) or trigger")
        self.per_event = False
        self.number = np.arange(1, len(self) + 1) if number is None else np.asarray(number, np.int64)
        lengths = {name: len(values) for name, values in {**self._columns(), "number": self.number}.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidRequest(f"columns of one capture have one length, not {lengths}", lengths=lengths)

    @classmethod
    def read(
        cls,
        source: "Stream | Mapping[str, Any]",
        *,
        start_time: Any = None,
        arm_time: Any = None,
        hw_time_offset_ns: int = 0,
        names: Mapping[str, str] | None = None,
        means: list[str] | tuple[str, ...] | None = None,
        tick: float = TICK,
        shift_sum: int = 0,
    ) -> Self:
        """Return the capture that a stream, or anything with named arrays, holds.

        What looks wrong with the stamps is warned of (`DoubtfulTimes`); see `check`.

        Parameters
        ----------
        source : Stream, Dataset, open HDF5 file, or mapping of str to array
            Arrays are (n,), or (events, k) with k captures an event, which are put one after the other. Of a stream
            the seq_nums say which captures are there.
        start_time, arm_time, hw_time_offset_ns
            As for the class: the attributes of the PandA's HDF5 file.
        names : mapping of str to str, optional
            What the columns are called, where not as the PandA calls them: ``{"gate_start": "TS"}``; the keys are
            ``gate_start``, ``gate_end``, ``trigger`` and ``gate_duration``.
        means : sequence of str, optional
            Columns that are mean positions. None: all that end in ``.Mean``, without that ending.
        tick : float
            Seconds of one unit of the gate duration; 1.0 if it is in seconds already.
        shift_sum : int
            ``PCAP.SHIFT_SUM``: bits that the gate duration was shifted by.

        Raises
        ------
        NotFound
            If there is no column of stamps, or none of a name that was given; says which there are.
        """
        layout = Layout.of(source) if isinstance(source, Stream) else None
        every = [str(name) for name in (source if layout is None else layout.variables)]
        columns = chosen_columns(every, dict(names or {}))
        if "gate_start" not in columns and "trigger" not in columns:
            raise NotFound(
                f"there is no column of stamps (PCAP.TS_START.Value) among {listed(every, 30)}; if it has another "
                'name, give it: names={"gate_start": "…"}'
            )
        if means is None:
            of_means = {name.removesuffix(MEAN): name for name in every if name.endswith(MEAN)}
        else:
            require_columns(every, means)
            of_means = {name.removesuffix(MEAN): name for name in means}
        wanted = list(dict.fromkeys([*columns.values(), *of_means.values()]))
        arrays, seq_num = (source, None) if layout is None else layout.read(wanted)
        found = {role: np.asarray(arrays[name]) for role, name in columns.items()}
        if seq_num is not None:
            found["number"] = numbers_of_captures(seq_num, next(iter(found.values())))
        if "gate_duration" in found:
            found["gate_duration"] = found["gate_duration"].astype(np.float64) * (2**shift_sum * tick)
        capture = cls(
            **found,
            means={name: np.asarray(arrays[column]) for name, column in of_means.items()},
            start_time=start_time,
            arm_time=arm_time,
            hw_time_offset_ns=hw_time_offset_ns,
        )
        capture.warn(stacklevel=3)
        return capture

    # --- times --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def stamps(self) -> np.ndarray:
        """What a capture's time is: the start of its gate, or the trigger if that is all there is.

        (n,) float64, seconds since the PandA was armed and enabled.
        """
        stamps = self.trigger if self.gate_start is None else self.gate_start
        assert stamps is not None
        return stamps

    @property
    def times(self) -> np.ndarray:
        """`stamps` as Unix seconds, (n,) float64, which tell 0.24 µs apart; `datetimes` are exact to 1 ns.

        Raises
        ------
        InvalidRequest
            If nobody said when the PandA was armed and enabled.
        """
        return self._unix(self.stamps)

    @property
    def datetimes(self) -> np.ndarray:
        """`stamps` as instants, (n,) datetime64[ns], UTC, NaT where the gate was never high.

        Raises
        ------
        InvalidRequest
            If nobody said when the PandA was armed and enabled.
        """
        found = np.full(len(self), np.datetime64("NaT"), "M8[ns]")
        known = np.isfinite(self.stamps)
        found[known] = self._started() + np.round(self.stamps[known] * 1e9).astype("m8[ns]")
        return found

    @property
    def windows(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Start and end of each gate in Unix seconds, two (n,) float64; None if the ends are not known.

        Where ``PCAP.TS_END`` was not captured a gate is taken to be in one piece: its start and its duration.
        """
        if self.gate_start is None:
            return None
        if self.gate_end is not None:
            ends = self.gate_end
        elif self.gate_duration is not None:
            ends = self.gate_start + self.gate_duration
        else:
            return None
        return self._unix(self.gate_start), self._unix(ends)

    def _started(self) -> np.datetime64:
        if self.start is None:
            raise InvalidRequest(
                "these stamps count from the moment the PandA was armed and enabled, and nobody said when that was: "
                "give start_time, the attribute of the PandA's HDF5 file"
            )
        return self.start

    def _unix(self, stamps: np.ndarray) -> np.ndarray:
        nanoseconds = int(self._started().astype(np.int64))
        # Whole seconds apart: the sum is rounded once.
        return nanoseconds // 10**9 + (nanoseconds % 10**9 * 1e-9 + stamps)

    # --- what is wrong ------------------------------------------------------------------------

    def check(self, longest: float | None = None) -> list[Finding]:
        """Return what cannot be right, the first row of each kind; empty if nothing.

        Parameters
        ----------
        longest : float, optional
            Seconds that the acquisition can have lasted at most, as from the run's start and stop; a first stamp
            above it is wrong.
        """
        stamps = self.stamps
        found = []
        if len(self._no_gate):
            row = int(self._no_gate[0])
            count = len(self._no_gate)
            found.append(Finding("no-gate", row, f"during {count} captures, the first row {row}, no gate was high"))
        first = self._first_stamp(longest)
        found += first
        # A wrong first stamp would put the blame on the one behind it.
        row_of_disorder = first_disorder(stamps[1:] if first else stamps)
        if row_of_disorder is not None:
            row = row_of_disorder + (1 if first else 0)
            found.append(
                Finding("order", row, f"the stamp of row {row}, {stamps[row]:.9f} s, is not above the one before it")
            )
        return [*found, *self._bad_gate()]

    def _first_stamp(self, longest: float | None) -> list[Finding]:
        stamps = self.stamps
        if not len(stamps) or np.isnan(stamps[0]):
            return []
        behind = stamps[1:][np.isfinite(stamps[1:])]
        if len(behind) and stamps[0] >= behind[0]:
            words = f"the first stamp, {stamps[0]:.9f} s, is not below the one behind it: left over from before"
        elif longest is not None and stamps[0] > longest:
            words = f"the first stamp, {stamps[0]:.9f} s, is more than the {longest:.3f} s that it all took"
        elif self.start is not None and self.armed is not None and self.datetimes[0] < self.armed:
            words = f"the first stamp, {self.datetimes[0]}, lies before arming, {self.armed}"
        else:
            return []
        return [Finding("first-stamp", 0, words)]

    def _bad_gate(self) -> list[Finding]:
        start, end, high = self.gate_start, self.gate_end, self.gate_duration
        if start is None or end is None:
            return []
        with np.errstate(invalid="ignore"):
            kinds = {"ends before it starts": end < start}
            kinds["ends behind the start of the next"] = np.append(end[:-1] > start[1:] + TICK / 2, False)
            if high is not None:
                kinds["was high for longer than it lasted"] = (high > end - start + TICK / 2) & (end >= start)
        found = []
        for words, wrong in kinds.items():
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                found.append(Finding("gate", row, f"the gate of row {row} {words}"))
        return found

    def warn(self, longest: float | None = None, *, stacklevel: int = 2) -> None:
        """Warn of what `check` finds, if anything."""
        found = self.check(longest)
        if found:
            words = "; ".join(finding.words for finding in found)
            warnings.warn(f"stamps of a PandA: {words}", DoubtfulTimes, stacklevel=stacklevel)

    # --- frames -------------------------------------------------------------------------------

    def per_frame(self, captures: int, frames: int | None = None) -> Self:
        """Return the capture with one row for each frame, where several captures make a frame.

        Parameters
        ----------
        captures : int
            How many make a frame: frame f, counted from 1, has those numbered (f - 1) × captures + 1 to f × captures.
            1: each capture is a frame, and there may be more of them than frames.
        frames : int, optional
            How many frames there are, to be checked. None: as many as there are captures for, the last one whole or
            not.

        Returns
        -------
        PandaCapture
            Of each frame the first gate's start, the last one's end, the sum of durations, and the means weighted
            with the durations; where these were not captured, every gate counts the same. Captures without a gate
            count for nothing. A frame of which a capture was lost, or that has no gate at all, is NaN.

        Raises
        ------
        InvalidRequest
            If the captures do not make that many frames.
        """
        if isinstance(captures, bool) or captures < 1:
            raise InvalidRequest(f"a frame takes 1 capture or more, not {captures!r}")
        last = int(self.number.max(initial=0))
        count = -(-last // captures) if frames is None else frames
        if frames is not None and last != captures * frames:
            raise InvalidRequest(
                f"{last} captures do not make {frames} frames of {captures} each; a capture or a frame was lost",
                captures=last,
                frames=frames,
            )
        places = places_of(self.number, np.arange(1, count * captures + 1)).reshape(count, captures)
        whole = (places >= 0).all(axis=1)

        def rows(values: np.ndarray) -> np.ndarray:
            found = np.full(places.shape, np.nan)
            found[whole] = values[places[whole]]
            return found

        weights = np.nan_to_num(rows(self._weights()))
        made = type(self)(
            None if self.gate_start is None else first_known(rows(self.gate_start)),
            None if self.gate_end is None else first_known(rows(self.gate_end)[:, ::-1]),
            None
            if self.gate_duration is None
            else np.where(whole, np.nansum(rows(self.gate_duration), axis=1), np.nan),
            {name: weighted_mean(rows(values), weights) for name, values in self.means.items()},
            trigger=None if self.trigger is None else first_known(rows(self.trigger)),
            start_time=self.start,
            arm_time=self.armed,
        )
        made.per_event = True
        return made

    def _weights(self) -> np.ndarray:
        """Return what each capture counts in a mean: seconds of gate, or 1 if nobody knows."""
        if self.gate_duration is not None:
            weights = self.gate_duration
        elif self.gate_start is not None and self.gate_end is not None:
            weights = self.gate_end - self.gate_start
        else:
            weights = np.ones(len(self))
        return np.where(np.isfinite(weights) & np.isfinite(self.stamps), weights, 0.0)

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {
            "gate_start": self.gate_start,
            "gate_end": self.gate_end,
            "gate_duration": self.gate_duration,
            "trigger": self.trigger,
            **self.means,
        }
        return {name: values for name, values in columns.items() if values is not None}

    def __repr__(self) -> str:
        since = "an unknown start" if self.start is None else f"{self.start}Z"
        means = f", means of {listed(self.means)}" if self.means else ""
        return f"<PandaCapture: {len(self)} captures since {since}{means}>"
