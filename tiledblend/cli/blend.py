"""`tiledblend blend`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiledblend.cli.mapping import built, checked_output, cluster_of, is_image, storing_of
from tiledblend.cli.options import (
    SCHEDULER_KEYS,
    cluster_options,
    debug_option,
    flag_of,
    json_option,
    layer_options,
    output_options,
    reporting,
    reuse_option,
    running,
)
from tiledblend.cli.sections import Verb
from tiledblend.cli.state import is_debugging, resumes, show
from tiledblend.cli.stopping import stoppable, told_interruption
from tiledblend.errors import UsageError

if TYPE_CHECKING:
    from tiledblend.compose.scene import Scene
    from tiledblend.describe.job import Job
    from tiledblend.run.ometiff import ExportReport
    from tiledblend.run.options import ClusterOptions
    from tiledblend.run.plan import Plan
    from tiledblend.run.report import RunReport
    from tiledblend.sources.base import Unstored


@click.command(cls=Verb)
@layer_options
@output_options
@running("--resume", is_flag=True, help="Continue an unfinished run of the same job.")
@running("--replace", is_flag=True, help="Exchange an older result of tiledblend for this one.")
@reuse_option
@running(
    "--part",
    metavar="I/N",
    help="Make only this share of the tiles, without dask (a SLURM array); on one thread unless --threads-per-worker.",
)
@running("--finish", is_flag=True, help="After all parts: upper levels and metadata.")
@running(
    "--deep-fingerprint", is_flag=True, help="Know inputs by a hash of their content: --resume after they were copied."
)
@reporting("--no-paths", is_flag=True, help="Result and report name inputs without their folders, to be published.")
@reporting("--report", "report_path", metavar="FILE.html", help="New page: inputs, layers, pictures, methods text.")
@cluster_options
@json_option
@debug_option
def command(
    resume: bool,
    replace: bool,
    reuse: str | None,
    part: str | None,
    finish: bool,
    deep_fingerprint: bool,
    no_paths: bool,
    report_path: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Blend OVERLAY over BASE where MASK is set, into a new OME-Zarr pyramid.

    out = w * OVERLAY + (1 - w) * BASE, w = feathered MASK. BASE alone is converted.
    """
    from tiledblend.containers.ometiff.options import is_ometiff_path
    from tiledblend.look import lines as report

    report.start_logging(debug=is_debugging())
    resumes()
    share = _part(part) if part else None
    if share and finish:
        raise UsageError("--part and --finish are separate steps; run --finish when all parts are done")
    if report_path:
        _check_report(report_path, part)
    cluster = cluster_of(flags)
    job = built(flags)
    path = checked_output(job.path)
    how: dict[str, Any] = {"resume": resume, "replace": replace, "reuse": reuse, "part": share, "finish": finish}
    how |= {"deep_fingerprint": deep_fingerprint, "no_paths": no_paths}
    if job.compression is not None and not is_ometiff_path(path):
        raise UsageError(f"{path}: --compression is for .ome.tif; an OME-Zarr takes --codec")
    if job.keep_levels and not is_ometiff_path(path):
        raise UsageError(f"{path}: --levels keep is for .ome.tif; give auto or a number")
    if is_ometiff_path(path):
        planned, (run, file) = _blend_to_ometiff(job, path, cluster, how)
        _tell_new(run.warnings, planned)
        whole = run.as_dict() | {"file": file.as_dict() if file else None}
        if file:
            kind = f"an OME-TIFF with a pyramid, {file.compression}"
            _write_report(report_path, job, path, kind, run.as_dict(), file.compression, no_paths, planned.scene)
        show(json.dumps(whole) if as_json else report.ometiff_text(run, file))
        return
    if is_image(path):
        if resume or replace or share or finish or reuse:
            flags_of_runs = "--resume, --replace, --reuse, --part and --finish"
            raise UsageError(f"{path}: {flags_of_runs} are for an OME-Zarr or .ome.tif")
        if ignored := [name for name in SCHEDULER_KEYS if flags[name]]:
            raise UsageError(
                f"{path}: one image is made in this process, on no cluster; leave out {flag_of(ignored[0])}"
            )
        resumes(False)
        result, kind = _blend_to_image(job, path), Path(path).suffix[1:].upper()
        _write_report(
            report_path, job, path, f"a {kind} image", result, "jpeg" if kind in ("JPG", "JPEG") else "none", no_paths
        )
        show(json.dumps(result) if as_json else report.image_text(result))
        return
    planned, done = _blend_to_zarr(job, path, cluster, how)
    _tell_new(done.warnings, planned)
    if done.complete:
        output = job.output
        levels = report.counted(done.levels, "level", "levels")
        kind = f"an OME-Zarr {output.ome_zarr} pyramid of {levels} ({output.compressor})"
        _write_report(report_path, job, path, kind, done.as_dict(), str(output.compressor), no_paths, planned.scene)
    show(json.dumps(done.as_dict()) if as_json else report.run_text(done))


