"""`tiledblend verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tiledblend.bytes.buckets import WEB_SCHEMES, scheme_of
from tiledblend.cli.options import debug_option, inputs_option, json_option
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import show
from tiledblend.errors import BadInputError, RefusedError, UsageError, VerificationError

if TYPE_CHECKING:
    from tiledblend.run.recompute import RecomputeReport


@click.command(cls=Verb)
@click.argument("result", metavar="OUT")
@click.option("--fast/--full", default=False, help="Compare lengths only, or hash and decode every object (default).")
@click.option(
    "--against-inputs", metavar="N|all", help="Also render N tiles (or all) again from the inputs and compare them."
)
@inputs_option
@json_option
@debug_option
def command(result: str, fast: bool, against_inputs: str | None, inputs: bool, as_json: bool) -> None:
    """Check every stored object of a result against its run's manifest, or an OME-TIFF against its own checksums."""
    from tiledblend.containers.verify import verify

    count = _tile_count(against_inputs)
    found = verify(result, "fast" if fast else "full")
    document = found.as_dict()
    again = recomputed(result, count, inputs=inputs) if found.ok and against_inputs is not None else None
    if again is not None:
        document["recomputed_tiles"], document["differing"] = again.tiles, list(again.differing)
        document["ok"] = not again.differing
    if as_json:
        show(json.dumps(document))
    found.require_ok()
    if again is not None and again.differing:
        raise VerificationError(
            f"{result}: {len(again.differing)} objects are not what the inputs give (first: {again.differing[0]})"
        )
    if not as_json:
        show(found.summary() + (f"; {again.tiles} tiles rendered again are the same" if again else ""))


def _tile_count(text: str | None) -> int | None:
    if text is None or text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--against-inputs {text!r} must be a number of tiles or all")
    return int(text)


def recomputed(result: str, count: int | None, *, inputs: bool) -> RecomputeReport:
    """Render tiles of a result again, from the inputs that it names. inputs: from web servers, too."""
    from tiledblend.bytes.archive_objects import open_result
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.seal import read_origin
    from tiledblend.containers.omezarr.documents import read_attributes, result_layout
    from tiledblend.describe.job import build
    from tiledblend.describe.schema import check
    from tiledblend.look.lines import say
    from tiledblend.run.machine import cpu_count
    from tiledblend.run.origin import inputs_elsewhere, inputs_named, listed
    from tiledblend.run.recompute import recompute, recompute_tiff

    origin = read_origin(result) if is_ometiff_path(result) else None
    if origin is not None or is_ometiff_path(result):
        layout, job = None, None if origin is None else origin.description
    else:
        store = open_result(result)
        attributes = read_attributes(store) or {}
        layout, job = result_layout(attributes), attributes["tiledblend"].get("description")
    if not job or (origin is None and layout is None):
        raise BadInputError(f"{result}: does not say from what it was made; it was not written by the command line")
    check(job, where=result)
    web = tuple(path for path in inputs_elsewhere(result, job) if scheme_of(path) in WEB_SCHEMES)
    if web and not inputs:
        raise RefusedError(f"{result}: it names inputs on web servers: {listed(web)}; open them with --inputs")
    say(f"opening what {result} was made from: {listed(inputs_named(job))}")
    composite = build(job).composite
    if origin is not None:
        return recompute_tiff(result, origin, composite, count, threads=cpu_count())
    assert layout is not None
    return recompute(store, layout, composite, count, threads=cpu_count())
