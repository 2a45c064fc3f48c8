"""The driver's window and what it keeps, with tiles that cost nothing; long: benchmarks/simulate_terapixel.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from dask.utils import key_split

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "simulate_terapixel.py"


def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("simulate_terapixel", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate_terapixel"] = module
    spec.loader.exec_module(module)
    return module


def test_tasks_in_flight_are_bounded_and_forgotten(tmp_path: Path) -> None:
    found = simulation().simulate(80_000, 2, tmp_path)
    assert found.tasks == 20 * 20 + 2 * 2 + 1
    # The shared job is one more; a task that the scheduler is about to forget may be counted.
    assert found.window <= found.futures_in_flight <= found.window + 2
    assert found.scheduler_tasks <= 2 * found.window + 2
    # dask's own logs fill up first.
    assert found.bytes_per_tile < 20_000


def test_a_finished_task_leaves_nothing(tmp_path: Path) -> None:
    """What dask keeps of tasks that are done, besides logs of bounded length; their receipts: test_store_receipts."""
    simulating, left = simulation(), list[int]()

    class Looking(simulating.Simulation):  # type: ignore[misc, name-defined]
        def watch(self, event: Any, client: Any, *rest: Any) -> None:
            super().watch(event, client, *rest)
            if event.done_tiles % 50 == 0:
                spans = client.cluster.scheduler.extensions["spans"].spans.values()
                submitted = sum(len((span._metadata or {"collections": ()})["collections"]) for span in spans)
                left.append(submitted + key_split.cache_info().currsize)

    simulating.Simulation = Looking
    simulating.simulate(60_000, 2, tmp_path)
    assert len(left) == 4
    assert max(left) < 40
