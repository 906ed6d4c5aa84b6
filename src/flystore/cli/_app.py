"""The commands and their help pages."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from flystore.model.errors import FlystoreError

from ._bench_app import bench_app
from ._journal_app import journal_app
from ._quick import plain_arguments

INTERRUPTED = 130
"""Exit status after Ctrl-C where nothing had begun."""

MISTAKE = 2
"""Exit status when the command or a setting cannot work; also what a wrong option gives."""

_app = typer.Typer(
    help="Store and manage the data of Bluesky experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_app.add_typer(journal_app)
_app.add_typer(bench_app)


def main() -> None:
    """Run the command that the arguments name; the entry point ``flystore``."""
    try:
        if sys.argv[1:2] == ["serve"] and (found := plain_arguments(serve, sys.argv[2:])) is not None:
            serve(**found)
        else:
            _app(prog_name="flystore")
    except KeyboardInterrupt:  # before the service had its own way to end
        raise SystemExit(INTERRUPTED) from None
    except FlystoreError as error:
        sys.stdout.flush()
        print(f"flystore: {error}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None


def _roots_of(given: list[str] | None) -> tuple[Path | str, ...]:
    # A Path would make one slash of the two of a bucket.
    return tuple(root if root[:5].lower() == "s3://" else Path(root) for root in given or ())


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
    catalog: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FLYSTORE_CATALOG",
            show_default=False,
            help="Keep the catalogue in PostgreSQL: postgresql://USER@HOST/NAME; DIR then holds arrays. Give an "
            "address with a password in the variable, or the password in a .pgpass file.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FLYSTORE_STORAGE",
            show_default=False,
            help="Keep arrays and tables in a bucket: s3://BUCKET/PREFIX. Keys and endpoint come from the AWS_… "
            "variables; DIR then holds the catalogue, and nothing that lasts if that is in PostgreSQL.",
        ),
    ] = None,
    pool: Annotated[
        int,
        typer.Option(metavar="N", min=2, max=1000, help="Connections to PostgreSQL of each process, at most."),
    ] = 20,
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=64, help="Processes that answer at one address, over one catalogue."),
    ] = 1,
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
        list[str] | None,
        typer.Option(
            "-r",
            "--read",
            metavar="ROOT",
            show_default=False,
            help="Directory, or s3://bucket/prefix, whose files may be served: where detectors write. Repeatable.",
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO",
            show_default=False,
            help=r"What writers call a place, and what this machine calls it: C:\data=/mnt/data, or "
            "/data=s3://bucket/data. Repeatable.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let anyone read without a key.")] = False,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            show_default=False,
            help="Web pages that may read and write with a person's key: https://viewer.example.org. Repeatable.",
        ),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="NAME=VALUE",
            envvar="FLYSTORE_LIMITS",
            show_default=False,
            help="What a request may cost: response_bytes=100MiB. Repeatable; in the variable, separated by spaces.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log requests and what the service does, to standard error.")
    ] = False,
    log_format: Annotated[
        str,
        typer.Option(
            metavar="text|json", envvar="FLYSTORE_LOG_FORMAT", help="Lines of text, or one JSON object a line."
        ),
    ] = "text",
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log", show_default=False, help="A line for each request; else with --verbose."
        ),
    ] = None,
    slow: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Log requests that take longer, whatever else is; 0 logs none."),
    ] = 10.0,
    metrics_public: Annotated[
        bool, typer.Option("--metrics-public", help="Let anyone read /metrics without a key.")
    ] = False,
) -> None:
    """Start the service over one directory.

    Prints one line with the address when it is ready, and runs until Ctrl-C or SIGTERM.
    """
    from ._serve import ServeOptions, run_service

    run_service(
        ServeOptions(
            directory=directory,
            catalog=catalog,
            pool=pool,
            storage=storage,
            workers=workers,
            temp=temp,
            host=host,
            port=port,
            api_key=api_key,
            read=_roots_of(read),
            maps=tuple(maps or ()),
            public=public,
            origins=tuple(origins or ()),
            limits=tuple(limits or ()),
            verbose=verbose,
            log_format=log_format,
            access_log=access_log,
            slow_seconds=slow,
            metrics_public=metrics_public,
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


_COPY_EPILOG = """
Into PostgreSQL:     flystore copy /srv/flystore /srv/new --to-catalog postgresql://flystore@db/flystore

