"""Writes a result, or any source with its levels, as an OME-TIFF: compressed on a cluster, assembled here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from numpy.typing import NDArray

from tiledblend.bytes.new_file import local_output
from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers.commit import refuse_overlap
from tiledblend.containers.ometiff.assembly import Assembly
from tiledblend.containers.ometiff.encode import encode_tile
from tiledblend.containers.ometiff.layout import Block, TiffLayout
from tiledblend.containers.ometiff.options import TiffOptions, is_ometiff_path
from tiledblend.containers.ometiff.pages import directories
from tiledblend.containers.ometiff.seal import job_digest, require_finished
from tiledblend.containers.ometiff.work import WorkFolder
from tiledblend.containers.ometiff.xml import ome_xml
from tiledblend.errors import BadInputError, UsageError
from tiledblend.run.cluster import open_client
from tiledblend.run.driver import OrderedTasks, ProgressEvent, SharedJob, errors_told
from tiledblend.run.options import ClusterOptions
from tiledblend.sources.base import RasterSource
from tiledblend.sources.opening import open_source

FORMAT = 1
"""Revision of the order of tiles: a file is resumed by the same one."""


@dataclass(frozen=True)
class ExportReport:
    """What an export did. pixels: of all levels. blocks: runs of tiles; resumed_blocks: those that an earlier run had
    written."""

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

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {**asdict(self), "shape": list(self.shape)}


@dataclass(frozen=True)
class Running:
    """How a run is carried: where its tasks run, who is told of progress, what interrupts it."""

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    progress: Callable[[ProgressEvent], None] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class BlockJob:
    """All that a task needs besides its block. identity: the fingerprint that the source must have where it opens."""

    source: RasterSource
    layout: TiffLayout
    identity: dict[str, Any]

    def require_inputs(self) -> None:
        """Raise BadInputError unless the source is the one that the driver opened."""
        if self.source.fingerprint() != self.identity:
            raise BadInputError(f"{self.source.name}: is not what the command opened; run again on settled inputs")

    def rehearse(self, block: Block) -> None:
        """Make a block for nobody: to see whether that can be done at all."""
        self.run(block)

    def run(self, block: Block) -> list[bytes | bytearray]:
        """A block's tiles as they are stored: plane after plane, from left to right."""
        try:
            pixels = self.source.read(block.region, block.level)
        finally:
            # An input that was cut short meanwhile cannot be decoded: this is the better word.
            self.source.require_unchanged()
        if self.layout.interleaved:
            return self._encoded(pixels)
        return [tile for plane in range(self.layout.planes) for tile in self._encoded(pixels[:, :, plane])]

    def _encoded(self, pixels: NDArray[Any]) -> list[bytes | bytearray]:
        options = self.layout.options
        return [encode_tile(pixels[:, x : x + options.tile], options) for x in range(0, pixels.shape[1], options.tile)]


def run_block(job: SharedJob, block: Block) -> list[bytes | bytearray]:
    """A task: one block."""
    with errors_told():
        tiles: list[bytes | bytearray] = job.open().run(block)
        return tiles


def checked_target(path: str | os.PathLike[str]) -> str:
    """Absolute path of an OME-TIFF to be written. Raises UsageError for other names and for URLs."""
    text = os.fspath(path)
    if not is_ometiff_path(text):
        raise UsageError(f"{text}: an OME-TIFF is named .ome.tif, so that readers know it")
    return os.path.abspath(local_output(text, "an OME-TIFF"))


