"""`tiledblend route`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tiledblend.cli.options import debug_option, json_option, output
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.cli.values import parse_mask_values, parse_offset
from tiledblend.errors import UsageError


@click.command(cls=Verb)
@click.argument("mask", metavar="MASK")
@click.option("--base", required=True, metavar="B", help="The image below.")
@click.option("--overlay", required=True, metavar="O", help="The image that the mask shows.")
@click.option("--within", required=True, metavar="200um|300px", help="How far the seam may move from the mask's edge.")
@output("-o", "--output", "out", required=True, metavar="OUT.geojson", help="New GeoJSON file.")
@click.option("--mask-values", metavar="auto|binary|LO,HI|labels:A,B", help="What the mask's numbers mean.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Of outlines: only this class.")
@click.option("--offset", metavar="Y,X", help="Where the overlay's corner lies on the base.")
@click.option("--fit", type=click.Choice(["canvas", "physical"]), help="Resample the overlay to the base.")
@json_option
@debug_option
def command(mask: str, base: str, overlay: str, within: str, out: str, as_json: bool, **flags: Any) -> None:
    """Move a mask's edge to where two images differ least; write it as outlines that --mask takes and QuPath opens."""
    from tiledblend.describe import job as jobs
    from tiledblend.describe.lengths import Length
    from tiledblend.look import lines as report
    from tiledblend.look.route import route
    from tiledblend.run.machine import cpu_count

    resumes(False)
    report.start_logging(debug=is_debugging())
    layer: dict[str, Any] = {"image": overlay, "mask": mask}
    if flags["classes"]:
        layer["mask"] = {"path": mask, "classes": list(flags["classes"])}
    if flags["mask_values"]:
        layer["mask_values"] = parse_mask_values(flags["mask_values"])
    if flags["offset"]:
        layer["offset"] = parse_offset(flags["offset"])
    if flags["fit"]:
        layer["fit"] = flags["fit"]
    try:
        reach = Length.parse(within)
    except ValueError:
        raise UsageError(f"--within {within!r} is not understood; use 200um or 300px") from None
    mapping = jobs.with_absolute_paths({"layers": [{"image": base}, layer]}, Path.cwd())
    done = route(jobs.build(mapping, where="flags").composite, out, reach, threads=cpu_count())
    show(json.dumps(done.as_dict()) if as_json else report.route_text(done))
