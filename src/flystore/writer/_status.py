"""How a RunWriter is, at one moment, for people and programs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run.

    Attributes
    ----------
    uid : str
        Empty for the documents that belong to no run.
    label : str
        What people call it: ``scan 42860``.
    journaled, stored : int
        Documents taken, and documents that the service has acknowledged.
    ended : bool
        Whether its stop was seen, or its writer is gone.
    parked : str or None
        Why it is not sent any more; it stays in the journal.
    verdict : str or None
        What the service said of it in one line.
    adopted : bool
        True if an earlier writer left it.
    """

    uid: str
    label: str
    journaled: int
    stored: int
    ended: bool
    parked: str | None
    verdict: str | None
    adopted: bool

    def __str__(self) -> str:
        if self.parked is not None:
            state = f"parked: {self.parked}"
        elif self.stored < self.journaled:
            state = "journaled, not yet stored" if self.ended else "running"
        else:
            state = "stored" if self.ended else "running, stored so far"
        left = " (left by an earlier writer)" if self.adopted else ""
        return f"{self.label}{left}: {self.stored}/{self.journaled} documents stored, {state}"


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """A RunWriter.

    Attributes
    ----------
    url : str
        Where it ships to, without any key.
    connected : bool or None
        Whether the last request got through; None before the first.
    last_error : str or None
        Why it did not.
    journal : Path
        Directory in which the documents wait.
    pending_bytes : int
        Bytes of documents that are not acknowledged yet, those of earlier writers included.
    durability : str
        ``"group"``, ``"each"``, or ``"lost: why"`` after the disk failed to sync.
    free_bytes : int
        Free on the journal's disk.
    warnings : tuple of str
        Sentences that someone should read; empty if all is well.
    runs : tuple of RunStatus
        Runs that are open, waiting or parked, and the last few that were stored.
    closed : bool
    """

    url: str
    connected: bool | None
    last_error: str | None
    journal: Path
    pending_bytes: int
    durability: str
    free_bytes: int
    warnings: tuple[str, ...]
    runs: tuple[RunStatus, ...]
    closed: bool

    @property
    def parked(self) -> tuple[RunStatus, ...]:
        """The runs that are parked."""
        return tuple(run for run in self.runs if run.parked is not None)

    def __repr__(self) -> str:
        reached = {True: "connected", False: "not connected", None: "not tried yet"}[self.connected]
        lines = [f"RunWriter to {self.url}: {'closed' if self.closed else reached}"]
        if self.last_error is not None:
            lines.append(f"  last error: {self.last_error}")
        lines.append(
            f"  journal: {self.journal} ({self.pending_bytes / 2**20:.1f} MiB not yet stored, durability "
            f"{self.durability}, {self.free_bytes / 2**30:.1f} GiB free)"
        )
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines += [f"  {run}" for run in self.runs] or ["  no runs yet"]
        return "\n".join(lines)
