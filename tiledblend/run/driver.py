"""Runs a plan: hands its tiles to a dask cluster in a bounded window, keeps receipts, commits at the end."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import operator
import os
import pickle
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.objects import ObjectStore
from tiledblend.compose.passing import ChunkSink, render_tile_passing
from tiledblend.compose.pyramid import TileStats, shrink_tile
from tiledblend.compose.render import render_tile
from tiledblend.compose.scene import Scene
from tiledblend.containers.commit import Output, begin, clean, commit, require_agreement
from tiledblend.containers.ledger import Part
from tiledblend.containers.omezarr.documents import ImageMetadata
from tiledblend.containers.omezarr.layout import ArrayLayout, Receipt, TileWriter
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.omezarr.stored import read_region
from tiledblend.containers.omezarr.windows import channel_windows
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import deep_fingerprint as by_content
from tiledblend.describe.fingerprint import fingerprint, input_fingerprints, require_unchanged, sources_of, stored_paths
from tiledblend.display import ShownInNotebooks
from tiledblend.errors import (
    BadInputError,
    InterruptedRun,
    RefusedError,
    ResourceError,
    StorageError,
    TiledblendError,
    UsageError,
    decoder_crash,
)
from tiledblend.geometry import Region, Tile
from tiledblend.guard.process import prepare_process
from tiledblend.guard.suspect import death_by_tile
from tiledblend.kernels.halve import halving_rule
from tiledblend.run.cluster import forget_task_names
from tiledblend.run.connection import TASKS_PER_THREAD, Connection, SchedulerLost, Workforce, connect, withdraw
from tiledblend.run.machine import cpu_count
from tiledblend.run.options import MORE_MEMORY, ClusterOptions, flag_of
from tiledblend.run.plan import MOST_STORING, Plan, plan, unstored_found
from tiledblend.run.sending import NotSendable, pickled
from tiledblend.run.versions import installed_versions, require_versions
from tiledblend.run.waiting import ANSWER_SECONDS, asked, never
from tiledblend.sources.base import Missed, Unstored

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("tiledblend")

FRUITLESS_LOSSES = 3
HARMLESS_DEATHS = 2
"""How often a run may lose workers (each time as many as the scheduler allows) under tiles that end no process here."""
LARGE_JOB = 1_000_000


@dataclass(frozen=True)
class ProgressEvent:
    """How far a run is. pixels: of level 0, those of a resumed run's earlier drivers included. seconds: of this
    driver."""

    done_tiles: int
    tiles: int
    done_pixels: int
    pixels: int
    seconds: float


@dataclass(frozen=True)
class RunReport(ShownInNotebooks):
    """What a run did. chunks: level-0 chunks by class. background_pixels: where no layer had weight. resumed_tiles:
    found done.

    bytes_written: of the whole result; chunks: of this driver's tiles. complete: False after one part of several.
    unstored: chunks of inputs that are not stored and were read as fill value, in `warnings` too.
    """

    uri: str
    shape: tuple[int, int]
    channels: int
    dtype: str
    levels: int
    tiles: int
    resumed_tiles: int
    objects: int
    bytes_written: int
    pixels: int
    seconds: float
    chunks: dict[str, int]
    background_pixels: int
    complete: bool = True
    warnings: tuple[str, ...] = ()
    unstored: tuple[Unstored, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        unstored = [found.as_dict() for found in self.unstored]
        return {**asdict(self), "shape": list(self.shape), "warnings": list(self.warnings), "unstored": unstored}


def identity_of(composite: Composite, *, deep: bool) -> dict[str, Any]:
    """The fingerprint that a result is known by: its inputs by path and time, or by their content (deep)."""
    return by_content(composite, threads=cpu_count()) if deep else fingerprint(composite)


def nothing_done(planned: Plan, uri: str) -> RunReport:
    """Of a run that found its result complete."""
    composite, none = planned.composite, {"copied": 0, "blended": 0, "empty": 0}
    shape, dtype, levels = composite.shape, composite.dtype.name, planned.grid.levels
    objects, pixels = planned.layout.object_count(), planned.pixels
    return RunReport(uri, shape, composite.channels, dtype, levels, 0, planned.tiles, objects, 0, pixels, 0.0, none, 0)


@dataclass(frozen=True)
class TileJob:
    """All that a task needs besides its tile. Pickled once per worker; sources reopen by name.

    inputs: fingerprints that the sources must still have where they are opened. pass_on: chunks that a source stores as
    the output would are taken as they are.
    """

    scene: Scene
    layout: ArrayLayout
    store: ObjectStore
    inputs: tuple[dict[str, Any], ...]
    pass_on: bool = True

    def run(self, tile: Tile, storing: Callable[[], AbstractContextManager[None]] = nullcontext) -> TileResult:
        """Render a tile and store its objects; `storing` is entered for the second part."""
        self._missed()  # what a run that failed in this thread left
        with _memory_told(tile), closing(TileWriter(self.layout, self.store, tile)) as sink:
            if tile.stage == 0:
                stats = self._render(tile, sink)
            else:
                stats = TileStats()
                shrink_tile(self.layout.grid, tile, self._read, sink, has_alpha=self.scene.has_alpha)
            with storing():
                return TileResult(tile, sink.finish(), stats, self._missed())

    def _render(self, tile: Tile, sink: ChunkSink) -> TileStats:
        try:
            if self.pass_on:
                return render_tile_passing(self.scene, self.layout, tile, sink)
            return render_tile(self.scene, self.layout.grid, tile, sink)
        finally:
            sources = sources_of(self.scene.composite)
            for source in sources:
                source.rest()
            # Nothing of the tile is stored yet. An input that was cut short cannot be decoded: this is the better word.
            for source in sources:
                source.require_unchanged()

    def rehearse(self, tile: Tile) -> None:
        """Render a tile for nobody: to see whether that can be done at all."""
        self._render(tile, _Nowhere())

    def _missed(self) -> tuple[tuple[int, Missed], ...]:
        found = ((number, source.take_missed()) for number, source in enumerate(sources_of(self.scene.composite)))
        return tuple((number, missed) for number, of_source in found for missed in of_source)

    def require_inputs(self) -> None:
        """Raise BadInputError unless the inputs are the planned ones."""
        require_unchanged(self.scene.composite, list(self.inputs))

    def _read(self, level: int, region: Region) -> Any:
        return read_region(self.layout, self.store, level, region)


class _Nowhere:
    """A `ChunkSink` for a rehearsal."""

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Any) -> None:
        """Dropped."""

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Any) -> None:
        """Dropped."""

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        """Dropped."""


@dataclass(frozen=True)
class TileResult:
    """What a task gives back to the driver: proof, not pixels.

    missed: chunks of inputs that were found not to be stored, by the index of their source in `sources_of`.
    """

    tile: Tile
    receipts: tuple[Receipt, ...]
    stats: TileStats
    missed: tuple[tuple[int, Missed], ...] = ()


@contextmanager
def _memory_told(tile: Tile) -> Iterator[None]:
    """However a library says that it got no memory, as one line of ours."""
    import cv2

    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.STS_NO_MEM:
            raise
        raise ResourceError(
            f"{tile}: out of memory; use fewer threads or a smaller --shard, then run again with --resume"
        ) from error


class SharedJob:
    """A job on its way through a cluster: its bytes, opened once per process by the first task that needs it.

    A job pickles and has `require_inputs()`.

    Opening asks files and servers, so it belongs in a task, where it may take its time and fail in one line, and not
    in dask's own transfers between workers.
    """

    def __init__(self, pickled: bytes, versions: dict[str, str]) -> None:
        self._pickled, self._versions, self._lock = pickled, versions, threading.Lock()
        self._job: Any = None

    def __reduce__(self) -> tuple[type[SharedJob], tuple[bytes, dict[str, str]]]:
        return SharedJob, (self._pickled, self._versions)

    def open(self) -> Any:
        """The job, after a check that packages (a worker may join late) and inputs are the planned ones."""
        with self._lock:
            if self._job is None:
                require_versions(self._versions, installed_versions(), socket.gethostname())
                prepare_process()
                job = _opened(self._pickled)
                job.require_inputs()
                self._job = job
            return self._job


def _opened(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except (TiledblendError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ResourceError(
            f"a worker cannot take the layers' arrays as they were sent: {type(error).__name__}: {error}; compute them "
            "first, or run without a client"
        ) from error


def run_tile(job: SharedJob, tile: Tile) -> TileResult:
    """A task: one tile. While it waits for the disk or the network its thread's place is another tile's."""
    forget_task_names()
    with errors_told():
        result: TileResult = job.open().run(tile, _aside)
        return result


@contextmanager
def errors_told() -> Iterator[None]:
    """In a task: errors that say on which host they happened, and that reach the client."""
    from distributed import get_worker

    try:
        yield
    except TiledblendError as error:
        address = get_worker().address
        if _is_here(address):
            raise
        raise type(error)(f"{error} (on worker {address})") from error
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A panic of a library in Rust: its class cannot be unpickled, and the client would wait for ever.
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


_STORING = threading.BoundedSemaphore(MOST_STORING)


@contextmanager
def _aside() -> Iterator[None]:
    """Outside the worker's pool of threads, so that the next tile begins; at most MOST_STORING tiles at once."""
    from distributed import secede

    if not _STORING.acquire(blocking=False):
        yield
        return
    try:
        secede()
        yield
    finally:
        _STORING.release()