def _check_report(report_path: str, part: str | None) -> None:
    from tiledblend.look.record import check_report_path

    if part:
        raise UsageError("--report goes with --finish: one part does not know the whole run")
    check_report_path(report_path)


def _write_report(
    report_path: str | None,
    job: Job,
    uri: str,
    kind: str,
    facts: dict[str, Any],
    compression: str,
    no_paths: bool,
    scene: Scene | None = None,
) -> None:
    """scene: what the run was given, so that nothing is decided twice."""
    if report_path is None:
        return
    from tiledblend.look.lines import say
    from tiledblend.look.methods import Made
    from tiledblend.look.record import write_report
    from tiledblend.run.machine import cpu_count

    made = Made(uri, kind, facts, compression)
    write_report(report_path, job, made, threads=cpu_count(), no_paths=no_paths, scene=scene)
    say(f"report in {report_path}")


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--part {text!r} is not of the form I/N with I from 1 to N, such as 1/8")
    return int(index), int(count)


def _blend_to_image(job: Job, path: str) -> dict[str, Any]:
    from tiledblend.compose.lazy import to_array_of
    from tiledblend.compose.scene import decide
    from tiledblend.describe.fingerprint import sources_of
    from tiledblend.look.lines import say
    from tiledblend.look.pictures import check_image_output, without_pyramid, write_image
    from tiledblend.run.notes import notes_of
    from tiledblend.run.plan import find_unstored, unstored_found

    composite = job.composite
    has_alpha = composite.has_alpha
    check_image_output(path, composite.shape, composite.channels, composite.dtype, has_alpha=has_alpha)
    scene = decide(composite)
    lacking, notes = find_unstored(scene), [*notes_of(scene), *without_pyramid(path, composite.shape)]
    _tell(notes, lacking)
    started = time.perf_counter()
    size = write_image(
        to_array_of(scene), path, composite.grid.pixel_size_um, has_alpha=has_alpha, icc_profile=composite.icc_profile
    )
    sources = enumerate(sources_of(composite))
    missed = [(number, found) for number, source in sources for found in source.take_missed(of_all_threads=True)]
    found = unstored_found(composite, lacking, missed)
    for one in found:
        say(f"warning: {one}")
    height, width = composite.shape
    return {
        "uri": path,
        "shape": [height, width],
        "channels": composite.channels,
        "dtype": composite.dtype.name,
        "bytes_written": size,
        "pixels": height * width,
        "seconds": round(time.perf_counter() - started, 3),
        "warnings": [*notes, *map(str, found)],
    }


def _tell(notes: Iterable[str], unstored: Mapping[tuple[int, int], Unstored]) -> None:
    """At the start, when something can still be done."""
    from tiledblend.look.lines import say

    for note in notes:
        say(f"note: {note}")
    for found in unstored.values():
        say(f"warning: {found}")


def _tell_new(warnings: Iterable[str], planned: Plan) -> None:
    """At the end: what was not noted at the start, and once more what was lost."""
    from tiledblend.look.lines import say

    for warning in warnings:
        if warning not in planned.notes:
            say(f"warning: {warning}")


def _blend_to_zarr(job: Job, path: str, cluster: ClusterOptions, how: dict[str, Any]) -> tuple[Plan, RunReport]:
    from tiledblend.look import lines as report
    from tiledblend.run.driver import write
    from tiledblend.run.plan import plan

    planned = plan(job.composite, job.output, samples=0)
    _tell(planned.notes, planned.unstored)
    with stoppable() as stop, report.progress() as progress, told_interruption(path):
        return planned, write(
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
) -> tuple[Plan, tuple[RunReport, ExportReport | None]]:
    from tiledblend.look import lines as report
    from tiledblend.run.driver import Running, Share
    from tiledblend.run.ometiff import blend_ometiff, plan_ometiff

    planned = plan_ometiff(job.composite, path, job.output, storing_of(job), samples=0)
    _tell(planned.notes, planned.unstored)
    with stoppable() as stop, report.progress() as progress, told_interruption(path):
        running = Running(cluster, progress, stop)
        return planned, blend_ometiff(planned, path, running=running, share=Share(**how), job=job.mapping)
