"""The commands and their help pages."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from flystore.model.errors import FlystoreError

MISTAKE = 2
"""Exit status when the command or a setting cannot work; also what a wrong option gives."""

_app = typer.Typer(
    help="Store and manage the data of Bluesky experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command that the arguments name; the entry point ``flystore``."""
    try:
        _app(prog_name="flystore")
    except FlystoreError as error:
        sys.stdout.flush()
        print(f"flystore: {error}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None


@_app.callback(invoke_without_command=True)
def _commands(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@_app.command()
def version() -> None:
    """Print the version."""
    print(importlib.metadata.version("flystore"))


_SERVE_EPILOG = """
Try it, keep nothing:   flystore serve --temp

A beamline:             flystore serve /srv/flystore --read /data --host 0.0.0.0

Exit status: 0 ended by Ctrl-C or SIGTERM, 2 something in the command or the directory is wrong.
"""


@_app.command(epilog=_SERVE_EPILOG)
def serve(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Where the service keeps its catalogue and its data; made if it does not exist.",
            show_default=False,
        ),
    ] = None,
    temp: Annotated[
        bool, typer.Option("--temp", help="Keep everything in a temporary directory, removed at the end.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="FLYSTORE_API_KEY",
            show_default=False,
            help="Who has it may do everything. Without it a new key is made and printed at each start, and "
            "kept nowhere; give one, rather in the variable, to keep it over restarts.",
        ),
    ] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option(
            "-r",
            "--read",
            metavar="ROOT",
            show_default=False,
            help="Directory whose files may be read and served: where detectors write. Repeat it for more.",
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO",
            show_default=False,
            help=r"What writers call a place, and what this machine calls it: C:\data=/mnt/data. Repeatable.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let anyone read without a key.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log requests and what the service does, to standard error.")
    ] = False,
) -> None:
    """Start the service: one process, one directory.

    Prints one line with the address when it is ready, and runs until Ctrl-C or SIGTERM.
    """
    from ._serve import ServeOptions, run_service

    run_service(
        ServeOptions(
            directory=directory,
            temp=temp,
            host=host,
            port=port,
            api_key=api_key,
            read=tuple(read or ()),
            maps=tuple(maps or ()),
            public=public,
            verbose=verbose,
        )
    )


_CHECK_EPILOG = """
Did the last scan work?      flystore check -1

A stream of a new device:    flystore check documents.jsonl

Exit status: 0 all is whole and nothing is odd, 3 something is missing, odd or unreadable, 2 the command is wrong.
"""

_AT = Annotated[
    str,
    typer.Option("--at", metavar="URL|DIR", envvar="FLYSTORE_URL", help="The service, or the directory of a store."),
]
_KEY = Annotated[
    str | None, typer.Option(metavar="KEY", envvar="FLYSTORE_API_KEY", show_default=False, help="For a service.")
]


# So that -1, the newest run, is no option.
_NUMBERS = {"ignore_unknown_options": True}


@_app.command(epilog=_CHECK_EPILOG, context_settings=_NUMBERS)
def check(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE...", help="Uid, part of it, scan id or -1; or a file of JSON lines; - is stdin."
        ),
    ],
    at: _AT = "http://localhost:8000",
    api_key: _KEY = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a run, on standard output.")] = False,
) -> None:
    """Say whether runs are whole, after looking at their files; or what is odd about a stream of documents.

    A file of documents (one {"name", "doc"} a line) is checked here, without a service: what is odd about it,
    and what to do.
    """
    from ._check import run_check

    raise typer.Exit(run_check(targets, at, api_key, as_json))


@_app.command(context_settings=_NUMBERS)
def close(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Uid, part of it, scan id or -1.")],
    reason: Annotated[str, typer.Option(help="Why it will get no stop document; kept and shown.")],
    at: _AT = "http://localhost:8000",
    api_key: _KEY = None,
) -> None:
    """Declare a run interrupted that lost its writer.

    It stays readable. Documents that come all the same are stored, and a late stop document wins.
    """
    from ._check import opened, run_named

    with opened(at, api_key) as client:
        print(run_named(client, run).declare_interrupted(reason))


_REBUILD_EPILOG = """
After an upgrade that mends how documents become a tree:   flystore rebuild /srv/flystore

Exit status: 0 rebuilt, 2 the directory cannot be opened or a record of the log is damaged.
"""


@_app.command(epilog=_REBUILD_EPILOG)
def rebuild(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a store.")],
) -> None:
    """Work the trees of all runs out again from the log.

    Documents, rows written by clients, arrays and detector files are not touched. Prints what became different.
    """
    from ._rebuild import run_rebuild

    run_rebuild(directory)
