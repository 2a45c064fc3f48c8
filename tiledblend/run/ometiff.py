"""Runs whose result is an OME-TIFF: a planned composite, or a source with its levels."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiledblend.bytes.objects import open_store
from tiledblend.compose.keeping import level_power
from tiledblend.compose.scene import Scene, decide
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.options import TiffOptions, is_ometiff_path
from tiledblend.containers.ometiff.seal import read_origin
from tiledblend.containers.omezarr.documents import default_channels
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.errors import UsageError
from tiledblend.geometry import Grid
from tiledblend.run.driver import Running, Share, described, run_plan
from tiledblend.run.kept import (
    Ladder,
    base_coding,
    is_jpeg,
    kept_layout,
    kept_notes,
    kept_spec,
    on_ladder,
    passing_of,
    why_not_kept,
)
from tiledblend.run.plan import Plan, plan, sample_tiles
from tiledblend.run.report import RunReport
from tiledblend.sources.base import Alpha, RasterSource
from tiledblend.sources.opening import open_source
from tiledblend.sources.tiff.encoded import NotKept


@dataclass(frozen=True)
class ExportReport:
    """The file that a run made. pixels: of all levels. blocks: parts of the file; resumed_blocks: those that an earlier
    run had made. passed: of each level, {"tiles", "passed"}: those that are an input's own bytes."""

    uri: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    levels: int
    compression: str
    bytes_written: int
    pixels: int
    seconds: float
    resumed_blocks: int = 0
    blocks: int = 0
    passed: tuple[dict[str, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {**asdict(self), "shape": list(self.shape), "passed": list(self.passed)}


def blend_ometiff(
    planned: Plan,
    path: str | os.PathLike[str],
    compression: str = "deflate",
    *,
    running: Running | None = None,
    share: Share | None = None,
    job: dict[str, Any] | None = None,
) -> tuple[RunReport, ExportReport | None]:
    """Write a planned composite as an OME-TIFF at the new `path`; its tiles have the side of the plan's chunks.

    Until the file is complete, `path` + ".unfinished/" holds its parts. job: the job's description. The second report
    is None after one part of several.

    Raises as `tiledblend.write`.

    >>> import numpy as np, tempfile, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> planned = tb.plan(tb.Composite([tb.Layer(image)]))
    >>> run, file = blend_ometiff(planned, tempfile.mkdtemp() + "/out.ome.tif", "jpeg:85")
    >>> run.complete
    True
    """
    if not isinstance(planned, Plan):
        raise UsageError(f"{planned!r} must be a Plan; use blend_ometiff(plan(composite), path)")
    target = checked_target(path)
    planned = planned_ometiff(planned, target, compression)
    image = _with_default_channels(described(planned.composite, _name(target), job), planned)
    if isinstance(planned.layout, TiffLayout) and planned.layout.kept:
        # Its bytes are the base's, and so are its colours.
        image = replace(image, icc_profile=image.icc_profile or planned.composite.layers[0].image.icc_profile)
    return _run(planned, target, image, running or Running(), share or Share())


def export_ometiff(
    result: str | os.PathLike[str] | RasterSource,
    path: str | os.PathLike[str],
    options: TiffOptions | None = None,
    *,
    running: Running | None = None,
    resume: bool = False,
) -> ExportReport:
    """Write a result (or any source) with all its levels as an OME-TIFF at the new `path`.

    A run of one layer: RGB and RGBA are stored pixel by pixel, other images one page a channel. Pixel size, channel
    names and colours go into the OME-XML; nothing else of the source's metadata does.

    Raises RefusedError when `path` exists or lies in the source, UsageError when it cannot hold the image,
    BadInputError, StorageError, ResourceError, InterruptedRun. With `resume` an unfinished file is gone on with, and a
    finished one of the same source and options is read, checked and left as it is (VerificationError).

    >>> import numpy as np, tempfile, tiledblend as tb
    >>> image = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> export_ometiff(image, tempfile.mkdtemp() + "/out.ome.tif").shape
    (300, 400)
    """
    target, options = checked_target(path), options or TiffOptions()
    source = result if isinstance(result, RasterSource) else open_source(result)
    composite = Composite([Layer(source)])
    if options.compression == "keep":
        planned = plan_ometiff(composite, target, OutputSpec(), Storing("keep"), samples=0)
        layout = planned.layout
    else:
        planned = plan(composite, OutputSpec(options.tile, 8 * options.tile), samples=0)
        layout = source_layout(source, options)
        layout.require_fit(target)
    own = source.info.channel_names, source.info.channel_colors
    names, colors = (given if len(given) == source.channels else () for given in own)
    image = described(planned.composite, _name(target), None)
    image = replace(image, channel_names=names, channel_colors=colors, magnification=source.magnification)
    image = replace(image, icc_profile=source.icc_profile)
    planned = replace(planned, layout=layout)
    _, done = _run(planned, target, image, running or Running(), Share(resume=resume))
    assert done is not None
    return done


def checked_target(path: str | os.PathLike[str]) -> str:
    """Address of an OME-TIFF to be written. Raises UsageError for other names."""
    text = os.fspath(path)
    if not is_ometiff_path(text):
        raise UsageError(f"{text}: an OME-TIFF is named .ome.tif, so that readers know it")
    store = open_store(text)
    if store.local_path() is None:
        raise UsageError(f"{text}: an OME-TIFF is written to a path on this machine; copy it to the bucket then")
    return store.uri


@dataclass(frozen=True)
class Storing:
    """How a blend's file is to be stored. compression: None: as a base of JPEG tiles is, else deflate. keep_levels: the
    base's own ladder; None: where it is stored as the base is. chunk, shard: where the user said them."""

    compression: str | None = None
    keep_levels: bool | None = None
    chunk: int | None = None
    shard: int | None = None


def plan_ometiff(
    composite: Composite, target: str, output: OutputSpec, storing: Storing, *, exact: bool = False, samples: int = 12
) -> Plan:
    """The plan of a file. Raises UsageError when that cannot hold the composite, or be stored as its base is."""
    scene = decide(composite)
    wanted = None if storing.compression is None else storing.compression.strip().lower()
    by_default = wanted is None and is_jpeg(scene) and storing.chunk in (None, base_coding(scene).side)
    if by_default or wanted == "keep":
        keep_levels = storing.keep_levels is not False
        try:
            spec = kept_spec(scene, output, keep_levels=keep_levels, shard=storing.shard)
            if storing.chunk not in (None, spec.chunk):
                raise NotKept(f"the base has tiles of {spec.chunk} px, and --chunk {storing.chunk} asks for others")
            layout = kept_layout(scene, spec.grid(scene.shape), keep_levels=keep_levels)
        except NotKept as error:
            raise UsageError(f"{target}: --compression keep: {error}; use --compression deflate") from error
        planned = plan(scene, spec, exact=exact, samples=samples)
        notes = (*planned.notes, *kept_notes(scene, layout, by_default=by_default))
        chosen = sample_tiles(planned.grid, None if exact else samples)
        passing = passing_of(scene, layout, chosen) if chosen else []
        return replace(planned, layout=layout, notes=notes, passing=tuple(passing))
    planned = _plan_encoded(scene, target, output, storing, wanted or "deflate", exact=exact, samples=samples)
    why = why_not_kept(scene) if wanted is None else None
    return planned if why is None else replace(planned, notes=(*planned.notes, why))


def _plan_encoded(
    scene: Scene, target: str, output: OutputSpec, storing: Storing, compression: str, *, exact: bool, samples: int
) -> Plan:
    """Of a file in which every tile is encoded."""
    if storing.keep_levels and len((ladder := Ladder.of_base(scene)).stored) > 1:
        output = replace(output, levels=ladder.levels)
        planned = planned_ometiff(plan(scene, output, exact=exact, samples=samples), target, compression)
        assert isinstance(planned.layout, TiffLayout)
        return replace(planned, layout=on_ladder(planned.layout, ladder))
    return planned_ometiff(plan(scene, output, exact=exact, samples=samples), target, compression)


def planned_ometiff(planned: Plan, target: str, compression: str) -> Plan:
    """The plan, for a file. Raises UsageError when that cannot hold it."""
    composite, grid = planned.composite, planned.grid
    if isinstance(planned.layout, TiffLayout):
        return planned
    if compression.strip().lower() == "keep":
        output = OutputSpec(levels="auto")
        return plan_ometiff(composite, target, output, Storing("keep"), samples=planned.sampled_tiles)
    options = TiffOptions.parse(compression, grid.chunk)
    alpha = Alpha.STRAIGHT if composite.has_alpha else Alpha.NONE
    facts = composite.channels, composite.dtype.name
    layout = TiffLayout.of_grid(grid, *facts, options, is_rgb=planned.layout.is_rgb, alpha=alpha)
    layout.require_fit(target)
    return replace(planned, layout=layout)


def source_layout(source: RasterSource, options: TiffOptions) -> TiffLayout:
    """How a source's own levels lie in a file: all of them where each is a power of two smaller than the first one,
    else halved ones."""
    powers = [level_power(source, 0, number) for number in range(len(source.levels))]
    alpha = Alpha.NONE if source.alpha is Alpha.NONE else Alpha.STRAIGHT
    facts = source.channels, source.dtype.name
    stored = tuple(power for power in powers if power is not None)
    has_ladder = len(stored) == len(powers) and all(a < b for a, b in pairwise(stored))
    levels = stored[-1] + 1 if has_ladder else len(powers)
    grid = Grid(source.shape, options.tile, 8 * options.tile, levels)
    layout = TiffLayout.of_grid(grid, *facts, options, is_rgb=source.is_rgb, alpha=alpha)
    if not has_ladder:
        return layout
    shapes = tuple(level.shape for level in source.levels)
    return replace(layout, stored=stored, shapes=shapes, own_levels=True)


def _run(
    planned: Plan, target: str, image: ImageMetadata, running: Running, share: Share
) -> tuple[RunReport, ExportReport | None]:
    started = time.perf_counter()
    run = run_plan(planned, target, image, running, share)
    layout = planned.layout
    assert isinstance(layout, TiffLayout)
    if not run.complete:
        return run, None
    done = ExportReport(
        target,
        layout.shapes[0],
        layout.channels,
        layout.dtype,
        len(layout.shapes),
        str(layout.options),
        Path(target).stat().st_size,
        layout.pixels,
        time.perf_counter() - started,
        run.resumed_tiles,
        planned.tiles,
        _passed(target),
    )
    return run, done


def _passed(target: str) -> tuple[dict[str, int], ...]:
    origin = read_origin(target)
    levels = [] if origin is None else origin.passed
    return tuple({"tiles": level.size, "passed": int(level.sum())} for level in levels)


def _with_default_channels(image: ImageMetadata, planned: Plan) -> ImageMetadata:
    """Names and colours as an OME-Zarr of the same composite has them."""
    composite = planned.composite
    names, colors = default_channels(composite.channels, is_rgb=planned.layout.is_rgb)
    power = composite.layers[0].image.magnification
    return replace(
        image,
        channel_names=image.channel_names or names,
        channel_colors=image.channel_colors or colors,
        magnification=image.magnification or power,
    )


def _name(target: str) -> str:
    name = target.rpartition("/")[2]
    return name[: name.lower().rindex(".ome.tif")]
