"""A run's tiles, stage by stage: handed out in a bounded window, taken back with their receipts."""

from __future__ import annotations

import concurrent.futures
import logging
import math
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tiledblend.bytes.waiting import ANSWER_SECONDS, asked, never
from tiledblend.containers.output import Output
from tiledblend.containers.soundness import require_agreement
from tiledblend.describe.fingerprint import sources_of
from tiledblend.errors import BadInputError, InterruptedRun, RefusedError, ResourceError, TiledblendError, decoder_crash
from tiledblend.geometry import Tile
from tiledblend.guard.process import prepare_process
from tiledblend.guard.suspect import death_by_tile
from tiledblend.run.cluster import forget_task_names
from tiledblend.run.connection import Connection, HandOutAgain, SchedulerLost, WorkersGone, Workforce, connect, withdraw
from tiledblend.run.machine import cpu_count
from tiledblend.run.options import LARGER_LIMIT, MORE_MEMORY, ClusterOptions
from tiledblend.run.plan import Plan, unstored_found
from tiledblend.run.report import ProgressEvent, RunReport, Tally
from tiledblend.run.reuse import Reuse
from tiledblend.run.sending import NotSendable, pickled
from tiledblend.run.tasks import SharedJob, TileJob, TileResult, is_here, run_tile
from tiledblend.run.versions import installed_versions

if TYPE_CHECKING:
    from distributed import Client, Future

    from tiledblend.run.report import Progress

log = logging.getLogger("tiledblend")

FRUITLESS_LOSSES = 3
HARMLESS_DEATHS = 2
"""How often a run may lose workers (each time as many as the scheduler allows) under tiles that end no process here."""
LARGE_JOB = 1_000_000


def threads_here(options: ClusterOptions) -> int:
    """Of a run without dask: one, unless more were asked for."""
    return options.threads_per_worker or 1


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


