"""`tiledblend export`."""

from __future__ import annotations

import json
from typing import Any

import click

from tiledblend.cli.mapping import cluster_of
from tiledblend.cli.options import COMPRESSIONS, cluster_options, debug_option, json_option, output, running
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.cli.stopping import stoppable, told_interruption


@click.command(cls=Verb)
@click.argument("result", metavar="OUT.ome.zarr")
@click.argument("out", metavar="OUT.ome.tif")
@output("--compression", metavar=COMPRESSIONS, default="deflate", show_default=True, help="jpeg loses detail.")
@output("--tile", type=int, default=512, show_default=True, metavar="PX", help="Side of a tile.")
@running("--resume", is_flag=True, help="Continue an unfinished export of the same result.")
@cluster_options
@json_option
@debug_option
def command(result: str, out: str, compression: str, tile: int, resume: bool, as_json: bool, **flags: Any) -> None:
    """Write a result as one OME-TIFF with its pyramid, for QuPath and others."""
    from tiledblend.containers.ometiff.options import TiffOptions
    from tiledblend.look import lines as report
    from tiledblend.run.driver import Running
    from tiledblend.run.ometiff import export_ometiff

    report.start_logging(debug=is_debugging())
    resumes()
    options = TiffOptions.parse(compression, tile)
    with stoppable() as stop, report.progress("writing") as progress, told_interruption(out):
        running = Running(cluster_of(flags), progress, stop)
        done = export_ometiff(result, out, options, running=running, resume=resume)
    show(json.dumps(done.as_dict()) if as_json else report.export_text(done))
