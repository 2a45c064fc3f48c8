"""`tiledblend outline`."""

from __future__ import annotations

import json

import click

from tiledblend.cli.options import debug_option, json_option, output
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import resumes, show
from tiledblend.cli.values import parse_mask_values


@click.command(cls=Verb)
@click.argument("mask", metavar="MASK")
@output("-o", "--output", "out", required=True, metavar="OUT.geojson", help="New GeoJSON file.")
@click.option("--like", metavar="SLIDE", help="The slide of the mask: coordinates are its level-0 pixels.")
@click.option("--mask-values", metavar="auto|binary|LO,HI|labels:A,B", help="What the mask's numbers mean.")
@click.option("--class", "name", metavar="NAME", help="Class of the outlines.")
@json_option
@debug_option
def command(mask: str, out: str, like: str | None, mask_values: str | None, name: str | None, as_json: bool) -> None:
    """Write the outlines of a mask as GeoJSON that QuPath opens."""
    from tiledblend.describe.job import mask_values_of
    from tiledblend.look import lines as report
    from tiledblend.look.outline import outline as trace

    resumes(False)
    report.start_logging()
    values = mask_values_of(parse_mask_values(mask_values) if mask_values else "auto")
    done = trace(mask, out, like=like, mask_values=values, name=name)
    if as_json:
        show(json.dumps(done.as_dict()))
    else:
        show(f"{done.path}: {done.outlines:,} outlines, {report.amount(done.bytes_written)}")