Progress = Callable[[ProgressEvent], None]


@dataclass
class _Tally:
    """What the driver adds up while results come in."""

    started: float = field(default_factory=time.monotonic)
    done: int = 0
    pixels: int = 0
    stats: TileStats = field(default_factory=TileStats)
    missed: set[tuple[int, Missed]] = field(default_factory=set)

    def add(self, result: TileResult, pixels: int) -> None:
        self.done += 1
        self.pixels += pixels
        self.missed.update(result.missed)
        for name in ("copied", "blended", "empty", "background"):
            setattr(self.stats, name, getattr(self.stats, name) + getattr(result.stats, name))


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
) -> RunReport:
    """Write a composite as an OME-Zarr pyramid at a new path; a reader sees it when it is complete, or nothing.

    client: a dask client to use (else `cluster` says which); within a task of a cluster that of
    `distributed.worker_client()`, since it frees the task's own thread. resume: continue an unfinished run of the same
    job. replace: exchange an older result of tiledblend for this one. part: (i, n) from 1, this driver's share of the
    tiles, made here without dask; finish: the upper levels and the commit after all parts. deep_fingerprint: a resume
    knows inputs by their content, not by paths and times. job: the job's description, plain JSON values, kept in the
    result. planned: a plan made before. stop: set to interrupt.

    Tiles that are made in this process set OpenCV to one thread there (`cv2.setNumThreads(1)`), and it stays so.
    Raises UsageError, RefusedError, BadInputError, StorageError, ResourceError, and InterruptedRun (the run can be
    resumed).
    """
    cluster = cluster or ClusterOptions()
    _require_kinds(uri, cluster, progress, job)
    uri = os.fspath(uri)
    if uri.lower().endswith((".tif", ".tiff")):
        raise UsageError(f"{uri}: write makes an OME-Zarr; blend_ometiff(plan(composite), path) makes an OME-TIFF")
    shared = _part(part)
    if shared:
        _refuse_cluster(cluster, client)
    planned = planned or plan(composite, output, samples=0)
    if planned.composite != composite:
        raise UsageError("planned is the plan of another composite; give plan(composite)")
    if shared or finish:
        planned.require_memory(_threads_here(cluster), cluster.memory_here(), MORE_MEMORY, uri)
    # Before the hashing: an input that changes meanwhile is found.
    listed = input_fingerprints(composite) if deep_fingerprint else None
    identity = identity_of(composite, deep=deep_fingerprint)
    inputs = identity["inputs"] if listed is None else listed
    opened = begin(
        uri,
        planned.layout,
        job=identity,
        inputs=stored_paths(composite),
        resume=resume or finish,
        replace=replace,
        part=shared,
    )
    run = _Run(planned, opened, tuple(inputs), progress, stop or threading.Event())
    try:
        if not opened.complete:
            run.make_tiles(client, cluster, part, finish)
        complete = part is None
        if complete and not opened.complete:
            require_unchanged(composite, inputs)
            commit(opened, _metadata(composite, uri, job))
        return run.report(complete)
    except BaseException as error:
        lost = _lost_lock(opened)
        # What went wrong first is what is told: a store that is gone fails the closing, too.
        with suppress(TiledblendError):
            if lost is None:
                _remove_if_empty(opened, shared)
        with suppress(TiledblendError):
            opened.close()
        if isinstance(error, StorageError) and isinstance(lost, RefusedError):
            # Whoever takes over removes this driver's half-written files: that a write failed is not the disk's fault.
            raise lost from error
        raise
    finally:
        opened.close()