class Stages:
    """One driver's work on one output."""

    def __init__(
        self,
        planned: Plan,
        output: Output,
        inputs: tuple[dict[str, Any], ...],
        progress: Progress | None,
        stop: threading.Event,
        reuse: Reuse,
    ) -> None:
        self.plan, self.output, self.progress, self.stop = planned, output, progress, stop
        self.job = TileJob(
            planned.scene, planned.layout, output.store, inputs, keys=reuse.keys, older=reuse.older_for(planned.layout)
        )
        self.tally = Tally()
        self._deaths = _Deaths()
        self._losses = 0, 0
        self._pickled: bytes | None = None
        self._notes: list[str] = []
        self.resumed = planned.tiles if output.complete else len(output.receipts)
        self._share = self.resumed, planned.tiles, planned.pixels
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
            self._look_at_share(tile for number, tile in enumerate(grid.tiles()) if number % count == index - 1)
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
            self._are_ours = connection.is_ours
            for stage in range(grid.stages):
                self._make_stage(connection, stage)

    def _look_at_share(self, share: Iterable[Tile]) -> None:
        """Progress is told of this driver's tiles alone."""
        done, size_of = self.output.open_ledger().receipts, self.plan.grid.tile_region
        tiles = pixels = resumed = self.tally.pixels = 0
        for tile in share:
            tiles, pixels = tiles + 1, pixels + size_of(tile).size
            if tile in done:
                resumed, self.tally.pixels = resumed + 1, self.tally.pixels + size_of(tile).size
        self._share = resumed, tiles, pixels

    def _make_unsent(self, why: NotSendable, options: ClusterOptions) -> None:
        """Make every missing tile in threads of this process: a lock, an open file or the like cannot leave it."""
        here = replace(options, threads_per_worker=options.threads_per_worker or cpu_count())
        self.plan.require_memory(threads_here(here), here.memory_here(), MORE_MEMORY, self.output.uri)
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
        threads = threads_here(options)
        prepare_process()
        pool = ThreadPoolExecutor(threads, "tile")
        try:
            running: set[concurrent.futures.Future[TileResult]] = set()
            while True:
                self._stop_if_asked()
                running |= {
                    pool.submit(self.job.run, tile, stands_on_same=self._stands_on_same(tile))
                    for tile in islice(tiles, threads - len(running))
                }
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

        False when workers died under tiles that end no process here, and that has not happened often before; and when
        tiles lie with workers that will not make them.
        """
        from distributed import KilledWorker

        workers = Workforce(client, self._require_memory, self._stop_if_asked, are_ours=self._are_ours)
        running: dict[Future[Any], Tile] = {}
        finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        with _failures_told():
            workers.window()
        with _failures_told(), _shared_job(client, self.job, self._pickled, workers.named()) as job:
            try:
                while True:
                    self._stop_if_asked()
                    for tile in islice(tiles, max(0, workers.window() - len(running))):
                        future = client.submit(
                            run_tile,
                            job,
                            tile,
                            self._stands_on_same(tile),
                            key=_task_key(tile),
                            pure=False,
                            **workers.named(),
                        )
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
                if isinstance(error, InterruptedRun | BadInputError | KilledWorker | HandOutAgain):
                    self._take_finished(running)
                if isinstance(error, HandOutAgain) and not (isinstance(error, WorkersGone) and self._lose_workers()):
                    return False
                if isinstance(error, KilledWorker | WorkersGone):
                    last = [tile] if isinstance(error, KilledWorker) else []
                    suspects = (one for one in (*last, *running.values()) if one.stage == 0)
                    if self._deaths.may_go_on(self._pickled or self.job, suspects, error):
                        return False
                if isinstance(error, WorkersGone):
                    raise ResourceError(
                        f"all workers that had tiles died, {HARMLESS_DEATHS + 1} times: out of memory, or a decoder"
                        " crashed on damaged input; give workers more memory or fewer threads, then --resume"
                    ) from error
                raise

    def _lose_workers(self) -> bool:
        """True when workers have gone often without a tile done: then what they had is looked at."""
        self._losses = (self._losses[0] + 1 if self.tally.done == self._losses[1] else 1), self.tally.done
        return self._losses[0] > HARMLESS_DEATHS

    def _stands_on_same(self, tile: Tile) -> bool:
        """True for a tile of a later stage whose tiles below are all what they were in the older result."""
        older, keys = self.job.older, self.output.receipts.tile_keys
        return older is not None and tile.stage > 0 and older.stands_on_same(tile, keys)

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
        sharing = [address for address, worker in workers.items() if not worker["memory_limit"] and is_here(address)]
        uri = self.output.uri
        for address, worker in workers.items():
            if address in sharing:
                fewer = "fewer --workers, " if len(sharing) > 1 else ""
                shared = self._memory // len(sharing)
                self.plan.require_memory(worker["nthreads"], shared, fewer + MORE_MEMORY, uri)
            else:
                # From there on dask lets it begin nothing.
                allowed = int(worker["memory_limit"] * worker["pause"]) or None
                share = f" (dask pauses a worker at {worker['pause']:.0%} of its limit)" if worker["pause"] < 1 else ""
                self.plan.require_memory(worker["nthreads"], allowed, LARGER_LIMIT + share, uri)

    def _take(self, result: TileResult) -> None:
        forget_task_names()
        ledger = self.output.open_ledger()
        ledger.record(result.tile, result.receipts, result.key)
        require_agreement(self.output)
        self.bytes += sum(receipt.size for receipt in result.receipts)
        pixels = self.plan.grid.tile_region(result.tile).size if result.tile.stage == 0 else 0
        self.tally.add(result, pixels)
        if self.progress is not None:
            resumed, tiles, pixels = self._share
            seconds = time.monotonic() - self.tally.started
            self.progress(ProgressEvent(resumed + self.tally.done, tiles, self.tally.pixels, pixels, seconds))

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
            self.tally.reused,
            self.tally.reused_bytes,
        )


def _task_key(tile: Tile) -> str:
    return f"tile-{tile.stage}-{tile.row}-{tile.column}-{uuid.uuid4().hex[:12]}"


@contextmanager
def _shared_job(client: Client, job: Any, data: Any, workers: dict[str, Any]) -> Iterator[Future[Any]]:
    """The job as a task of its own: sent once per worker, and made again if its worker dies.

    data: the job, pickled (None: not yet). workers: as of `Workforce.named`.
    """
    data = pickle.dumps(job) if data is None else data
    if len(data) > LARGE_JOB:
        # In-memory arrays as layers: too large for a task's arguments, so they are handed to the workers as data.
        # From a thread of no worker: in another cluster's task dask would leave them with that one's worker.
        with ThreadPoolExecutor(1) as aside:
            data = aside.submit(client.scatter, data, broadcast=True, hash=False).result()
    key = f"job-{uuid.uuid4().hex[:12]}"
    future = client.submit(SharedJob, data, installed_versions(), key=key, pure=False, **workers)
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