And back:            flystore copy /srv/new /srv/old --from-catalog postgresql://flystore@db/flystore

Into a bucket, too:  flystore copy /srv/flystore /srv/new --to-storage s3://bucket/flystore

While it is served:  flystore backup /srv/flystore /backup/now, then flystore copy /backup/now /srv/new

Exit status: 0 the copy is whole and was compared, 2 it is not; run it again, and it goes on where it was.
"""


@_app.command(epilog=_COPY_EPILOG)
def copy(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="The directory of a store, or a backup.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="An empty directory, or one to make.")],
    from_catalog: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default=False, help="FROM's catalogue, if it is in PostgreSQL."),
    ] = None,
    to_catalog: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default=False, help="TO's catalogue, if it is to be in PostgreSQL."),
    ] = None,
    to_storage: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default=False, help="Bucket for TO's arrays: s3://BUCKET/PREFIX."),
    ] = None,
) -> None:
    """Copy a store to another place, or between SQLite and PostgreSQL, and compare all of it.

    Nobody may write to FROM meanwhile. Arrays that FROM keeps in a bucket are read from there; without --to-storage
    they go to a directory. Files of detectors stay where they are.
    """
    from ._copy import run_copy

    run_copy(source, target, from_catalog, to_catalog, to_storage)


_MIGRATE_EPILOG = """
What would an upgrade do?   flystore migrate /srv/flystore --dry-run

Exit status: 0 up to date (now or already), 2 not possible; nothing was changed. Ended half-way, it goes on next time.
"""


@_app.command(epilog=_MIGRATE_EPILOG)
def migrate(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The directory of a store.", show_default=False)
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FLYSTORE_CATALOG",
            show_default=False,
            help="Its catalogue, if that is in PostgreSQL: postgresql://USER@HOST/NAME. DIR may then be left out.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    in_use: Annotated[
        bool, typer.Option("--in-use", help="Even if others have it open; none of them may be of an earlier version.")
    ] = False,
) -> None:
    """Bring a store to the schema of this version, which the next start would do by itself.

    For large stores, whose start would take long. Step by step, each whole or not at all.
    """
    from ._migrate import run_migrate

    run_migrate(directory, catalog, dry_run=dry_run, in_use=in_use)


_DOCTOR_EPILOG = """
Before the first start:     flystore doctor /srv/flystore --read /data --port 8000

A running store:            flystore doctor /srv/flystore --read /data

From the beamline's host:   flystore doctor --to http://flystore.example.org:8000

Exit status: 0 no problem (there may be warnings), 1 a problem, 2 the command is wrong.
"""


@_app.command(epilog=_DOCTOR_EPILOG)
def doctor(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="The directory of a store, there or not yet.", show_default=False),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option("-r", "--read", metavar="ROOT", show_default=False, help="As for `flystore serve`."),
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FLYSTORE_CATALOG",
            show_default=False,
            help="A catalogue in PostgreSQL: postgresql://USER@HOST/NAME.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", show_default=False, help="A bucket for arrays, s3://BUCKET/PREFIX; else what DIR was given."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where the service is to listen.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, show_default=False, help="See whether this port is free.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="FLYSTORE_API_KEY", show_default=False, help="As for `flystore serve`."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="File that sets FLYSTORE_API_KEY for the service."),
    ] = None,
    limits: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=VALUE", show_default=False, help="As for `flystore serve`."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default=False, help="Look at the way from here to a service, for a writer."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="The writer's journal, if it is not in its usual place."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All checks, as JSON on standard output.")] = False,
) -> None:
    """Say what would keep a service, or a writer, from working, and what to do about it.

    Looks at storage, read roots, codecs, clock, space, database, key, port and limits; changes nothing.
    """
    from ._doctor import DoctorOptions, run_doctor

    options = DoctorOptions(
        directory=directory,
        catalog=catalog,
        storage=storage,
        read=_roots_of(read),
        host=host,
        port=port,
        api_key=api_key,
        key_file=key_file,
        limits=tuple(limits or ()),
        to=to,
        journal=journal,
        as_json=as_json,
    )
    raise typer.Exit(run_doctor(options))


_FOLLOW_EPILOG = """
What is measured now?            flystore follow

