"""`tiledblend preview`."""

from __future__ import annotations

import json
from typing import Any

import click

from tiledblend.cli.mapping import built
from tiledblend.cli.options import debug_option, inputs_option, json_option, layer_flags
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.errors import UsageError


@click.command(cls=Verb)
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE | BASE OVERLAY] OUT.png")
@layer_flags
@inputs_option
@click.option("--max-size", type=int, default=1024, show_default=True, metavar="PX", help="Of the longer side.")
@click.option("--scale-bar/--no-scale-bar", default=True, help="Where the pixel size is known. [drawn]")
@click.option("--seams", is_flag=True, help="Draw the layers' edges.")
@click.option("--weights", is_flag=True, help="Draw each layer's weight beside it.")
@click.option("--changed", metavar="OLD", help="Draw round what differs from this older result.")
@json_option
@debug_option
def command(
    paths: tuple[str, ...],
    max_size: int,
    scale_bar: bool,
    seams: bool,
    weights: bool,
    changed: str | None,
    inputs: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Draw a result or any source as a small PNG; or, with blend's arguments or --job, what blend would make.

    A composite is drawn from the coarsest level of its images that is fine enough: seconds, whatever its size.
    """
    from tiledblend.look.preview import preview as draw

    resumes(False)
    *images, out = paths
    source = _previewed(images, flags)
    if changed is not None and not isinstance(source, str):
        raise UsageError("--changed compares two results; give a result as SOURCE")
    done = draw(
        source, out, max_size, scale_bar=scale_bar, seams=seams, weights=weights, changed=changed, inputs=inputs
    )
    show(json.dumps(done) if as_json else f"{done['path']}: {done['shape'][1]} x {done['shape'][0]} px")


def _previewed(images: list[str], flags: dict[str, Any]) -> Any:
    if len(images) > 2:
        raise UsageError("preview draws SOURCE, or BASE and OVERLAY, into OUT.png; put further images into --layer")
    if len(images) == 1 and not any(flags.values()):
        return images[0]
    from tiledblend.look import lines as report

    if not images and not any(flags.values()):
        raise UsageError("nothing to draw; give SOURCE OUT.png, BASE OVERLAY OUT.png or --job FILE OUT.png")
    report.start_logging(debug=is_debugging())
    base, overlay = (*images, None, None)[:2]
    return built(flags | {"base": base, "overlay": overlay}).composite
