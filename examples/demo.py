"""From a RunEngine to an xarray in under a minute: a real service, a step scan and a flyscan.

    python examples/demo.py          runs, shows what came out, and ends
    python examples/demo.py --keep   leaves the service running until Ctrl-C, to go on by hand

Everything is kept in a temporary directory.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import bluesky.plans as bp
import h5py
import numpy as np
from ophyd.sim import SynAxis, SynGauss
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.syntax import Syntax
from rich.tree import Tree

from flystore import RunWriter, from_uri
from flystore.testing.beamline import Camera, Panda, flyscan, run_engine

console = Console(highlight=False)


def main() -> None:
    """Run the demo."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--keep", action="store_true", help="leave the service running until Ctrl-C")
    keep = arguments.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="flystore-demo-") as name:
        files, journal = Path(name, "files"), Path(name, "journal")
        files.mkdir()
        with a_service(files) as (url, api_key):
            uids, camera = acquire(url, api_key, files, journal)
            with from_uri(url, api_key) as client:
                show(client, uids, camera)
            go_on(url, api_key, keep)


# --- the service ----------------------------------------------------------------------------------


@contextlib.contextmanager
def a_service(files: Path) -> Iterator[tuple[str, str]]:
    """Start ``flystore serve`` on a free port; give its address and key, and end it afterwards."""
    command = [sys.executable, "-m", "flystore.cli", "serve", "--temp", "--port", "0", "--read", str(files)]
    heading("The service")
    console.print(f"[dim]$ flystore {' '.join(command[3:])}[/]", soft_wrap=True)
    environment = {name: value for name, value in os.environ.items() if name != "FLYSTORE_API_KEY"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the service did not start; its reason is above")
        console.print(line.rstrip(), soft_wrap=True)
        address = urlsplit(line.split()[-1])
        yield f"{address.scheme}://{address.netloc}", parse_qs(address.query)["api_key"][0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


# --- the experiment -------------------------------------------------------------------------------


def acquire(url: str, api_key: str, files: Path, journal: Path) -> tuple[list[str], Camera]:
    """Take a count, a scan and a flyscan; return their uids and the camera that flew."""
    motor = SynAxis(name="motor")
    det = SynGauss("det", motor, "motor", center=0.5, Imax=1000, sigma=1)
    panda, camera = Panda(files, start=-10, step=0.5), Camera(files, frames_per_event=4)
    heading("The experiment")
    with run_engine() as RE, RunWriter(url, api_key=api_key, journal=journal) as writer:  # noqa: N806
        console.print("RE.subscribe(RunWriter(url, api_key=…))")
        RE.subscribe(writer)
        uids: list[str] = []
        for text, plan in (
            ("RE(bp.count([det], 10))", bp.count([det], 10)),
            ("RE(bp.scan([det], motor, -3, 4, 29))", bp.scan([det], motor, -3, 4, 29)),
            (
                "RE(flyscan(panda, [camera], events=40))  # 4 frames an event, both write HDF5",
                flyscan(panda, [camera], events=40, period=0.02),
            ),
        ):
            console.print(text, markup=False)
            uids += RE(plan)
        writer.flush(timeout=30)
    return uids, camera


# --- what came out --------------------------------------------------------------------------------


def show(client: Any, uids: list[str], camera: Camera) -> None:
    """Show the verdicts, the flyscan's tree, its dataset, some frames, and a plot of the scan."""
    heading("Did it work?")
    for uid in uids:
        console.print(str(client[uid].check()), markup=False)

    _, scan, fly = (client[uid] for uid in uids)
    heading("The flyscan, as a tree")
    console.print(tree_of(fly))

    heading('client[uid]["primary"].read()')
    console.print(repr(fly["primary"].read()), markup=False)

    heading('client[uid]["primary/camera"][7, :, :3, :6]')
    frames = fly["primary/camera"][7, :, :3, :6]
    console.print(str(frames), markup=False)
    with h5py.File(camera.path, swmr=True) as file:
        written = file[camera.dataset][28:32, :3, :6]
    if not np.array_equal(frames, written):
        raise SystemExit("these are not the frames that the camera wrote")
    console.print("[dim]event 7 is frames 28 to 31 of the file: the same, says h5py[/]")

    heading("The scan")
    points = scan["primary"].read()
    plot(points["motor"].values, points["det"].values, "motor", "det")


def tree_of(run: Any) -> Tree:
    """Return a run and all that is below it."""
    tree = Tree(escape(repr(run)))

    def grow(branch: Tree, node: Mapping[str, Any]) -> None:
        for key, child in node.items():
            below = child.base if hasattr(child, "base") else child
            grown = branch.add(f"[bold]{escape(key)}[/]  [dim]{escape(in_words(child))}[/]")
            if isinstance(below, Mapping):
                grow(grown, below)

    grow(tree, run)
    return tree


def in_words(node: Any) -> str:
    """Return what the first line of a node's repr says of it, without its path."""
    kind, _, words = repr(node).partition("\n")[0].strip("<>").partition(": ")
    return f"{kind.partition(' ')[0]}, {words}"


def plot(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str, height: int = 8) -> None:
    """Draw `y` over evenly spaced `x` as columns, in eighths of a line."""
    eighths = np.rint(8 * height * y / y.max()).astype(int)
    console.print(f"{y_name}, up to {y.max():.4g}")
    for line in reversed(range(height)):
        console.print("".join(2 * " ▁▂▃▄▅▆▇█"[np.clip(n - 8 * line, 0, 8)] for n in eighths), style="cyan")
    console.print(f"{x.min():<{2 * len(x) - 6}.4g}{x.max():>6.4g}  {x_name}")


def go_on(url: str, api_key: str, keep: bool) -> None:
    """Print the three lines of Python to go on with; with `keep` wait for Ctrl-C."""
    heading("Go on from Python")
    lines = f'from flystore import from_uri\nclient = from_uri("{url}", "{api_key}")\nclient[-1]["primary"].read()'
    console.print(Syntax(lines, "python", background_color="default", word_wrap=False), soft_wrap=True)
    if not keep:
        console.print(
            "[dim]This service ends now. To type these, leave it running: .venv/bin/python examples/demo.py --keep[/]"
        )
        return
    console.print("The service is running; Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def heading(text: str) -> None:
    """Begin a section."""
    console.print()
    console.print(Rule(escape(text), align="left"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