def _require_kinds(uri: Any, cluster: Any, progress: Any, job: Any) -> None:
    """Before a folder is made or a tile rendered. Raises UsageError."""
    if not isinstance(uri, (str, os.PathLike)):
        raise UsageError(f"output {uri!r} must be a path or a URL")
    if not isinstance(cluster, ClusterOptions):
        raise UsageError(f"cluster {cluster!r} must be ClusterOptions")
    if not (progress is None or callable(progress)):
        raise UsageError(f"progress {progress!r} must be a function of a ProgressEvent")
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


def _threads_here(options: ClusterOptions) -> int:
    """Of a run without dask: one, unless more were asked for."""
    return options.threads_per_worker or 1


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


def _metadata(composite: Composite, uri: str, job: dict[str, Any] | None) -> ImageMetadata:
    import tiledblend

    canvas = composite.grid
    names = canvas.channel_names if len(canvas.channel_names) == composite.channels else ()
    colors = canvas.channel_colors if len(canvas.channel_colors) == composite.channels else ()
    name = uri.rstrip("/").rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome") or "composite"
    return ImageMetadata(
        name,
        canvas.pixel_size_um,
        names,
        colors,
        channel_windows(canvas.channel_windows, composite.channels, has_alpha=composite.has_alpha),
        canvas.origin_um,
        tiledblend={
            "version": tiledblend.__version__,
            "halving": halving_rule(has_alpha=composite.has_alpha),
            "description": job,
        },
    )