def export_ometiff(
    result: str | os.PathLike[str] | RasterSource,
    path: str | os.PathLike[str],
    options: TiffOptions | None = None,
    *,
    running: Running | None = None,
    resume: bool = False,
) -> ExportReport:
    """Write a result (or any source) with all its levels as an OME-TIFF at the new `path`.

    RGB and RGBA are stored pixel by pixel, other images one page a channel. Pixel size, channel names and colours go
    into the OME-XML; nothing else of the source's metadata does. The file grows in `path` + ".unfinished/" and gets its
    name when it is whole and on disk. Memory is a few blocks of tiles per thread, whatever the size.

    Raises RefusedError when `path` exists or lies in the source, UsageError when it cannot hold the image,
    BadInputError, StorageError, ResourceError, InterruptedRun. With `resume` an unfinished file is gone on with, and a
    finished one of the same source and options is read, checked and left as it is (VerificationError).
    """
    started = time.perf_counter()
    target = checked_target(path)
    source = result if isinstance(result, RasterSource) else open_source(result)
    layout = TiffLayout.of(source, options or TiffOptions())
    layout.require_fit(target)
    refuse_overlap(DirectoryStore(target), [source.spec.path])
    work, job = WorkFolder(target), file_job(layout, source.fingerprint())
    if resume and work.ended:
        require_finished(target, job_digest(job))
        work.remove()
        return export_report(work, layout, layout.block_count, started)
    work.begin(resume=resume)
    return write_tiff(source, layout, work, running or Running(), job)


def file_job(layout: TiffLayout, made_of: dict[str, Any]) -> dict[str, Any]:
    """What decides a file's bytes, plain JSON values. made_of: what its pixels are known by."""
    return {"format": FORMAT, "layout": asdict(layout) | {"alpha": layout.alpha.value}, "source": made_of}


def write_tiff(
    source: RasterSource, layout: TiffLayout, work: WorkFolder, running: Running, job: dict[str, Any]
) -> ExportReport:
    """Write `source` as the file of a work folder that was begun, and remove the folder. job: of `file_job`."""
    started = time.perf_counter()
    resumed = layout.block_count
    if not work.published:
        resumed = _fill(source, layout, work, running, job)
        work.publish()
    work.remove()
    return export_report(work, layout, resumed, started)


def export_report(work: WorkFolder, layout: TiffLayout, resumed: int, started: float) -> ExportReport:
    """Of a file that is there. resumed: its blocks that were written before. started: of time.perf_counter."""
    return ExportReport(
        str(work.target),
        layout.shapes[0],
        layout.channels,
        layout.dtype,
        len(layout.shapes),
        str(layout.options),
        os.path.getsize(work.target),
        layout.pixels,
        time.perf_counter() - started,
        resumed,
        layout.block_count,
    )


def _fill(source: RasterSource, layout: TiffLayout, work: WorkFolder, running: Running, job: dict[str, Any]) -> int:
    """Write everything but the name; returns how many blocks were there already."""
    assembly = Assembly(work, layout, work.lock(job))
    try:
        resumed = assembly.blocks
        _append_missing(source, assembly, running)
        name = work.target.name.partition(".ome.")[0]
        description = ome_xml(source, layout, name)
        assembly.finish(*directories(layout, assembly.counts, description, source.pixel_size_um), job_digest(job))
    finally:
        assembly.close()
        if not assembly.blocks:
            work.remove_tiles()
    return resumed


def _append_missing(source: RasterSource, assembly: Assembly, running: Running) -> None:
    layout, first = assembly.layout, assembly.blocks
    if first == layout.block_count:
        return
    started = time.monotonic()
    pixels = sum(block.region.size for block in layout.blocks() if block.number < first)
    job = BlockJob(source, layout, source.fingerprint())
    tasks = OrderedTasks(run_block, running.stop, str(assembly.work.target))
    with (
        open_client(running.cluster, tasks.stop_if_asked) as client,
        closing(tasks.results(client, job, layout.blocks(first))) as results,
    ):
        for block, tiles in zip(layout.blocks(first), results, strict=True):
            assembly.append(tiles)
            pixels += block.region.size
            if running.progress is not None:
                seconds = time.monotonic() - started
                running.progress(ProgressEvent(block.number + 1, layout.block_count, pixels, layout.pixels, seconds))
