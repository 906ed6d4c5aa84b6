"""``flystore bench``: the commands that measure, and their help pages."""

from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(
    name="bench", help="Measure what flystore costs on this host.", no_args_is_help=True, rich_markup_mode="rich"
)


@bench_app.callback()
def _bench() -> None:
    pass  # makes `writer` a command of its own


_WRITER_EPILOG = """
On the acquisition host, two minutes:   flystore bench writer

Against the service of the beamline:    flystore bench writer --to https://data.example.org --rate 1000

Five minutes against a slow service:    flystore bench writer -s machine -s slow --rate 10000 --seconds 300

Exit status: 0 measured, 2 the command is wrong or something cannot be started.
"""


@bench_app.command(epilog=_WRITER_EPILOG)
def writer(
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--scenario",
            metavar="NAME",
            show_default=False,
            help="machine, up, slow, flapping, absent, backlog or readable. Repeat it for more; without it, all.",
        ),
    ] = None,
    rates: Annotated[
        list[float] | None,
        typer.Option(
            "--rate",
            metavar="N",
            min=0,
            show_default=False,
            help="Events a second; 0 is as fast as it goes. Repeatable; without it, 1000, 10000 and 0.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each scenario at each rate.")] = 10.0,
    backlog: Annotated[
        int, typer.Option(min=0, metavar="N", help="Events that wait in the scenario backlog; about 430 bytes each.")
    ] = 100_000,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="A service that runs already, which gets the measured runs; without it one is started. Only for "
            "machine, up and readable.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="FLYSTORE_API_KEY", show_default=False, help="Of the service of --to."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Where the journals go meanwhile; without it, the usual disk."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row, on standard output.")] = False,
) -> None:
    """Measure what keeping documents costs a plan, whatever the service does.

    Events of 20 columns are given to a RunWriter while the service is up, slow, comes and goes, or is away. A plain
    write of as many bytes is timed beside each, so that a figure can be told from what this machine does by itself.
    """
    from flystore.writer.bench import BenchOptions

    from ._bench import run_bench

    defaults = BenchOptions(to=to)
    run_bench(
        BenchOptions(
            scenarios=tuple(scenarios or defaults.of_service),
            rates=tuple(rates or defaults.rates),
            seconds=seconds,
            backlog=backlog,
            to=to,
            api_key=api_key if to is not None else None,
            directory=journal,
        ),
        as_json,
    )
