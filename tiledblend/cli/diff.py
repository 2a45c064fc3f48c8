"""`tiledblend diff`."""

from __future__ import annotations

import json

import click

from tiledblend.cli.options import debug_option, json_option, output
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import resumes, show


@click.command(cls=Verb)
@click.argument("older", metavar="OLD")
@click.argument("newer", metavar="NEW")
@output("-o", "--output", "out", metavar="OUT.geojson", help="New GeoJSON file: outlines of what differs, for QuPath.")
@json_option
@debug_option
def command(older: str, newer: str, out: str | None, as_json: bool) -> None:
    """Which regions of two results differ, and why: another mask, parameter, image or version."""
    from tiledblend.bytes.new_file import refuse_existing
    from tiledblend.look import lines as report
    from tiledblend.look.changes import write_changed
    from tiledblend.run.changes import compare

    resumes(False)
    if out is not None:
        refuse_existing(out)
    found = compare(older, newer)
    if out is not None:
        write_changed(found, out)
    show(json.dumps(found.as_dict()) if as_json else report.difference_text(found))