The newest run, event by event:  flystore follow -1

Exit status: 0 the run has ended or Ctrl-C was pressed, 2 the command is wrong or the service refuses it.
"""


@_app.command(epilog=_FOLLOW_EPILOG, context_settings=_NUMBERS)
def follow(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Uid, part of it, scan id or -1.", show_default=False)
    ] = None,
    at: _AT = "http://localhost:8000",
    api_key: _KEY = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a document or change.")] = False,
) -> None:
    """Print a run's events as they are stored, to its end; or, without a run, which runs begin and end.

    It goes on by itself after the service was started anew.
    """
    from ._follow import run_follow

    run_follow(run, at, api_key, as_json)


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


_BACKUP_EPILOG = """
Every night, while it is served:   flystore backup /srv/flystore /backup/flystore-2026-11-22

Exit status: 0 made, 3 made, but the store had lost an array before, 2 not made.
"""


@_app.command(epilog=_BACKUP_EPILOG)
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a store; it may be in use.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A directory to make; better on another disk.")],
) -> None:
    """Copy a store while it is served: catalogue and arrays as of one moment, with checksums.

    TARGET appears when all of it is on disk. Files that detectors wrote are not in it: they stay where they are.
    """
    from ._backup import run_backup

    raise typer.Exit(run_backup(directory, target))


_RESTORE_EPILOG = """
After a disk failed:   flystore restore /backup/flystore-2026-11-22 /srv/flystore

Exit status: 0 restored, 2 the backup is damaged or DIR is not empty; nothing was restored.
"""


@_app.command(epilog=_RESTORE_EPILOG)
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `flystore backup` made.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory, or one to make.")],
) -> None:
    """Make a store of a backup, after checking every file of it, and say up to when it goes."""
    from ._backup import run_restore

    run_restore(source, directory)


_VERIFY_EPILOG = """
Once a week:                          flystore verify /srv/flystore --deep --read /data

Is last night's backup good?          flystore verify /backup/flystore-2026-11-22

A file was mended after its run:      flystore verify /srv/flystore --accept RUN/primary/det --read /data

Exit status: 0 nothing is damaged, 3 something is damaged, gone or changed, 2 there is nothing to verify.
"""


@_app.command(epilog=_VERIFY_EPILOG)
def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a store, or a backup.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Work the trees out again from the log and compare; read files with checksums."),
    ] = False,
    read: Annotated[
        list[str] | None,
        typer.Option("-r", "--read", metavar="ROOT", show_default=False, help="As for `flystore serve`."),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FROM=TO", show_default=False, help="As for `flystore serve`."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="PATH",
            show_default=False,
            help="Take the files of this node and those below it for right as they are now; verifies nothing.",
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option("--scratch", metavar="DIR", show_default=False, help="Where a copy of the catalogue fits."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All findings, as JSON on standard output.")] = False,
) -> None:
    """Check every stored byte against its checksum, and every registered file against what was observed.

    It changes nothing and may run while the store is served. What carries no checksum is reported as unverified.
    """
    from ._verify import run_accept, run_verify

    if accept:
        run_accept(directory, accept, _roots_of(read), maps or ())
        return
    status = run_verify(directory, deep=deep, read=_roots_of(read), maps=maps or (), scratch=scratch, as_json=as_json)
    raise typer.Exit(status)
