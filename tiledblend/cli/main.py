"""The `tiledblend` command: its verbs, and how it begins and ends. A verb imports what is heavy itself."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from tiledblend import __version__
from tiledblend.bytes.buckets import redacted
from tiledblend.cli.ending import explained
from tiledblend.cli.options import debug_option, schema_option
from tiledblend.cli.sections import HELP
from tiledblend.cli.state import advised
from tiledblend.cli.stopping import end_when_asked, ignore_signals, stop_when_asked

VERBS = (
    "blend",
    "clean",
    "demo",
    "diff",
    "export",
    "info",
    "outline",
    "plan",
    "preview",
    "route",
    "seams",
    "serve",
    "verify",
    "view",
)
"""Each is a module of this room with a `command`."""


def main() -> None:
    """Entry point: runs the command and exits with its code."""
    # Runs last: the interpreter then puts back what a signal does, and one at that moment would change the exit code.
    atexit.register(ignore_signals)
    stop_when_asked()
    code = run_command(sys.argv[1:])
    end_when_asked(code)
    # The interpreter would look through all that was imported for cycles, several times, before it ends.
    gc.freeze()
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Every error is one line on stderr."""
    state: dict[str, bool | None] = {"debug": False, "resumes": None}
    try:
        # A bare `tiledblend` asks what there is.
        code = cli.main(args=list(arguments) or ["--help"], prog_name="tiledblend", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone, as in `tiledblend info … | head` (click leaves by SystemExit then).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        code, line = explained(error)
        if state["debug"]:
            click.echo(redacted(traceback.format_exc()), err=True)
        click.echo(f"tiledblend: error: {redacted(advised(line, state['resumes']))}", err=True)
        return code


@click.group(context_settings=HELP)
@click.version_option(__version__, prog_name="tiledblend", message="%(prog)s %(version)s")
@schema_option
@debug_option
def cli() -> None:
    """Blend gigapixel images by masks, tile by tile on a dask cluster, into an OME-Zarr pyramid."""


for _verb in VERBS:
    cli.add_command(import_module(f"tiledblend.cli.{_verb}").command, _verb)
