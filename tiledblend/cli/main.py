"""The `tiledblend` command. Flags become a job's mapping; what is heavy is imported by the verb that needs it."""

from __future__ import annotations

import atexit
import errno
import gc
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from tiledblend import __version__
from tiledblend.bytes.buckets import checked_url, redacted, scheme_of
from tiledblend.errors import (
    BadInputError,
    InterruptedRun,
    TiledblendError,
    UsageError,
    VerificationError,
    one_line,
    printable,
)

if TYPE_CHECKING:
    from tiledblend.describe.composite import Composite
    from tiledblend.describe.job import Job
    from tiledblend.run.cluster import ClusterOptions
    from tiledblend.run.driver import RunReport
    from tiledblend.run.plan import Plan
    from tiledblend.run.recompute import RecomputeReport
    from tiledblend.run.tiff_export import ExportReport
    from tiledblend.sources.base import Unstored

COMPRESSIONS = "deflate|zstd|jpeg[:Q]|jpeg2000|none"
NOT_OUTPUTS = (".svs", ".ndpi", ".scn", ".mrxs", ".webp", ".bmp", ".gif", ".jp2", ".zip", ".yaml", ".yml", ".json")


def main() -> None:
    """Entry point: runs the command and exits with its code."""
    # Runs last: the interpreter then puts back what a signal does, and one at that moment would change the exit code.
    atexit.register(_ignore_signals)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code = run_command(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        # All is done and said: a signal hurries the interpreter's end and adds no traceback to it.
        signal.signal(number, lambda *_: os._exit(code))
    # The interpreter would look through all that was imported for cycles, several times, before it ends.
    gc.freeze()
    sys.exit(code)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM outside a run. Not KeyboardInterrupt: click prints an empty line for that."""


def _stop(number: int, frame: FrameType | None) -> None:
    if not _ECHO.is_echo():
        raise _Stopped


class _Echo:
    """One Ctrl-C may arrive twice: from the terminal or a process group, and passed on by the parent process."""

    seconds = 0.3

    def __init__(self) -> None:
        self._last = float("-inf")

    def is_echo(self) -> bool:
        """True for a signal right after another one."""
        now = time.monotonic()
        is_echo, self._last = now < self._last + self.seconds, now
        return is_echo


_ECHO = _Echo()


def run_command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Every error is one line on stderr."""
    state = {"debug": False, "resumes": True}
    try:
        # A bare `tiledblend` asks what there is.
        code = cli.main(args=list(arguments) or ["--help"], prog_name="tiledblend", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone, as in `tiledblend info … | head` (click leaves by SystemExit then).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        code, line = _explained(error)
        if state["debug"]:
            click.echo(redacted(traceback.format_exc()), err=True)
        click.echo(f"tiledblend: error: {redacted(_advised(line, state['resumes']))}", err=True)
        return code


def _advised(line: str, resumes: bool) -> str:
    """The line, without the advice to --resume where there is none."""
    return line if resumes else line.replace("continue with --resume", "start again").replace(" with --resume", "")


def _print(text: str) -> None:
    """On stdout: what is said, whatever the names in it hold."""
    click.echo(printable(text))


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit code and one line."""
    if isinstance(error, TiledblendError):
        return error.exit_code, one_line(str(error))
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        verb = context.command_path.partition(" ")[2] if context is not None else ""
        return 2, one_line(f"{verb}: {error.format_message()}" if verb else error.format_message())
    if isinstance(error, (_Stopped, KeyboardInterrupt, click.Abort)):
        return InterruptedRun.exit_code, "interrupted; if it was writing a result, continue with --resume"
    if isinstance(error, MemoryError):
        return 6, "out of memory; use fewer threads or a smaller --shard"
    if (told := _told_limit(error)) is not None:
        return told.exit_code, one_line(str(told))
    reason = one_line(str(error))
    return 1, f"unexpected {type(error).__name__}{f': {reason}' if reason else ''}; run again with --debug to see where"


_NO_MEMORY = ("can't start new thread", "failed to map segment from shared object")
"""How Python and the dynamic loader say it."""


def _told_limit(error: BaseException | None) -> TiledblendError | None:
    """What a library's error is about if the machine's limits or its disk are behind it somewhere."""
    from tiledblend.bytes.objects import storage_error
    from tiledblend.errors import ResourceError, resource_error

    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return ResourceError("out of memory or threads; use fewer threads or a smaller --shard")
        if isinstance(error, OSError):
            if (limit := resource_error(error, "cannot go on")) is not None:
                return limit
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                return storage_error(error, "write", error.filename or "the output or a temporary file")
        error = error.__cause__ or error.__context__
    return None


# --- options


def _debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj["debug"] = True


def _stacked(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _is_debugging() -> bool:
    return bool(click.get_current_context().find_root().obj["debug"])


def _cannot_resume() -> None:
    """This command, or what it writes, knows no --resume: no error shall advise it."""
    click.get_current_context().find_root().obj["resumes"] = False


def _can_resume() -> bool:
    context = click.get_current_context(silent=True)
    return context is None or bool(context.find_root().obj["resumes"])


_debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show a traceback on errors."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

_layer_flags = _stacked(
    click.option("--job", "job_path", metavar="FILE", help="Job file (YAML or JSON) instead of layer flags."),
    click.option("--mask", metavar="PATH|alpha", help="Where the top image shows: 0 hides it, full shows it."),
    click.option(
        "--class", "classes", multiple=True, metavar="NAME", help="Of outlines (GeoJSON, ASAP XML): only this class."
    ),
    click.option(
        "--allow-sparse",
        is_flag=True,
        help="Read TIFF tiles that were never written as zeros, and chunks that a result has lost.",
    ),
    click.option("--mask-values", metavar="auto|binary|LO,HI|labels:A,B", help="What the mask's numbers mean."),
    click.option("--mask-frame", type=click.Choice(["layer", "canvas"]), help="What the mask covers."),
    click.option("--invert-mask", is_flag=True, default=None, help="Swap inside and outside of the mask."),
    click.option("--grow", metavar="8px|-3um", help="Grow the mask (negative: shrink) before it is feathered."),
    click.option("--feather", metavar="16px|8um|ksize:5", help="Width of the mask's soft edge (a Gaussian's sigma)."),
    click.option("--feather-side", type=click.Choice(["both", "inside"]), help="Where the soft edge lies."),
    click.option("--opacity", type=float, metavar="0..1", help="Of the top image."),
    click.option("--offset", metavar="Y,X", help="Where the top image's corner lies: pixels, or 12um,30um."),
    click.option(
        "--fit",
        type=click.Choice(["canvas", "physical", "none"]),
        help="Resample images and mask to the canvas's size; physical: the top image by the pixel sizes.",
    ),
    click.option(
        "--affine", metavar="A,B,C,D,E,F|FILE|YAML", help="Maps points (x, y) of the top image to points of the canvas."
    ),
    click.option(
        "--pixel-size-um", metavar="UM[,UM]", help="Of the images, instead of what the files say: of BASE, of OVERLAY."
    ),
    click.option(
        "--layer", "layers", multiple=True, metavar="YAML", help="A further layer on top: '{image: …, mask: …}'."
    ),
    click.option("--mode", type=click.Choice(["over", "average"]), help="Bottom to top, or weighted average."),
    click.option("--canvas", metavar="PATH|Y,X|YAML", help="The result's pixel grid (default: the first image's)."),
    click.option("--background", metavar="N[,N…]", help="Value where no image is."),
    click.option("--level", type=int, metavar="K", help="Compose 2^K times smaller, from the images' own levels."),
    click.option("--mpp", type=float, metavar="UM", help="Compose at this pixel size; states it where none is known."),
)
_layer_options = _stacked(
    click.argument("base", required=False), click.argument("overlay", required=False), _layer_flags
)
_output_options = _stacked(
    click.option("-o", "--output", metavar="OUT", help="New OME-Zarr or .ome.tif, or a small .png, .jpg or .tif."),
    click.option("--chunk", type=int, metavar="PX", help="Side of what is compressed at once. [512]"),
    click.option("--shard", type=int, metavar="PX", help="Side of one stored object. [4096]"),
    click.option("--levels", metavar="auto|N", help="Pyramid levels. [auto]"),
    click.option("--codec", metavar="NAME:LEVEL", help="Lossless compression. [zstd:1]"),
    click.option("--compression", metavar=COMPRESSIONS, help="Of a .ome.tif; jpeg loses detail. [deflate]"),
    click.option("--ome-zarr", type=click.Choice(["0.5", "0.4"]), help="Version of the format. [0.5]"),
    click.option("--layout", type=click.Choice(["planar", "interleaved"]), help="Bytes inside RGB chunks. [planar]"),
)
_cluster_options = _stacked(
    click.option("--workers", type=int, metavar="N", help="Worker processes here. [threads of this process]"),
    click.option("--threads-per-worker", type=int, metavar="N", help="[CPUs / workers]"),
    click.option("--memory-limit", metavar="SIZE", help="Of each process that renders, such as 4GiB."),
    click.option("--local-directory", metavar="DIR", help="For dask's temporary files."),
    click.option("--scheduler", metavar="ADDRESS", help="Running dask scheduler: tcp://… or tls://…"),
    click.option("--scheduler-file", metavar="FILE", help="JSON file that the scheduler wrote."),
    click.option("--tls-ca-file", metavar="PEM", help="With --tls-cert and --tls-key: encrypted cluster."),
    click.option("--tls-cert", metavar="PEM"),
    click.option("--tls-key", metavar="PEM"),
    click.option("--dashboard", is_flag=True, help="dask's web page on 127.0.0.1 (needs bokeh)."),
    click.option("--performance-report", metavar="HTML", help="Write dask's report of the run (needs bokeh)."),
)
_CLUSTER_KEYS = (
    *("workers", "threads_per_worker", "memory_limit", "local_directory", "scheduler", "scheduler_file"),
    *("tls_ca_file", "tls_cert", "tls_key", "performance_report", "dashboard"),
)
_SCHEDULER_KEYS = ("scheduler", "scheduler_file", "dashboard", "performance_report")
_LAYER_KEYS = {
    "mask": "mask",
    "mask_values": "mask_values",
    "mask_frame": "mask_frame",
    "invert_mask": "invert",
    "grow": "grow",
    "feather": "feather",
    "feather_side": "feather_side",
    "opacity": "opacity",
    "offset": "offset",
    "fit": "fit",
    "affine": "affine",
}
_RESOLUTION_KEYS = ("level", "mpp")
_OUTPUT_KEYS = ("chunk", "shard", "levels", "codec", "compression", "ome_zarr", "layout")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tiledblend", message="%(prog)s %(version)s")
@_debug_option
def cli() -> None:
    """Blend gigapixel images by masks, tile by tile on a dask cluster, into an OME-Zarr pyramid."""


# --- flags to a job's mapping


def job_mapping(flags: dict[str, Any]) -> dict[str, Any]:
    """The job's mapping that these flags say, every path absolute. Raises UsageError."""
    from tiledblend.describe import job as jobs

    if flags["job_path"]:
        others = ("classes", "base", "layers", "mode", "canvas", "background", "pixel_size_um")
        given = [name for name in (*_LAYER_KEYS, *others) if flags[name]]
        if given:
            raise UsageError(f"--job says the layers already; leave out {', '.join(_flag(name) for name in given)}")
        mapping = jobs.load_job(flags["job_path"])
    else:
        mapping = jobs.with_absolute_paths(_mapping_of_layer_flags(flags), Path.cwd())
    if flags["allow_sparse"]:
        mapping = jobs.with_sparse_allowed(mapping)
    mapping = _at_resolution(mapping, flags)
    output = dict(mapping.get("output", {}))
    output |= {key: flags[key] for key in _OUTPUT_KEYS if flags.get(key) is not None}
    if flags.get("levels") is not None:
        output["levels"] = _levels(flags["levels"])
    if flags.get("output") is not None:
        output["path"] = _absolute(_checked_output(flags["output"] or None))
    return mapping | ({"output": output} if output else {})


def _at_resolution(mapping: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The mapping with --level or --mpp, which win over the job's own."""
    given = {key: flags[key] for key in _RESOLUTION_KEYS if flags[key] is not None}
    return {key: value for key, value in mapping.items() if not given or key not in _RESOLUTION_KEYS} | given


def _absolute(path: str) -> str:
    return checked_url(path) if scheme_of(path) else os.path.abspath(os.path.expanduser(path))


def _flag(name: str) -> str:
    names = {"base": "BASE", "layers": "--layer", "classes": "--class"}
    return names.get(name, "--" + name.replace("_", "-"))


def _mapping_of_layer_flags(flags: dict[str, Any]) -> dict[str, Any]:
    from tiledblend.describe import job as jobs

    images = [path for path in (flags["base"], flags["overlay"]) if path]
    layers: list[dict[str, Any]] = [{"image": path} for path in images]
    top = {key: flags[flag] for flag, key in _LAYER_KEYS.items() if flags[flag] is not None}
    if top and not layers:
        raise UsageError(
            f"{_flag(next(f for f in _LAYER_KEYS if flags[f] is not None))} belongs to an image; give BASE"
        )
    if "offset" in top:
        top["offset"] = _offset(top["offset"])
    if "affine" in top:
        top["affine"] = _affine(top["affine"])
    if "mask_values" in top:
        top["mask_values"] = _mask_values(top["mask_values"])
    if flags["classes"]:
        if top.get("mask", "alpha") == "alpha":
            raise UsageError("--class picks outlines of a mask; give --mask FILE.geojson")
        top["mask"] = {"path": top["mask"], "classes": list(flags["classes"])}
    if layers:
        layers[-1] |= top
    if flags["fit"] and flags["canvas"] and len(layers) > 1:
        layers[0]["fit"] = flags["fit"]
    if flags["pixel_size_um"] is not None:
        _state_pixel_sizes(layers, flags["pixel_size_um"])
    for number, text in enumerate(flags["layers"], 1):
        layer = jobs.parse_mapping(text, where=f"--layer {number}")
        jobs.check_layer(layer, where=f"--layer {number}")
        layers.append(layer)
    if not layers:
        raise UsageError("nothing to blend; give BASE and OVERLAY, --layer, or --job FILE")
    mapping: dict[str, Any] = {"layers": layers}
    if flags["mode"]:
        mapping["mode"] = flags["mode"]
    if flags["canvas"]:
        mapping["canvas"] = _canvas(flags["canvas"])
    if flags["background"] is not None:
        values = _numbers(flags["background"], "--background", float, None)
        mapping["background"] = values[0] if len(values) == 1 else values
    return mapping


def _state_pixel_sizes(layers: list[dict[str, Any]], text: str) -> None:
    """Of BASE and OVERLAY; one number is both's."""
    sizes = _numbers(text, "--pixel-size-um", float, None)
    if len(sizes) > max(1, len(layers)) or not layers:
        raise UsageError(f"--pixel-size-um {text!r} has {len(sizes)} numbers for {len(layers)} images")
    for number, layer in enumerate(layers):
        layer["pixel_size_um"] = sizes[min(number, len(sizes) - 1)]


def _offset(text: str) -> list[int | str]:
    parts = [part.strip() for part in text.strip("[] ").split(",")]
    # A bare 1.5 is refused as in a job file; 1.5px says that it is meant.
    if len(parts) != 2 or not all(parts) or any(re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)", part) for part in parts):
        raise UsageError(f"--offset {text!r} is not of the form Y,X in whole pixels or lengths such as 12um,30um")
    return [int(part) if re.fullmatch(r"[-+]?\d+", part) else part for part in parts]


def _affine(text: str) -> Any:
    if text.lstrip().startswith("{"):
        from tiledblend.describe.job import parse_mapping

        return parse_mapping(text, where="--affine")
    parts = re.split(r"[\s,]+", re.sub(r"[\[\]]", " ", text).strip())
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return text
    if len(numbers) not in (6, 9):
        raise UsageError(f"--affine {text!r} has {len(numbers)} numbers; give a,b,c,d,e,f (x' = a x + b y + c, …)")
    return [numbers[i : i + 3] for i in range(0, len(numbers), 3)]


def _numbers(text: str, flag: str, kind: type[int] | type[float], count: int | None) -> list[Any]:
    try:
        values = [kind(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        form = "numbers with commas between"
        raise UsageError(f"{flag} {text!r} is not of the form {form}")
    return values


def _mask_values(text: str) -> Any:
    if text in ("auto", "binary"):
        return text
    if text.startswith("labels:"):
        return {"labels": _numbers(text.removeprefix("labels:"), "--mask-values", int, None)}
    if text.lstrip().startswith("{"):
        from tiledblend.describe.job import parse_mapping

        return parse_mapping(text, where="--mask-values")
    try:
        return _numbers(text, "--mask-values", float, 2)
    except UsageError:
        raise UsageError(f"--mask-values {text!r} is not understood; use auto, binary, LO,HI or labels:2,5") from None


def _canvas(text: str) -> Any:
    if text.lstrip().startswith("{"):
        from tiledblend.describe.job import parse_mapping

        return parse_mapping(text, where="--canvas")
    parts = text.split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        return {"shape": [int(part) for part in parts]}
    return {"like": text}


def _levels(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise UsageError(f"--levels {text!r} must be auto or a number from 1 to 40")
    return int(text)


def _built(flags: dict[str, Any]) -> Job:
    from tiledblend.describe import job as jobs

    return jobs.build(job_mapping(flags), where=flags["job_path"] or "flags")


def _looked_at(flags: dict[str, Any]) -> tuple[str | None, Composite | None, str | None]:
    """(result, composite, note): a result that BASE alone names, with what it was made from; or a planned composite."""
    from tiledblend.run.origin import origin_of

    only_base = flags["base"] and not any(value for name, value in flags.items() if name != "base")
    path = _absolute(flags["base"]) if only_base else None
    origin = origin_of(path) if path else None
    if origin is not None:
        return path, origin.composite, origin.note
    return None, _built(flags).composite, None


def _cluster(flags: dict[str, Any]) -> ClusterOptions:
    from tiledblend.run.cluster import ClusterOptions

    return ClusterOptions(**{key: flags[key] for key in _CLUSTER_KEYS})


# --- verbs


@cli.command()
@click.option("--size", type=int, default=8192, show_default=True, metavar="PX", help="Side of the slides.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder. [tiledblend-demo]")
@click.option("--seed", type=int, default=7, show_default=True)
@_cluster_options
@_json_option
@_debug_option
def demo(size: int, out: Path | None, seed: int, as_json: bool, **flags: Any) -> None:
    """Make two stained slides and a mask, blend them, and draw the result."""
    from tiledblend.demo.demo import run_demo
    from tiledblend.look import lines as report

    _cannot_resume()
    report.start_logging(debug=_is_debugging())
    with _stoppable() as stop, report.progress() as progress:
        done = run_demo(
            out, size=size, seed=seed, cluster=_cluster(flags), say=report.say, progress=progress, stop=stop
        )
    _print(json.dumps(done.as_dict()) if as_json else report.demo_text(done))


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@_json_option
@_debug_option
def info(paths: tuple[str, ...], as_json: bool) -> int:
    """What a source is: format, size, levels, pixel size; whether it can be a layer, or why not."""
    from tiledblend.errors import BadInputError
    from tiledblend.look.info import describe, render_info

    entries: list[dict[str, Any]] = []
    code = 0
    for path in paths:
        try:
            found = describe(path)
        except BadInputError as error:
            click.echo(f"tiledblend: error: {redacted(one_line(str(error)))}", err=True)
            code = error.exit_code
            continue
        entries += found
        if not as_json:
            _print(render_info(found))
    if as_json:
        _print(json.dumps({"images": entries}, default=str))
    return code


@cli.command("plan")
@_layer_options
@_output_options
@_cluster_options
@click.option("--exact", is_flag=True, help="Classify every tile by its masks instead of a sample.")
@_json_option
@_debug_option
def plan_command(exact: bool, as_json: bool, **flags: Any) -> None:
    """What blend would do: tiles, chunk classes, bytes, memory; or why it would refuse. Writes nothing."""
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.work import SUFFIX
    from tiledblend.look import lines as report
    from tiledblend.run.plan import plan
    from tiledblend.run.tiff_blend import planned_layout

    _cannot_resume()
    report.start_logging(debug=_is_debugging())
    cluster = _cluster(flags)
    job = _built(flags)
    if job.path is not None:
        _checked_output(job.path)
    planned = plan(job.composite, job.output, exact=exact)
    document = planned.as_dict(job.path) | {"requests": planned.requests(job.path)}
    text = report.plan_text(planned, cluster, job.path)
    if job.path is not None and is_ometiff_path(job.path):
        layout = planned_layout(planned, job.path, job.compression or "deflate")
        document["work_bytes"] = planned.raw_bytes + layout.raw_bytes
        text += f"\n{report.room_text(f'{job.path}{SUFFIX}', planned, layout)}"
    if not as_json:
        # Before the output is looked at: a bucket may take its time.
        _print(text)
        sys.stdout.flush()
    refused = _refusal(job, planned, cluster)
    if as_json:
        _print(json.dumps(document | {"refused": refused}))
    elif refused is not None:
        _print(f"refused  {refused}")


def _refusal(job: Job, planned: Plan, cluster: ClusterOptions) -> str | None:
    """Why blend, with the same flags, would not begin; None where it would."""
    from tiledblend.bytes.objects import DirectoryStore
    from tiledblend.containers.commit import refuse_overlap, refuse_taken
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.work import WorkFolder
    from tiledblend.describe.fingerprint import stored_paths
    from tiledblend.look.pictures import check_image_output
    from tiledblend.run.cluster import ANSWER_SECONDS, asked, threads_of
    from tiledblend.run.tiff_export import checked_target

    composite, path = job.composite, job.path

    def look(path: str) -> None:
        if is_ometiff_path(path):
            target = checked_target(path)
            refuse_overlap(DirectoryStore(target), stored_paths(composite))
            WorkFolder(target).refuse_taken()
        elif _is_image(path):
            has_alpha = composite.has_alpha
            check_image_output(path, composite.shape, composite.channels, composite.dtype, has_alpha=has_alpha)
        else:
            refuse_taken(path, stored_paths(composite))

    try:
        if path is not None:
            # A store that does not answer would be asked for minutes, as a run asks it.
            asked(partial(look, path), seconds=ANSWER_SECONDS)
        if path is None or not _is_image(path):
            memory, remedy = cluster.memory_of_each()
            planned.require_memory(threads_of(cluster), memory, remedy, path)
    except UsageError:
        raise
    except TimeoutError as error:
        return f"{path}: {error}"
    except TiledblendError as error:
        return str(error)
    return None


@cli.command()
@_layer_options
@_output_options
@click.option("--resume", is_flag=True, help="Continue an unfinished run of the same job.")
@click.option("--replace", is_flag=True, help="Exchange an older result of tiledblend for this one.")
@click.option(
    "--part",
    metavar="I/N",
    help="Make only this share of the tiles, without dask (a SLURM array); on one thread unless --threads-per-worker.",
)
@click.option("--finish", is_flag=True, help="After all parts: upper levels and metadata.")
@click.option(
    "--deep-fingerprint", is_flag=True, help="Know inputs by a hash of their content: --resume after they were copied."
)
@click.option("--report", "report_path", metavar="FILE.html", help="New page: inputs, layers, pictures, methods text.")
@_cluster_options
@_json_option
@_debug_option
def blend(
    resume: bool,
    replace: bool,
    part: str | None,
    finish: bool,
    deep_fingerprint: bool,
    report_path: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Blend OVERLAY over BASE where MASK is set, into a new OME-Zarr pyramid.

    out = w * OVERLAY + (1 - w) * BASE, w = feathered MASK. BASE alone is converted.
    """
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.look import lines as report

    report.start_logging(debug=_is_debugging())
    share = _part(part) if part else None
    if share and finish:
        raise UsageError("--part and --finish are separate steps; run --finish when all parts are done")
    if report_path:
        _check_report(report_path, part)
    cluster = _cluster(flags)
    job = _built(flags)
    path = _checked_output(job.path)
    how = {"resume": resume, "replace": replace, "part": share, "finish": finish, "deep_fingerprint": deep_fingerprint}
    if job.compression is not None and not is_ometiff_path(path):
        raise UsageError(f"{path}: --compression is for .ome.tif; an OME-Zarr takes --codec")
    if is_ometiff_path(path):
        run, file = _blend_to_ometiff(job, path, cluster, how)
        for warning in run.warnings:
            report.say(f"note: {warning}")
        whole = run.as_dict() | {"file": file.as_dict() if file else None}
        if file:
            compression = job.compression or "deflate"
            _write_report(report_path, job, path, f"an OME-TIFF with a pyramid, {compression}", run.as_dict())
        _print(json.dumps(whole) if as_json else report.ometiff_text(run, file))
        return
    if _is_image(path):
        if resume or replace or share or finish:
            raise UsageError(f"{path}: --resume, --replace, --part and --finish are for an OME-Zarr output")
        if ignored := [name for name in _SCHEDULER_KEYS if flags[name]]:
            raise UsageError(f"{path}: one image is made in this process, on no cluster; leave out {_flag(ignored[0])}")
        _cannot_resume()
        result = _blend_to_image(job, path)
        for warning in result["warnings"]:
            report.say(f"note: {warning}")
        _write_report(report_path, job, path, f"a {Path(path).suffix[1:].upper()} image", result)
        _print(json.dumps(result) if as_json else report.image_text(result))
        return
    done = _blend_to_zarr(job, path, cluster, how)
    for warning in done.warnings:
        report.say(f"note: {warning}")
    if done.complete:
        output = job.output
        levels = report.counted(done.levels, "level", "levels")
        kind = f"an OME-Zarr {output.ome_zarr} pyramid of {levels}, lossless ({output.compressor})"
        _write_report(report_path, job, path, kind, done.as_dict())
    _print(json.dumps(done.as_dict()) if as_json else report.run_text(done))


def _check_report(report_path: str, part: str | None) -> None:
    from tiledblend.look.record import check_report_path

    if part:
        raise UsageError("--report goes with --finish: one part does not know the whole run")
    check_report_path(report_path)


def _write_report(report_path: str | None, job: Job, uri: str, kind: str, facts: dict[str, Any]) -> None:
    if report_path is None:
        return
    from tiledblend.look.lines import say
    from tiledblend.look.record import Made, write_report
    from tiledblend.run.cluster import cpu_count

    write_report(report_path, job, Made(uri, kind, facts), threads=cpu_count())
    say(f"report in {report_path}")


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--part {text!r} is not of the form I/N with I from 1 to N, such as 1/8")
    return int(index), int(count)


def _checked_output(path: str | None) -> str:
    if path is None:
        raise UsageError("no output; give -o OUT.ome.zarr")
    if path.lower().endswith(NOT_OUTPUTS):
        raise UsageError(
            f"{path}: cannot be written in this format; use .ome.zarr, or .png, .jpg, .tif for small results"
        )
    return path


def _is_image(path: str) -> bool:
    from tiledblend.look.pictures import is_image_path

    return is_image_path(path)


def _blend_to_image(job: Job, path: str) -> dict[str, Any]:
    from tiledblend.compose.lazy import to_array_of
    from tiledblend.compose.scene import decide
    from tiledblend.describe.fingerprint import sources_of
    from tiledblend.look.pictures import check_image_output, write_image
    from tiledblend.run.plan import find_unstored, unstored_found

    composite = job.composite
    has_alpha = composite.has_alpha
    check_image_output(path, composite.shape, composite.channels, composite.dtype, has_alpha=has_alpha)
    scene = decide(composite)
    lacking = find_unstored(scene)
    started = time.perf_counter()
    size = write_image(to_array_of(scene), path, composite.grid.pixel_size_um, has_alpha=has_alpha)
    sources = enumerate(sources_of(composite))
    missed = [(number, found) for number, source in sources for found in source.take_missed(of_all_threads=True)]
    height, width = composite.shape
    return {
        "uri": path,
        "shape": [height, width],
        "channels": composite.channels,
        "dtype": composite.dtype.name,
        "bytes_written": size,
        "pixels": height * width,
        "seconds": round(time.perf_counter() - started, 3),
        "warnings": [str(found) for found in unstored_found(composite, lacking, missed)],
    }


def _warn_of_unstored(unstored: Mapping[tuple[int, int], Unstored]) -> None:
    """At the start, when something can still be done; the end says it again."""
    from tiledblend.look.lines import say

    for found in unstored.values():
        say(f"warning: {found}")


def _blend_to_zarr(job: Job, path: str, cluster: ClusterOptions, how: dict[str, Any]) -> RunReport:
    from tiledblend.look import lines as report
    from tiledblend.run.driver import write
    from tiledblend.run.plan import plan

    planned = plan(job.composite, job.output, samples=0)
    _warn_of_unstored(planned.unstored)
    with _stoppable() as stop, report.progress() as progress, _told_interruption(path):
        return write(
            job.composite,
            path,
            output=job.output,
            cluster=cluster,
            progress=progress,
            job=job.mapping,
            planned=planned,
            stop=stop,
            **how,
        )


def _blend_to_ometiff(
    job: Job, path: str, cluster: ClusterOptions, how: dict[str, Any]
) -> tuple[RunReport, ExportReport | None]:
    from tiledblend.look import lines as report
    from tiledblend.run.plan import plan
    from tiledblend.run.tiff_blend import Share, blend_ometiff
    from tiledblend.run.tiff_export import Running

    if how.pop("replace"):
        raise UsageError(f"{path}: --replace is for an OME-Zarr output; move the old file away or name another")
    planned = plan(job.composite, job.output, samples=0)
    _warn_of_unstored(planned.unstored)
    with _stoppable() as stop, report.progress() as progress, _told_interruption(path):
        running = Running(cluster, progress, stop)
        return blend_ometiff(
            planned, path, job.compression or "deflate", running=running, share=Share(**how), job=job.mapping
        )


@contextmanager
def _told_interruption(path: str) -> Iterator[None]:
    """A second Ctrl-C as one line with what to do."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRun(f"{path}: interrupted; continue with --resume") from None


@contextmanager
def _stoppable() -> Iterator[Event]:
    """The first Ctrl-C or SIGTERM sets the event, so that tiles in flight are waited for; the second ends us."""
    stop = Event()
    at_once = _advised("stopped at once; continue with --resume", _can_resume())

    def ask(number: int, frame: FrameType | None) -> None:
        if _ECHO.is_echo():
            return
        if stop.is_set():
            # A dead run is resumed like a stopped one; leaving in order would wait for the threads.
            click.echo(f"tiledblend: error: {at_once}", err=True)
            os._exit(InterruptedRun.exit_code)
        stop.set()
        click.echo("tiledblend: stopping; waiting for the tiles in flight (once more: at once)", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@cli.command()
@click.argument("result", metavar="OUT.ome.zarr")
@click.argument("out", metavar="OUT.ome.tif")
@click.option("--compression", metavar=COMPRESSIONS, default="deflate", show_default=True, help="jpeg loses detail.")
@click.option("--tile", type=int, default=512, show_default=True, metavar="PX", help="Side of a tile.")
@click.option("--resume", is_flag=True, help="Continue an unfinished export of the same result.")
@_cluster_options
@_json_option
@_debug_option
def export(result: str, out: str, compression: str, tile: int, resume: bool, as_json: bool, **flags: Any) -> None:
    """Write a result as one OME-TIFF with its pyramid, for QuPath and others."""
    from tiledblend.containers.ometiff.options import TiffOptions
    from tiledblend.look import lines as report
    from tiledblend.run.tiff_export import Running, export_ometiff

    report.start_logging(debug=_is_debugging())
    options = TiffOptions.parse(compression, tile)
    with _stoppable() as stop, report.progress("writing") as progress, _told_interruption(out):
        running = Running(_cluster(flags), progress, stop)
        done = export_ometiff(result, out, options, running=running, resume=resume)
    _print(json.dumps(done.as_dict()) if as_json else report.export_text(done))


@cli.command()
@click.argument("mask", metavar="MASK")
@click.option("-o", "--output", "out", required=True, metavar="OUT.geojson", help="New GeoJSON file.")
@click.option("--like", metavar="SLIDE", help="The slide of the mask: coordinates are its level-0 pixels.")
@click.option("--mask-values", metavar="auto|binary|LO,HI|labels:A,B", help="What the mask's numbers mean.")
@click.option("--class", "name", metavar="NAME", help="Class of the outlines.")
@_json_option
@_debug_option
def outline(mask: str, out: str, like: str | None, mask_values: str | None, name: str | None, as_json: bool) -> None:
    """Write the outlines of a mask as GeoJSON that QuPath opens."""
    from tiledblend.describe.job import mask_values_of
    from tiledblend.look import lines as report
    from tiledblend.look.outline import outline as trace

    _cannot_resume()
    report.start_logging()
    values = mask_values_of(_mask_values(mask_values) if mask_values else "auto")
    done = trace(mask, out, like=like, mask_values=values, name=name)
    if as_json:
        _print(json.dumps(done.as_dict()))
    else:
        _print(f"{done.path}: {done.outlines:,} outlines, {report.amount(done.bytes_written)}")


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE | BASE OVERLAY] OUT.png")
@_layer_flags
@click.option("--max-size", type=int, default=1024, show_default=True, metavar="PX", help="Of the longer side.")
@click.option("--scale-bar/--no-scale-bar", default=True, help="Where the pixel size is known. [drawn]")
@click.option("--seams", is_flag=True, help="Draw the layers' edges.")
@click.option("--weights", is_flag=True, help="Draw each layer's weight beside it.")
@_json_option
@_debug_option
def preview(
    paths: tuple[str, ...], max_size: int, scale_bar: bool, seams: bool, weights: bool, as_json: bool, **flags: Any
) -> None:
    """Draw a result or any source as a small PNG; or, with blend's arguments or --job, what blend would make.

    A composite is drawn from the coarsest level of its images that is fine enough: seconds, whatever its size.
    """
    from tiledblend.look.preview import preview as draw

    _cannot_resume()
    *images, out = paths
    done = draw(_previewed(images, flags), out, max_size, scale_bar=scale_bar, seams=seams, weights=weights)
    _print(json.dumps(done) if as_json else f"{done['path']}: {done['shape'][1]} x {done['shape'][0]} px")


def _previewed(images: list[str], flags: dict[str, Any]) -> Any:
    if len(images) > 2:
        raise UsageError("preview draws SOURCE, or BASE and OVERLAY, into OUT.png; put further images into --layer")
    if len(images) == 1 and not any(flags.values()):
        return images[0]
    from tiledblend.look import lines as report

    if not images and not any(flags.values()):
        raise UsageError("nothing to draw; give SOURCE OUT.png, BASE OVERLAY OUT.png or --job FILE OUT.png")
    report.start_logging(debug=_is_debugging())
    base, overlay = (*images, None, None)[:2]
    return _built(flags | {"base": base, "overlay": overlay}).composite


@cli.command()
@_layer_options
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Of 127.0.0.1; 0 takes a free one. [8421]")
@click.option("--open/--no-open", "in_browser", default=False, help="Open the page in this machine's browser.")
@_json_option
@_debug_option
def view(port: int | None, in_browser: bool, as_json: bool, **flags: Any) -> None:
    """A local page to look at a result, or at what blend would make of the same flags, before it is made.

    Works offline, for this machine only; from elsewhere through ssh -L 8421:127.0.0.1:8421 HOST. Ctrl-C ends it.
    """
    from tiledblend.look import lines as report
    from tiledblend.look.tiles import Gallery
    from tiledblend.look.view import serve
    from tiledblend.run.cluster import cpu_count

    report.start_logging(debug=_is_debugging())
    result, composite, note = _looked_at(flags)
    if result is not None:
        gallery = Gallery.of_result(result, composite, note)
    else:
        assert composite is not None
        gallery = Gallery.of_composite(composite)

    def ready(url: str) -> None:
        _print(json.dumps({"url": url}) if as_json else url)
        sys.stdout.flush()
        if in_browser:
            click.launch(url)

    serve(gallery, port=port, threads=cpu_count(), ready=ready)
    report.say("ended")


@cli.command()
@_layer_options
@click.option("--widths", metavar="4px,8px,…", help="Feathers to compare with the given one.")
@_json_option
@_debug_option
def seams(widths: str | None, as_json: bool, **flags: Any) -> None:
    """How visible the seams are: the step across each layer's edge, hard, feathered, and of the images themselves.

    BASE alone may be a result; else what blend would make of the same flags.
    """
    from tiledblend.describe.composite import Feather
    from tiledblend.look import lines as report
    from tiledblend.look.seams import measure_seams
    from tiledblend.run.cluster import cpu_count

    report.start_logging(debug=_is_debugging())
    compared = [Feather.parse(text.strip()) for text in widths.split(",")] if widths else []
    result, composite, note = _looked_at(flags)
    if composite is None:
        raise BadInputError(f"{result}: {note}")
    if note:
        report.say(f"note: {note}")
    found = measure_seams(composite, compared, threads=cpu_count())
    if as_json:
        _print(json.dumps({"seams": [seam.as_dict() for seam in found]}))
    else:
        _print(report.seams_text(found))


@cli.command()
@click.argument("result", metavar="OUT")
@click.option("--fast/--full", default=False, help="Compare lengths only, or hash and decode every object (default).")
@click.option(
    "--against-inputs", metavar="N|all", help="Also render N tiles (or all) again from the inputs and compare them."
)
@_json_option
@_debug_option
def verify(result: str, fast: bool, against_inputs: str | None, as_json: bool) -> None:
    """Check every stored object of a result against its run's manifest, or an OME-TIFF against its own checksums."""
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.seal import verify_ometiff
    from tiledblend.containers.verify import verify as verify_zarr

    count = _tile_count(against_inputs)
    is_file = is_ometiff_path(result)
    if is_file and against_inputs is not None:
        raise UsageError(
            f"{result}: --against-inputs is for an OME-Zarr; an OME-TIFF does not say from what it was made"
        )
    found = (verify_ometiff if is_file else verify_zarr)(result, "fast" if fast else "full")
    document = found.as_dict()
    again = _recomputed(result, count) if found.ok and against_inputs is not None else None
    if again is not None:
        document["recomputed_tiles"], document["differing"] = again.tiles, list(again.differing)
        document["ok"] = not again.differing
    if as_json:
        _print(json.dumps(document))
    found.require_ok()
    if again is not None and again.differing:
        raise VerificationError(
            f"{result}: {len(again.differing)} objects are not what the inputs give (first: {again.differing[0]})"
        )
    if not as_json:
        _print(found.summary() + (f"; {again.tiles} tiles rendered again are the same" if again else ""))


def _tile_count(text: str | None) -> int | None:
    if text is None or text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--against-inputs {text!r} must be a number of tiles or all")
    return int(text)


def _recomputed(result: str, count: int | None) -> RecomputeReport:
    from tiledblend.bytes.objects import open_store
    from tiledblend.containers.omezarr.documents import read_attributes, result_layout
    from tiledblend.describe.job import build
    from tiledblend.run.cluster import cpu_count
    from tiledblend.run.recompute import recompute

    store = open_store(result)
    attributes = read_attributes(store) or {}
    layout, job = result_layout(attributes), attributes["tiledblend"].get("description")
    if layout is None or not job:
        raise BadInputError(f"{result}: does not say from what it was made; it was not written by the command line")
    return recompute(store, layout, build(job).composite, count, threads=cpu_count())


@cli.command()
@click.argument("result", metavar="OUT")
@_json_option
@_debug_option
def clean(result: str, as_json: bool) -> None:
    """Remove what an unfinished run left behind. A complete result stays."""
    from dataclasses import asdict

    from tiledblend.containers.commit import clean as clean_zarr
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.containers.ometiff.work import clean_ometiff

    done = clean_ometiff(result) if is_ometiff_path(result) else clean_zarr(result)
    if as_json:
        _print(json.dumps(asdict(done)))
    elif done.finished:
        _print(f"{result}: the result is complete and stays; its ledger was removed")
    else:
        kept = f"; kept {len(done.kept)} files that are not of the run" if done.kept else ""
        _print(f"{result}: removed {done.removed} objects of an unfinished run{kept}")
