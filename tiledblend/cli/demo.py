"""`tiledblend demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tiledblend.cli.mapping import cluster_of
from tiledblend.cli.options import cluster_options, debug_option, json_option
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.cli.stopping import stoppable


@click.command(cls=Verb)
@click.option("--size", type=int, default=8192, show_default=True, metavar="PX", help="Side of the slides.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder. [tiledblend-demo]")
@click.option("--seed", type=int, default=7, show_default=True)
@cluster_options
@json_option
@debug_option
def command(size: int, out: Path | None, seed: int, as_json: bool, **flags: Any) -> None:
    """Make two stained slides and a mask, blend them, and draw the result."""
    from tiledblend.demo.demo import run_demo
    from tiledblend.look import lines as report

    resumes(False)
    report.start_logging(debug=is_debugging())
    with stoppable() as stop, report.progress() as progress:
        done = run_demo(
            out, size=size, seed=seed, cluster=cluster_of(flags), say=report.say, progress=progress, stop=stop
        )
    show(json.dumps(done.as_dict()) if as_json else report.demo_text(done))
