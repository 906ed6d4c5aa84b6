"""Runs and files that several rows read; made once for the services that run."""

from pathlib import Path
from typing import NamedTuple

from .peers.documents import column_names
from .suite import Suite

FRAME = (512, 512)
DATASET = "detector"
KINDS = ("raw", "blosc")
WHOLE: list[list[int | None]] = [[None, None, None]] * 3


class FramesFile(NamedTuple):
    """A file of frames: its path, and the bytes of its pixels."""

    path: Path
    nbytes: int


def long_run_of(suite: Suite, side: str) -> str:
    """Return the uid of a run of many events in the service of a side."""
    sizes = suite.sizes

    def write() -> str:
        suite.say(f"{side}: a run of {sizes.events:,} events, for the rows that read it")
        found = suite.worker(side).call(
            "write_long", **suite.service(side).where, events=sizes.events, columns=sizes.columns
        )
        return str(found["uid"])

    return str(suite.once(("long", side), write))


def columns_of(suite: Suite) -> list[str]:
    """Return the columns of that run."""
    return column_names(suite.sizes.columns)


def frames_file(suite: Suite, kind: str, frames: int | None = None) -> FramesFile:
    """Return a file of frames: ``raw``, or compressed with ``blosc``."""
    count = frames or suite.sizes.frames
    path = suite.files / f"{kind}-{count}.h5"
    if not path.exists():
        suite.say(f"writing {count:,} frames, {kind}")
        suite.machine().call(
            "make_frames", file=str(path), name=DATASET, frames=count, shape=FRAME, compressed=kind == "blosc"
        )
    return FramesFile(path, count * FRAME[0] * FRAME[1] * 2)


def bring_in(suite: Suite, kind: str) -> None:
    """Have that file in the page cache, for whoever reads it next."""
    suite.machine().call("bring_in", file=str(frames_file(suite, kind).path))


def frames_run_of(suite: Suite, side: str, kind: str) -> str:
    """Return the uid of a run whose frames are in that file."""
    file = frames_file(suite, kind)

    def write() -> str:
        found = suite.worker(side).call(
            "write_frames",
            **suite.service(side).where,
            file=str(file.path),
            datasets={DATASET: FRAME},
            frames=suite.sizes.frames,
            each=100,
        )
        return str(found["uid"])

    return str(suite.once(("frames", side, kind), write))


def warm_up(suite: Suite, client: str, side: str, kind: str) -> None:
    """Read one frame of that run with the client of a side: what a process does once is not in the first sample."""
    where = suite.service(side).where
    suite.worker(client).call("read_frames", **where, uid=frames_run_of(suite, side, kind), name=DATASET, numbers=[0])
