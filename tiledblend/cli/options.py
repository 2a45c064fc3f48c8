"""The options that verbs share, each in the section of `-h` where one looks for it; which keys of a job they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from tiledblend.cli.sections import Option

OPERATORS = ("normal", "multiply", "screen", "darken", "lighten", "difference")
COMPRESSIONS = "keep|deflate|zstd|jpeg[:Q]|jpeg2000|none"

Decorator = Callable[[Any], Any]


def _debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj["debug"] = True


def _schema(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from tiledblend.describe.schema import schema

        click.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
        context.exit()


def _stacked(*options: Decorator) -> Decorator:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_what = partial(click.option, cls=Option, section="What")
_mask = partial(click.option, cls=Option, section="Mask and edge")
_place = partial(click.option, cls=Option, section="Place")
output = partial(click.option, cls=Option, section="Output")
running = partial(click.option, cls=Option, section="Running")
_cluster = partial(click.option, cls=Option, section="Cluster")
reporting = partial(click.option, cls=Option, section="Reporting")

debug_option = reporting(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show a traceback on errors."
)
schema_option = reporting(
    "--schema", is_flag=True, expose_value=False, is_eager=True, callback=_schema, help="Print a job's JSON Schema."
)
json_option = reporting("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

inputs_option = _what(
    "--inputs", is_flag=True, help="Open the inputs that a result names, wherever they lie. [only beside the result]"
)

layer_flags = _stacked(
    schema_option,
    _what("--job", "job_path", metavar="FILE", help="Job file (YAML or JSON) instead of layer flags."),
    _what("--layer", "layers", multiple=True, metavar="YAML", help="A further layer on top: '{image: …, mask: …}'."),
    _what("--fill", metavar="COLOR|auto", help="A colour as the top image: 243,243,243; auto: of glass near the mask."),
    _what("--series", metavar="N[,N]", help="Which image of a file, from 0: of BASE, of OVERLAY. Also slide.svs#1."),
    _what("--channels", metavar="N[,N…]", help="Channels that are kept, from 0, in this order."),
    _what("--opacity", type=float, metavar="0..1", help="Of the top image."),
    _what("--operator", type=click.Choice(OPERATORS), help="How the top image's colours meet those below."),
    _what(
        "--mode",
        type=click.Choice(["over", "average", "stack"]),
        help="Bottom to top, weighted average, or the channels of all images one after another.",
    ),
    _what(
        "--icc",
        type=click.Choice(["keep", "base", "srgb"]),
        help="Colour profiles: carry the base's [keep], convert the others into it, or all into sRGB.",
    ),
    _what("--background", metavar="N[,N…]", help="Value where no image is."),
    _what(
        "--allow-sparse",
        is_flag=True,
        help="Read TIFF tiles that were never written as nodata or 0, and chunks that a result has lost.",
    ),
    _what("--rgb", is_flag=True, help="Three channels of the images that do not say so are red, green, blue."),
    _mask("--mask", metavar="PATH|alpha", help="Where the top image shows: 0 hides it, full shows it."),
    _mask(
        "--class", "classes", multiple=True, metavar="NAME", help="Of outlines (GeoJSON, XML, HALO): only this class."
    ),
    _mask("--mask-values", metavar="auto|binary|LO,HI|labels:A,B", help="What the mask's numbers mean."),
    _mask("--threshold", type=float, metavar="N", help="The mask is what is at or above N, in its own numbers: 0.5."),
    _mask("--mask-frame", type=click.Choice(["layer", "canvas"]), help="What the mask covers."),
    _mask("--invert-mask", is_flag=True, default=None, help="Swap inside and outside of the mask."),
    _mask("--grow", metavar="8px|-3um", help="Grow the mask (negative: shrink) before it is feathered."),
    _mask(
        "--feather",
        metavar="16px|8um|bands:6|ksize:5",
        help="Soft edge: a Gaussian's sigma. It looks 3.3 times as wide (5 to 95 %). bands:N: multi-band blending.",
    ),
    _mask("--feather-side", type=click.Choice(["both", "inside"]), help="Where the soft edge lies."),
    _mask(
        "--match",
        metavar="offset|gain|linear|od",
        help="Fit the top image's tone to what lies below, per channel, around the mask's edge.",
    ),
    _mask("--match-ring", metavar="64um|128px", help="How far from the edge pixels are compared. [64um, else 128px]"),
    _place("--offset", metavar="Y,X", help="Where the top image's corner lies: pixels, or 12um,30um."),
    _place(
        "--fit",
        type=click.Choice(["canvas", "physical", "scene", "none"]),
        help="Resample images and mask to the canvas's size; the top image by pixel sizes, or its store's scene.",
    ),
    _place(
        "--affine", metavar="A,B,C,D,E,F|FILE|YAML", help="Maps points (x, y) of the top image to points of the canvas."
    ),
    _place(
        "--pixel-size-um", metavar="UM[,UM]", help="Of the images, instead of what the files say: of BASE, of OVERLAY."
    ),
    _place("--canvas", metavar="PATH|Y,X|YAML", help="The result's pixel grid (default: the first image's)."),
    _place("--level", type=int, metavar="K", help="Compose 2^K times smaller, from the images' own levels."),
    _place("--mpp", type=float, metavar="UM", help="Compose at this pixel size; states it where none is known."),
)
layer_options = _stacked(click.argument("base", required=False), click.argument("overlay", required=False), layer_flags)
output_options = _stacked(
    output("-o", "--output", metavar="OUT", help="New OME-Zarr or .ome.tif, or a small .png, .jpg or .tif."),
    output("--chunk", type=int, metavar="PX", help="Side of what is compressed at once. [512]"),
    output("--shard", type=int, metavar="PX", help="Side of one stored object. [4096]"),
    output("--levels", metavar="auto|keep|N", help="Pyramid levels; keep: the base's own. [auto]"),
    output("--codec", metavar="NAME:LEVEL", help="Lossless compression. [zstd:1]"),
    output(
        "--compression",
        metavar=COMPRESSIONS,
        help="Of a .ome.tif; keep: as the base is. [keep over JPEG tiles, else deflate]",
    ),
    output("--ome-zarr", type=click.Choice(["0.6", "0.5", "0.4"]), help="Version of the format. [0.5]"),
    output("--layout", type=click.Choice(["planar", "interleaved"]), help="Bytes inside RGB chunks. [planar]"),
)
reuse_option = running(
    "--reuse", metavar="OLD", help="Take parts of this older result that are what this run would make."
)
cluster_options = _stacked(
    running("--workers", type=int, metavar="N", help="Worker processes here. [threads of this process]"),
    running("--threads-per-worker", type=int, metavar="N", help="[CPUs / workers]"),
    running("--memory-limit", metavar="SIZE", help="Of each process that renders, such as 4GiB."),
    running("--local-directory", metavar="DIR", help="For dask's temporary files."),
    _cluster("--scheduler", metavar="ADDRESS", help="Running dask scheduler: tcp://… or tls://…"),
    _cluster("--scheduler-file", metavar="FILE", help="JSON file that the scheduler wrote."),
    _cluster("--tls-ca-file", metavar="PEM", help="With --tls-cert and --tls-key: encrypted cluster."),
    _cluster("--tls-cert", metavar="PEM"),
    _cluster("--tls-key", metavar="PEM"),
    _cluster("--dashboard", is_flag=True, help="dask's web page on 127.0.0.1 (needs bokeh)."),
    reporting("--performance-report", metavar="HTML", help="Write dask's report of the run (needs bokeh)."),
)

CLUSTER_KEYS = (
    *("workers", "threads_per_worker", "memory_limit", "local_directory", "scheduler", "scheduler_file"),
    *("tls_ca_file", "tls_cert", "tls_key", "performance_report", "dashboard"),
)
SCHEDULER_KEYS = ("scheduler", "scheduler_file", "dashboard", "performance_report")
LAYER_KEYS = {
    "mask": "mask",
    "mask_values": "mask_values",
    "threshold": "threshold",
    "mask_frame": "mask_frame",
    "invert_mask": "invert",
    "grow": "grow",
    "feather": "feather",
    "feather_side": "feather_side",
    "match": "match",
    "match_ring": "match_ring",
    "opacity": "opacity",
    "operator": "operator",
    "offset": "offset",
    "fit": "fit",
    "affine": "affine",
}
RESOLUTION_KEYS = ("level", "mpp")
OUTPUT_KEYS = ("chunk", "shard", "levels", "codec", "compression", "ome_zarr", "layout")


def flag_of(name: str) -> str:
    """How the command line calls a parameter."""
    names = {"base": "BASE", "layers": "--layer", "classes": "--class"}
    return names.get(name, "--" + name.replace("_", "-"))