class _Deaths:
    """How often a run lost workers under tasks that end no process here."""

    def __init__(self) -> None:
        self._count = 0

    def may_go_on(self, job: Any, suspects: Iterable[Any], error: Exception) -> bool:
        """True a few times. Raises BadInputError, naming what it decodes then, if a suspect ends a process that does it
        again. job: has `rehearse`."""
        found = death_by_tile(job, suspects)
        if found is not None:
            item, death = found
            where = " or ".join(note.what for note in death.notes) or str(item)
            raise BadInputError(decoder_crash(where, death.signal_name)) from error
        self._count += 1
        return self._count <= HARMLESS_DEATHS


class _Run:
    """One driver's work on one output."""

    def __init__(
        self,
        planned: Plan,
        output: Output,
        inputs: tuple[dict[str, Any], ...],
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self.plan, self.output, self.progress, self.stop = planned, output, progress, stop
        self.job = TileJob(planned.scene, planned.layout, output.store, inputs)
        self.tally = _Tally()
        self._deaths = _Deaths()
        self._pickled: bytes | None = None
        self._notes: list[str] = []
        self.resumed = len(output.receipts)
        self.bytes = output.receipts.stored_bytes

    def make_tiles(
        self, client: Client | None, options: ClusterOptions, part: tuple[int, int] | None, finish: bool
    ) -> None:
        """Make every missing tile, stage by stage: a stage starts when the one before is stored whole."""
        self._memory = options.memory_here()
        done = self.output.open_ledger().receipts
        self.tally.pixels = sum(self.plan.grid.tile_region(tile).size for tile in done if tile.stage == 0)
        grid = self.plan.grid
        if part is not None:
            index, count = part
            mine = (
                tile for number, tile in enumerate(grid.tiles()) if number % count == index - 1 and tile not in done
            )
            self._make_here(mine, options)
            return
        if finish and (missing := sum(tile not in done for tile in grid.tiles())):
            raise RefusedError(
                f"{self.output.uri}: {missing} tiles are not made yet; run their parts first, then --finish"
            )
        if finish:
            for stage in range(grid.stages):
                self._make_here(self._missing(stage), options)
            return
        try:
            self._pickled = pickled(self.job, sources_of(self.plan.composite))
        except NotSendable as error:
            self._make_unsent(error, options)
            return
        with connect(options, client, self._stop_if_asked) as connection:
            for stage in range(grid.stages):
                self._make_stage(connection, stage)

    def _make_unsent(self, why: NotSendable, options: ClusterOptions) -> None:
        """Make every missing tile in threads of this process: a lock, an open file or the like cannot leave it."""
        here = replace(options, threads_per_worker=options.threads_per_worker or cpu_count())
        self.plan.require_memory(_threads_here(here), here.memory_here(), MORE_MEMORY, self.output.uri)
        threads = f"{here.threads_per_worker} thread{'s' * (here.threads_per_worker != 1)}"
        self._notes.append(f"{why}: all tiles are made by {threads} of this one, not by a cluster")
        log.warning("%s", self._notes[-1])
        for stage in range(self.plan.grid.stages):
            self._make_here(self._missing(stage), here)

    def _missing(self, stage: int) -> Iterator[Tile]:
        done = self.output.open_ledger().receipts
        return (tile for tile in self.plan.grid.tiles(stage) if tile not in done)

    def _make_here(self, tiles: Iterator[Tile], options: ClusterOptions) -> None:
        """Make tiles in threads of this process, without dask."""
        threads = _threads_here(options)
        prepare_process()
        pool = ThreadPoolExecutor(threads, "tile")
        try:
            running: set[concurrent.futures.Future[TileResult]] = set()
            while True:
                self._stop_if_asked()
                running |= {pool.submit(self.job.run, tile) for tile in islice(tiles, threads - len(running))}
                if not running:
                    return
                finished, running = concurrent.futures.wait(running, 0.5, concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    self._take(future.result())
        finally:
            # Those that have begun are waited for, so that nothing writes after we return.
            pool.shutdown(cancel_futures=True)

    def _make_stage(self, connection: Connection, stage: int) -> None:
        """Make a stage's tiles, and those that are still missing again whenever the scheduler was lost.

        Or when workers died under a tile that harms none: dask counts a death against all tasks that a worker has, and
        another job's may have caused it.
        """
        losses, seen = 0, self.tally.done
        while True:
            try:
                if self._make_on(connection.client, self._missing(stage)):
                    return
            except SchedulerLost as error:
                losses, seen = (1 if self.tally.done > seen else losses + 1), self.tally.done
                if losses > FRUITLESS_LOSSES:
                    raise InterruptedRun(
                        f"{self.output.uri}: the dask scheduler was lost {losses} times before a tile was done;"
                        " continue with --resume"
                    ) from error
                try:
                    connection.restore(self._stop_if_asked)
                except InterruptedRun as given_up:
                    if self.stop.is_set():
                        raise
                    raise InterruptedRun(f"{self.output.uri}: {given_up}") from error

    def _make_on(self, client: Client, tiles: Iterator[Tile]) -> bool:
        """Hand out tiles in a bounded window: the scheduler never holds more than a few tasks per thread.

        False when workers died under tiles that end no process here, and that has not happened often before.
        """
        from distributed import KilledWorker

        workers = Workforce(client, self._require_memory, self._stop_if_asked)
        running: dict[Future[Any], Tile] = {}
        finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        with _failures_told(), _shared_job(client, self.job, self._pickled) as job:
            try:
                while True:
                    self._stop_if_asked()
                    for tile in islice(tiles, max(0, workers.window() - len(running))):
                        future = client.submit(run_tile, job, tile, key=_task_key(tile), pure=False)
                        running[future] = tile
                        future.add_done_callback(finished.put)
                    if not running:
                        return True
                    with suppress(queue.Empty):
                        future = finished.get(timeout=0.5)
                        tile = running.pop(future)
                        self._take(_result(future, self._stop_if_asked))
            except BaseException as error:
                withdraw(client, set(running))
                if isinstance(error, InterruptedRun | KilledWorker):
                    self._take_finished(running)
                if isinstance(error, KilledWorker):
                    suspects = (one for one in (tile, *running.values()) if one.stage == 0)
                    if self._deaths.may_go_on(self._pickled or self.job, suspects, error):
                        return False
                raise

    def _take_finished(self, running: dict[Future[Any], Tile]) -> None:
        """Note what was made before the stop, so that it need not be made again."""
        with suppress(SchedulerLost):
            for future in running:
                if future.status == "finished":
                    self._take(_result(future, seconds=ANSWER_SECONDS))

    def _stop_if_asked(self) -> None:
        if self.stop.is_set():
            raise InterruptedRun(f"{self.output.uri}: stopped; continue with --resume")

    def _require_memory(self, workers: dict[str, Any]) -> None:
        # Workers without a limit of their own share this machine's memory, where they are on it.
        sharing = [address for address, worker in workers.items() if not worker["memory_limit"] and _is_here(address)]
        uri = self.output.uri
        for address, worker in workers.items():
            if address in sharing:
                fewer = "fewer --workers, " if len(sharing) > 1 else ""
                shared = self._memory // len(sharing)
                self.plan.require_memory(worker["nthreads"], shared, fewer + MORE_MEMORY, uri)
            else:
                self.plan.require_memory(worker["nthreads"], worker["memory_limit"] or None, uri=uri)

    def _take(self, result: TileResult) -> None:
        forget_task_names()
        ledger = self.output.open_ledger()
        ledger.record(result.tile, result.receipts)
        require_agreement(self.output)
        self.bytes += sum(receipt.size for receipt in result.receipts)
        pixels = self.plan.grid.tile_region(result.tile).size if result.tile.stage == 0 else 0
        self.tally.add(result, pixels)
        if self.progress is not None:
            done = self.resumed + self.tally.done
            seconds = time.monotonic() - self.tally.started
            self.progress(ProgressEvent(done, self.plan.tiles, self.tally.pixels, self.plan.pixels, seconds))

    def report(self, complete: bool) -> RunReport:
        stats, composite = self.tally.stats, self.plan.composite
        unstored = tuple(unstored_found(composite, self.plan.unstored, self.tally.missed))
        return RunReport(
            self.output.uri,
            composite.shape,
            composite.channels,
            composite.dtype.name,
            self.plan.grid.levels,
            self.tally.done,
            self.resumed,
            self.plan.layout.object_count(),
            self.bytes,
            self.plan.pixels,
            time.monotonic() - self.tally.started,
            {"copied": stats.copied, "blended": stats.blended, "empty": stats.empty},
            stats.background,
            complete,
            (*self.plan.notes, *self._notes, *map(str, unstored), *self.output.warnings),
            unstored,
        )


@dataclass(frozen=True)
class OrderedTasks:
    """`function(SharedJob, item)` for each item on a cluster. stop: set to interrupt. output: for messages."""

    function: Callable[[SharedJob, Any], Any]
    stop: threading.Event
    output: str

    def stop_if_asked(self) -> None:
        """Raise InterruptedRun if it is to stop."""
        if self.stop.is_set():
            raise InterruptedRun(f"{self.output}: stopped; continue with --resume")

    def results(self, client: Client, job: Any, items: Iterable[Any]) -> Generator[Any]:
        """The results in the order of the items, a few per thread ahead of who takes them. job: as of `SharedJob`.

        Raises InterruptedRun, ResourceError, and what a task raises. Close it when it is left early.
        """
        pending, deaths = iter(items), _Deaths()
        while again := (yield from self._results(client, job, pending, deaths)):
            pending = chain(again, pending)

    def _results(
        self, client: Client, job: Any, pending: Iterator[Any], deaths: _Deaths
    ) -> Generator[Any, None, tuple[Any, ...]]:
        """Returns the items to hand out again: those without a result when workers died and none of them did it."""
        from distributed import KilledWorker

        window = max(1, sum(client.nthreads().values())) * TASKS_PER_THREAD
        ahead: deque[tuple[Any, Future[Any]]] = deque()
        finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        with _failures_told(), _shared_job(client, job) as shared:
            try:
                while True:
                    for item in islice(pending, window - len(ahead)):
                        key = f"{self.function.__name__}-{uuid.uuid4().hex[:12]}"
                        future = client.submit(self.function, shared, item, key=key, pure=False)
                        ahead.append((item, future))
                        future.add_done_callback(finished.put)
                    if not ahead:
                        return ()
                    while not ahead[0][1].done() and not self.stop.is_set():
                        with suppress(queue.Empty):
                            finished.get(timeout=0.5)
                    self.stop_if_asked()
                    result = _result(ahead[0][1], self.stop_if_asked)
                    ahead.popleft()
                    yield result
            except SchedulerLost as error:
                raise InterruptedRun(f"{self.output}: the dask scheduler was lost; continue with --resume") from error
            except BaseException as error:
                withdraw(client, {future for _, future in ahead})
                suspects = tuple(item for item, _ in ahead)
                if isinstance(error, KilledWorker) and deaths.may_go_on(job, suspects, error):
                    return suspects
                raise


def _is_here(address: str) -> bool:
    """True for a worker of an embedded or local cluster."""
    return address.startswith(("inproc://", "tcp://127.0.0.1:", "tls://127.0.0.1:"))


def _task_key(tile: Tile) -> str:
    return f"tile-{tile.stage}-{tile.row}-{tile.column}-{uuid.uuid4().hex[:12]}"


@contextmanager
def _shared_job(client: Client, job: Any, data: Any = None) -> Iterator[Future[Any]]:
    """The job as a task of its own: sent once per worker, and made again if its worker dies. data: the job, pickled."""
    data = pickle.dumps(job) if data is None else data
    if len(data) > LARGE_JOB:
        # In-memory arrays as layers: too large for a task's arguments, so they are handed to the workers as data.
        # From a thread of no worker: in another cluster's task dask would leave them with that one's worker.
        with ThreadPoolExecutor(1) as aside:
            data = aside.submit(client.scatter, data, broadcast=True, hash=False).result()
    future = client.submit(SharedJob, data, installed_versions(), key=f"job-{uuid.uuid4().hex[:12]}", pure=False)
    try:
        yield future
    finally:
        with suppress(Exception):
            future.release()


def _result(future: Future[Any], check: Callable[[], None] = never, seconds: float = math.inf) -> Any:
    """A finished task's result, or what the task raised; SchedulerLost when it was cancelled or cannot be had in time.

    check: called while it is fetched; may raise.
    """
    from concurrent.futures import CancelledError

    try:
        return asked(future.result, check, seconds)
    except (CancelledError, OSError) as error:
        if future.status == "error":
            raise
        raise SchedulerLost from error


@contextmanager
def _failures_told() -> Iterator[None]:
    """What dask raises when workers or the scheduler are lost, as SchedulerLost or one line of ours."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except TiledblendError:
        raise
    except KilledWorker as error:
        raise ResourceError(
            f"workers died {error.allowed_failures + 1} times on {error.task}: out of memory, or a "
            "decoder crashed on damaged input; "
            "give workers more memory or fewer threads and run again with --resume"
        ) from error
    except (CancelledError, ClosedClientError, CommClosedError) as error:
        raise SchedulerLost from error
    except ImportError as error:
        raise ResourceError(
            f"a dask worker lacks a package: {error}; install the client's versions there, then run again with --resume"
        ) from error
    except MemoryError as error:
        raise ResourceError(
            "a worker ran out of memory; use fewer threads or a smaller --shard and run again with --resume"
        ) from error
