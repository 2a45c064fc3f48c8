"""The driver and the scheduler at a terapixel, with tiles that cost nothing: `python benchmarks/simulate_terapixel.py`.

A plan of 1,000,000 x 1,000,000 px (60,025 tiles of level 0, 60,282 with those of the smaller levels) goes through the
real driver (ledger, receipts, bounded window) and a real in-process dask cluster; a task makes up its receipts instead
of pixels. Client, scheduler and worker are one process, so its memory is what they hold together.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.pyramid import TileStats
from tiledblend.containers.output import begin
from tiledblend.containers.receipts import Receipt
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import fingerprint
from tiledblend.describe.layers import Layer
from tiledblend.geometry import Region, Tile
from tiledblend.run.cluster import open_client
from tiledblend.run.connection import TASKS_PER_THREAD
from tiledblend.run.options import ClusterOptions
from tiledblend.run.plan import plan
from tiledblend.run.report import ProgressEvent
from tiledblend.run.reuse import Reuse
from tiledblend.run.stages import Stages
from tiledblend.run.tasks import TileJob, TileResult
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec


class FreeSource(RasterSource):
    """An image of any size that has no pixels."""

    def __init__(self, side: int) -> None:
        self.spec = SourceSpec(f"free-{side}")
        self.dtype, self.channels, self.is_rgb = np.dtype(np.uint8), 3, True
        self.levels = (Level((side, side), (256, 256)),)
        self.info = SourceInfo("free", "YXS")

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        raise AssertionError("nothing is read")

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": self.spec.path, "size": 0, "modified": 0, "structure": ""}


class FreeJob(TileJob):
    """A job whose tiles are done at once: receipts as long as real ones, nothing stored."""

    def run(
        self,
        tile: Tile,
        storing: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        stands_on_same: bool = False,
    ) -> TileResult:
        receipts = tuple(
            Receipt(key, 7_000_000, hashlib.sha256(key.encode()).hexdigest()) for key in self.layout.tile_objects(tile)
        )
        return TileResult(tile, receipts, TileStats(copied=64), key=bytes(64 if tile.stage == 0 else 0))


def resident_bytes() -> int:
    """RSS of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@dataclass
class Simulation:
    """What was seen. memory: bytes above the start, by share of the run (percent). in_flight: most futures and most
    tasks of the scheduler at one time; window: what the driver allows."""

    tasks: int
    threads: int
    window: int = 0
    seconds_to_plan: float = 0.0
    seconds_to_first_tile: float = 0.0
    seconds: float = 0.0
    tasks_per_second: float = 0.0
    futures_in_flight: int = 0
    scheduler_tasks: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    bytes_per_tile: float = 0.0

    def watch(self, event: ProgressEvent, client: Any, started: float, before: int) -> None:
        if event.done_tiles == 1:
            self.seconds_to_first_tile = time.monotonic() - started
        if event.done_tiles % 20 == 0:
            self.futures_in_flight = max(self.futures_in_flight, len(client.futures))
            self.scheduler_tasks = max(self.scheduler_tasks, len(client.cluster.scheduler.tasks))
        percent = 100 * event.done_tiles // event.tiles
        if percent % 5 == 0 and percent not in self.memory:
            self.memory[percent] = resident_bytes() - before


def simulate(side: int, threads: int, folder: Path) -> Simulation:
    """Plan and run a canvas of side x side pixels. folder: for the ledger."""
    started = time.monotonic()
    composite = Composite([Layer(FreeSource(side))])
    planned = plan(composite)
    found = Simulation(planned.tiles, threads, window=threads * TASKS_PER_THREAD)
    found.seconds_to_plan = time.monotonic() - started
    output = begin(str(folder / "free.ome.zarr"), planned.layout, job={})
    with open_client(ClusterOptions(threads_per_worker=threads)) as client:
        before = resident_bytes()

        def progress(event: ProgressEvent) -> None:
            found.watch(event, client, started, before)

        identity = fingerprint(composite)
        reuse = Reuse.of(planned.scene, planned.layout, identity)
        run = Stages(planned, output, tuple(identity["inputs"]), progress, threading.Event(), reuse)
        run.job = FreeJob(planned.scene, planned.layout, output.store, run.job.inputs, keys=reuse.keys)
        running = time.monotonic()
        run.make_tiles(client, ClusterOptions(), None, False)
        found.seconds = time.monotonic() - running
    assert len(output.open_ledger().receipts) == planned.tiles
    output.close()
    found.tasks_per_second = found.tasks / found.seconds
    found.bytes_per_tile = (found.memory[100] - found.memory[20]) / (0.8 * found.tasks)
    return found


def main() -> None:
    """Print what was seen, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = simulate(arguments.side, arguments.threads, Path(folder))
    print(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    main()
