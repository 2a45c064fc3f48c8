"""`tiledblend clean`."""

from __future__ import annotations

import json

import click

from tiledblend.cli.options import debug_option, json_option
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import show


@click.command(cls=Verb)
@click.argument("result", metavar="OUT")
@json_option
@debug_option
def command(result: str, as_json: bool) -> None:
    """Remove what an unfinished run left behind. A complete result stays."""
    from dataclasses import asdict

    from tiledblend.containers.commit import clean

    done = clean(result)
    if as_json:
        show(json.dumps(asdict(done)))
    elif done.finished:
        show(f"{result}: the result is complete and stays; its ledger was removed")
    else:
        kept = f"; kept {len(done.kept)} files that are not of the run" if done.kept else ""
        show(f"{result}: removed {done.removed} objects of an unfinished run{kept}")
