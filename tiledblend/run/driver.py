"""Runs a plan: opens the output, has its tiles made, commits at the end."""

from __future__ import annotations

import json
import operator
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tiledblend.containers.commit import clean, commit
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.ledger import Part
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.omezarr.windows import channel_windows
from tiledblend.containers.output import Output, begin
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import deep_fingerprint as by_content
from tiledblend.describe.fingerprint import fingerprint, input_fingerprints, require_unchanged, stored_paths
from tiledblend.describe.job import with_matches
from tiledblend.describe.publishing import without_folders
from tiledblend.errors import RefusedError, StorageError, TiledblendError, UsageError
from tiledblend.kernels.halve import halving_rule
from tiledblend.run.machine import cpu_count
from tiledblend.run.options import MORE_MEMORY, ClusterOptions, flag_of
from tiledblend.run.ozx import planned_for
from tiledblend.run.plan import Plan, plan
from tiledblend.run.report import Progress, RunReport
from tiledblend.run.reuse import Reuse
from tiledblend.run.stages import Stages, threads_here

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Running:
    """How a run is carried: where its tasks run, who is told of progress, what interrupts it."""

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    progress: Progress | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    client: Client | None = None


@dataclass(frozen=True)
class Share:
    """Which steps of a run this driver does: all (the default), part (i, n) from 1, or what follows the parts.

    resume: continue an unfinished run of the same job. replace: exchange an older result of tiledblend for this one.
    deep_fingerprint: a resume knows inputs by their content, not by paths and times. reuse: an older result whose parts
    are taken where they are what this run would make. no_paths: the result names its inputs without their folders.
    """

    resume: bool = False
    part: tuple[int, int] | None = None
    finish: bool = False
    deep_fingerprint: bool = False
    replace: bool = False
    reuse: str | None = None
    no_paths: bool = False


def write(
    composite: Composite,
    uri: str | os.PathLike[str],
    *,
    output: OutputSpec | None = None,
    client: Client | None = None,
    cluster: ClusterOptions | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    replace: bool = False,
    part: tuple[int, int] | None = None,
    finish: bool = False,
    deep_fingerprint: bool = False,
    job: dict[str, Any] | None = None,
    planned: Plan | None = None,
    stop: threading.Event | None = None,
    reuse: str | os.PathLike[str] | None = None,
    no_paths: bool = False,
) -> RunReport:
    """Write a composite as an OME-Zarr pyramid at a new path; a reader sees it when it is complete, or nothing.

    A path that ends in .ozx is one file (zip without compression, OME-NGFF's RFC-9); until it is complete, `path` +
    ".unfinished/" holds its parts.

    output: how it is stored, an `OutputSpec`: chunk and shard in pixels, levels, codec, version; default: its defaults.
    progress: a function that is called with a `ProgressEvent` after every tile, in the calling thread. Returns a
    `RunReport`: counts, bytes, seconds and warnings.

    client: a dask client to use (else `cluster` says which); within a task of a cluster that of
    `distributed.worker_client()`, since it frees the task's own thread. resume: continue an unfinished run of the same
    job. replace: exchange an older result of tiledblend for this one. part: (i, n) from 1, this driver's share of the
    tiles, made here without dask; finish: the upper levels and the commit after all parts. deep_fingerprint: a resume
    knows inputs by their content, not by paths and times. job: the job's description, plain JSON values, kept in the
    result. planned: a plan made before. stop: set to interrupt. reuse: an older result of tiledblend; parts that this
    run would make byte for byte are taken from it, checked against its manifest, and only the others are made.
    no_paths: the result's attributes name its inputs without their folders.

    Tiles that are made in this process set OpenCV to one thread there (`cv2.setNumThreads(1)`), and it stays so.
    Raises UsageError, RefusedError, BadInputError, StorageError, ResourceError, and InterruptedRun (the run can be
    resumed).

    >>> import numpy as np, tempfile, tiledblend as tb
    >>> base = tb.from_array(np.zeros((300, 400, 3), np.uint8), axes="yxc")
    >>> red = tb.Layer(tb.from_color((200, 0, 0), base), opacity=0.5)
    >>> report = tb.write(tb.Composite([tb.Layer(base), red]), tempfile.mkdtemp() + "/out.ome.zarr")
    >>> report.shape, report.complete
    ((300, 400), True)
    """
    running = Running(cluster or ClusterOptions(), progress, stop or threading.Event(), client)
    _require_kinds(uri, running, job)
    uri = os.fspath(uri)
    if uri.lower().endswith((".tif", ".tiff")):
        raise UsageError(f"{uri}: write makes an OME-Zarr; blend_ometiff(plan(composite), path) makes an OME-TIFF")
    _part(part)
    planned = planned or plan(composite, output, samples=0)
    if planned.scene.asked != composite:
        raise UsageError("planned is the plan of another composite; give plan(composite)")
    name = uri.rstrip("/").rpartition("/")[2].removesuffix(".ozx").removesuffix(".zarr").removesuffix(".ome")
    planned = planned_for(planned, uri)
    older = None if reuse is None else os.fspath(reuse)
    share = Share(resume, part, finish, deep_fingerprint, replace, older, no_paths)
    return run_plan(planned, uri, described(planned.composite, name or "composite", job), running, share)


