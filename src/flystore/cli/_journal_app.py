"""The commands of ``flystore journal`` and their help pages."""

from pathlib import Path
from typing import Annotated

import typer

_EPILOG = """
What waits on this host?        flystore journal ls

Send it now:                    flystore journal ship

Send it elsewhere, for good:    flystore journal ship NAME --to URL
"""

journal_app = typer.Typer(
    name="journal",
    help="See to documents on this host that no service has yet.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_HOME = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        show_default=False,
        help="Where journals lie; as in RunWriter(…, journal=DIR). Without it $XDG_STATE_HOME/flystore/journal or "
        "~/.local/state/flystore/journal.",
    ),
]
_WHAT = Annotated[
    str,
    typer.Argument(
        metavar="NAME|RUN",
        help="A journal, or a run: uid, scan id or JOURNAL/LOG. The beginning of a name is enough.",
    ),
]
_NAMES = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", show_default=False, help="Journals; without it all.")
]
_JSON = Annotated[bool, typer.Option("--json", help="One JSON object a journal, on standard output.")]

_LS_EPILOG = """
Exit status: 0 listed, 2 the command is wrong.
"""


@journal_app.command("ls", epilog=_LS_EPILOG)
def list_(home: _HOME = None, as_json: _JSON = False) -> None:
    """List the journals on this host: whose they are, how much waits in each, and why it is not sent.

    Changes nothing. A journal is held by the process that writes it, or an orphan; the next RunWriter for its
    address sends what an orphan holds.
    """
    from ._journal import run_list

    run_list(home, as_json)


_SHOW_EPILOG = """
The runs of a journal:    flystore journal show 20261122T1530

The documents of a run:   flystore journal show 6ac5ad6f

What is odd about them?   flystore journal show 6ac5ad6f --documents > f.jsonl; flystore check f.jsonl

Exit status: 0 shown, 2 there is no such journal or run, 3 it is damaged: what precedes the damage is shown.
"""


@journal_app.command(epilog=_SHOW_EPILOG)
def show(
    what: _WHAT,
    home: _HOME = None,
    documents: Annotated[
        bool, typer.Option("--documents", help='The documents as JSON lines, one {"name", "doc"} a line.')
    ] = False,
) -> None:
    """Show what is in a journal, or in one run of it, in words. Changes nothing."""
    from ._journal import run_show

    raise typer.Exit(run_show(what, home, documents))


_SHIP_EPILOG = """
All that was left behind:   flystore journal ship

After the key was mended:   flystore journal ship --api-key KEY

The service has moved:      flystore journal ship NAME --to URL

Exit status: 0 all is stored, 3 something is left: it stays in its journal, and is named, 2 the command is wrong.
"""


@journal_app.command(epilog=_SHIP_EPILOG)
def ship(
    names: _NAMES = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL|DIR",
            show_default=False,
            help="Send the named journals to this service or store, and mark them with it for good, once it has "
            "answered. Without it each goes where it was meant to go.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            show_default=False,
            help="For the one service that it is sent to. Without it the one in the variable FLYSTORE_API_KEY.",
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="Give up after so long without anything stored.")
    ] = 30.0,
    home: _HOME = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens, to standard error.")] = False,
) -> None:
    """Send what orphaned journals hold, and end when all is stored.

    Runs that were parked are tried again. Journals that a living process holds are left to it. Sending twice
    stores nothing twice.
    """
    from ._journal import ShipOptions, run_ship

    raise typer.Exit(run_ship(ShipOptions(tuple(names or ()), to, api_key, patience, home, verbose)))


_VERIFY_EPILOG = """
Exit status: 0 every frame is whole (a torn last frame is normal, and reported), 3 damage was found, 2 the command is
wrong.
"""


@journal_app.command(epilog=_VERIFY_EPILOG)
def verify(names: _NAMES = None, home: _HOME = None, as_json: _JSON = False) -> None:
    """Check every frame of journals against its checksum; name file, segment and offset of damage.

    Changes nothing, and may be done while they are written. Read from a copy if the disk is failing.
    """
    from ._journal import run_verify

    raise typer.Exit(run_verify(tuple(names or ()), home, as_json))


_DISCARD_EPILOG = """
A run refused for good:   flystore journal discard 6ac5ad6f --reason "a test"

Changed your mind?        flystore journal ship --journal DIR/discarded

Exit status: 0 set aside, 2 there is no such journal or run, or a living process holds it.
"""


@journal_app.command(epilog=_DISCARD_EPILOG)
def discard(
    what: _WHAT,
    reason: Annotated[str, typer.Option("--reason", help="Why it shall never be sent; kept beside the documents.")],
    home: _HOME = None,
) -> None:
    """Set a run, or a whole journal, aside, so that it is never sent by itself.

    The documents are moved into the directory "discarded" beside the journals, and stay there until a person
    deletes them. What the service has already stays stored.
    """
    from ._journal import run_discard

    run_discard(what, reason, home)
