"""`tiledblend seams`."""

from __future__ import annotations

import json
from typing import Any

import click

from tiledblend.cli.mapping import looked_at
from tiledblend.cli.options import debug_option, inputs_option, json_option, layer_options
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.errors import BadInputError, RefusedError


@click.command(cls=Verb)
@layer_options
@inputs_option
@click.option("--widths", metavar="4px,8px,…", help="Feathers to compare with the given one.")
@json_option
@debug_option
def command(widths: str | None, inputs: bool, as_json: bool, **flags: Any) -> None:
    """How visible the seams are: the step across each layer's edge, hard, feathered, and of the images themselves.

    BASE alone may be a result; else what blend would make of the same flags. --match all compares every kind.
    """
    from tiledblend.describe.lengths import Feather
    from tiledblend.describe.matching import Match, ring_of
    from tiledblend.kernels.tone_fit import KINDS
    from tiledblend.look import lines as report
    from tiledblend.look.seams import measure_seams
    from tiledblend.run.machine import cpu_count

    resumes(False)
    report.start_logging(debug=is_debugging())
    compared = [Feather.parse(text.strip()) for text in widths.split(",")] if widths else []
    matches: list[Match] = []
    if flags["match"] == "all":
        ring = flags["match_ring"]
        matches = [Match(kind, None if ring is None else ring_of(ring)) for kind in KINDS]
        flags |= {"match": None, "match_ring": None}
    result, origin = looked_at(flags, inputs=inputs)
    if origin.composite is None:
        raise (RefusedError if origin.withheld else BadInputError)(f"{result}: {origin.note}")
    if origin.note:
        report.say(f"note: {origin.note}")
    if any(layer.image.dtype.kind == "f" for layer in origin.composite.layers):
        matches = [match for match in matches if match.by != "od"]
    found = measure_seams(origin.composite, compared, matches=matches, threads=cpu_count())
    if as_json:
        show(json.dumps({"seams": [seam.as_dict() for seam in found]}))
    else:
        show(report.seams_text(found))