def run_plan(planned: Plan, uri: str, image: ImageMetadata, running: Running, share: Share) -> RunReport:
    """Make what is planned at `uri`, in the container of the plan's layout; raises as `write` does."""
    composite, cluster, part = planned.composite, running.cluster, _part(share.part)
    if part:
        _refuse_cluster(cluster, running.client)
    if part or share.finish:
        planned.require_memory(threads_here(cluster), cluster.memory_here(), MORE_MEMORY, uri)
    # Before the hashing: an input that changes meanwhile is found.
    listed = input_fingerprints(composite) if share.deep_fingerprint else None
    identity = identity_of(composite, deep=share.deep_fingerprint)
    inputs = identity["inputs"] if listed is None else listed
    if share.no_paths:
        identity, image = without_folders(identity), replace(image, tiledblend=without_folders(image.tiledblend))
    # Before anything is made: an older result that is to be replaced is still there, and one that is none is told now.
    reuse = Reuse.of(planned.scene, planned.layout, identity, share.reuse, required=not (share.resume or share.finish))
    opened = begin(
        uri,
        planned.layout,
        job=identity,
        inputs=stored_paths(composite),
        resume=share.resume or share.finish,
        replace=share.replace,
        part=part,
        history=without_folders(reuse.history()) if share.no_paths else reuse.history(),
    )
    stages = Stages(planned, opened, tuple(inputs), running.progress, running.stop, reuse)
    try:
        if not opened.complete:
            stages.make_tiles(running.client, cluster, share.part, share.finish)
        complete = part is None or opened.complete
        if complete and not opened.complete:
            require_unchanged(composite, inputs)
            commit(opened, image)
        return stages.report(complete)
    except BaseException as error:
        lost = _lost_lock(opened)
        # What went wrong first is what is told: a store that is gone fails the closing, too.
        with suppress(TiledblendError):
            if lost is None:
                _remove_if_empty(opened, part)
        with suppress(TiledblendError):
            opened.close()
        if isinstance(error, StorageError) and isinstance(lost, RefusedError):
            # Whoever takes over removes this driver's half-written files: that a write failed is not the disk's fault.
            raise lost from error
        raise
    finally:
        opened.close()


def identity_of(composite: Composite, *, deep: bool) -> dict[str, Any]:
    """The fingerprint that a result is known by: its inputs by path and time, or by their content (deep)."""
    return by_content(composite, threads=cpu_count()) if deep else fingerprint(composite)


def described(composite: Composite, name: str, job: dict[str, Any] | None) -> ImageMetadata:
    """What a result of this composite says of itself. job: the job's description."""
    import tiledblend

    canvas = composite.grid
    names = canvas.channel_names if len(canvas.channel_names) == composite.channels else ()
    colors = canvas.channel_colors if len(canvas.channel_colors) == composite.channels else ()
    return ImageMetadata(
        name,
        canvas.pixel_size_um,
        names,
        colors,
        channel_windows(canvas.channel_windows, composite.channels, has_alpha=composite.has_alpha),
        canvas.origin_um,
        icc_profile=composite.icc_profile,
        tiledblend={
            "version": tiledblend.__version__,
            "halving": halving_rule(has_alpha=composite.has_alpha),
            "description": job and with_matches(job, composite),
        },
    )


def _require_kinds(uri: Any, running: Running, job: Any) -> None:
    """Before a folder is made or a tile rendered. Raises UsageError."""
    if not isinstance(uri, (str, os.PathLike)):
        raise UsageError(f"output {uri!r} must be a path or a URL")
    if not isinstance(running.cluster, ClusterOptions):
        raise UsageError(f"cluster {running.cluster!r} must be ClusterOptions")
    if not (running.progress is None or callable(running.progress)):
        raise UsageError(f"progress {running.progress!r} must be a function of a ProgressEvent")
    try:
        json.dumps(job)
    except (TypeError, ValueError) as error:
        raise UsageError(f"job must hold plain JSON values only: {error}") from None


def _part(given: Any) -> Part | None:
    if given is None:
        return None
    try:
        index, count = map(operator.index, given)
    except (TypeError, ValueError):
        raise UsageError(f"part {given!r} must be two whole numbers (i, n), i from 1 to n") from None
    return Part(index, count)


def _refuse_cluster(options: ClusterOptions, client: Client | None) -> None:
    """Raise UsageError if a part, which is made in threads of this process, is given a cluster."""
    names = ("workers", "scheduler", "scheduler_file", "dashboard", "performance_report")
    given = [flag_of(name) for name in names if getattr(options, name)]
    given += ["client"] if client is not None else []
    if given:
        raise UsageError(f"--part works without dask, in threads of this process; leave out {', '.join(given)}")


def _lost_lock(opened: Output) -> TiledblendError | None:
    """Why this driver may no longer touch the output; None if it is still its own."""
    try:
        if opened.ledger is not None:
            opened.ledger.lock.check()
    except TiledblendError as error:
        return error
    return None


def _remove_if_empty(opened: Output, part: Part | None) -> None:
    """After a failure before the first tile was stored there is nothing to resume: leave nothing behind."""
    if part is not None or opened.ledger is None or opened.ledger.receipts or opened.replaces or not opened.fresh:
        return
    opened.close()
    clean(opened.uri)
