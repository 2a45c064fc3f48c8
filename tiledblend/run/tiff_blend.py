"""A composite as an OME-TIFF: an OME-Zarr in the work folder first, with all that keeps a run safe, then the file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers.commit import refuse_overlap
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.containers.ometiff.seal import job_digest, require_finished
from tiledblend.containers.ometiff.work import WorkFolder
from tiledblend.containers.result import read_result
from tiledblend.describe.fingerprint import stored_paths
from tiledblend.errors import InterruptedRun, StorageError, UsageError
from tiledblend.run.driver import ProgressEvent, RunReport, identity_of, nothing_done, write
from tiledblend.run.plan import Plan
from tiledblend.run.tiff_export import ExportReport, Running, checked_target, export_report, file_job, write_tiff
from tiledblend.sources.opening import open_source


@dataclass(frozen=True)
class Share:
    """Which steps of a run this driver does: all (the default), part (i, n) from 1, or what follows the parts."""

    resume: bool = False
    part: tuple[int, int] | None = None
    finish: bool = False
    deep_fingerprint: bool = False


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

    Until the file is complete, `path` + ".unfinished/" holds the pixels without loss and the file as far as it is.
    job: the job's description. The second report is None after one part of several.

    Raises as `tiledblend.write` and `tiledblend.export_ometiff`.
    """
    if not isinstance(planned, Plan):
        raise UsageError(f"{planned!r} must be a Plan; use blend_ometiff(plan(composite), path)")
    running, share = running or Running(), share or Share()
    started = time.perf_counter()
    target, composite = checked_target(path), planned.composite
    layout = planned_layout(planned, target, compression)
    refuse_overlap(DirectoryStore(target), stored_paths(composite))
    work = WorkFolder(target)
    if (share.resume or share.finish) and work.ended:
        made_of = identity_of(composite, deep=share.deep_fingerprint)
        require_finished(target, job_digest(file_job(layout, made_of)))
        work.remove()
        return nothing_done(planned, target), export_report(work, layout, layout.block_count, started)
    work.begin(resume=share.resume, shared=share.part is not None or share.finish)
    steps = _Steps(planned, layout, running.progress)
    try:
        run = write(
            composite,
            str(work.pixels),
            output=planned.layout.output,
            cluster=running.cluster,
            progress=steps.blending,
            resume=share.resume,
            part=share.part,
            finish=share.finish,
            deep_fingerprint=share.deep_fingerprint,
            job=job,
            planned=planned,
            stop=running.stop,
        )
    except InterruptedRun as error:
        raise InterruptedRun(f"{target}: stopped; continue with --resume") from error
    finally:
        # A run that was refused or failed before its first tile has left nothing to go on with.
        work.remove_if_empty()
    run = replace(run, uri=target)
    if not run.complete:
        return run, None
    running = replace(running, progress=steps.storing)
    done = write_tiff(open_source(work.pixels), layout, work, running, file_job(layout, _made_of(work)))
    return run, done


def _made_of(work: WorkFolder) -> dict[str, Any]:
    """The fingerprint of the blend whose pixels are there."""
    result = read_result(DirectoryStore(work.pixels))
    if result is None:
        raise StorageError(f"{work.pixels}: is damaged; run again with --resume")
    made_of: dict[str, Any] = result.job
    return made_of


def planned_layout(planned: Plan, target: str, compression: str) -> TiffLayout:
    """How a plan's result will lie in the file `target`. Raises UsageError when that cannot hold it."""
    options = TiffOptions.parse(compression, planned.grid.chunk)
    layout = TiffLayout.planned(planned.layout, options, has_alpha=planned.composite.has_alpha)
    layout.require_fit(target)
    return layout


class _Steps:
    """Two steps told as one way: tiles and pixels of the blend, then those of the file."""

    def __init__(self, planned: Plan, layout: TiffLayout, progress: Callable[[ProgressEvent], None] | None) -> None:
        self._plan, self._layout, self._progress = planned, layout, progress
        self._seconds = 0.0

    def blending(self, event: ProgressEvent) -> None:
        """What the blend tells."""
        self._seconds = event.seconds
        self._tell(
            replace(event, tiles=event.tiles + self._layout.block_count, pixels=event.pixels + self._layout.pixels)
        )

    def storing(self, event: ProgressEvent) -> None:
        """What the writer of the file tells."""
        tiles, pixels = self._plan.tiles, self._plan.pixels
        self._tell(
            ProgressEvent(
                tiles + event.done_tiles,
                tiles + event.tiles,
                pixels + event.done_pixels,
                pixels + event.pixels,
                self._seconds + event.seconds,
            )
        )

    def _tell(self, event: ProgressEvent) -> None:
        if self._progress is not None:
            self._progress(event)
