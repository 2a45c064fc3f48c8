"""A control group's memory limit: read wherever it is set, refused before the start, and enough where it is planned."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import zarr

import tiledblend as tb
from tiledblend.run import machine
from tiledblend.run.machine import group_limits, machine_memory

MOUNTED = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("listing", "files", "limits"),
    [
        ("0::/", {}, []),
        ("0::/", {"memory.max": "max"}, []),
        ("0::/", {"memory.max": "1000"}, [1000]),
        ("0::/slurm/job_7/step_0", {"slurm/job_7/memory.max": "500", "slurm/memory.max": "max"}, [500]),
        ("0::/a", {"a/memory.max": "700", "a/memory.high": "600", "memory.high": "max"}, [700, 600]),
        ("0::/a/b", {"a/b/memory.max": "700", "a/memory.max": "600"}, [700, 600]),
        # A container that is told its name on the host, and sees its own group as the root.
        ("0::/kubepods/pod1/c2", {"memory.max": "900"}, [900]),
        ("9:cpu:/a\n4:memory:/a", {"memory/a/memory.limit_in_bytes": "800", "cpu/a/memory.limit_in_bytes": "1"}, [800]),
        ("4:memory,hugetlb:/docker/1\n0::/x", {"memory/memory.limit_in_bytes": "300"}, [300]),
        ("no such line", {"memory.max": "1"}, []),
    ],
)
def test_where_a_limit_may_stand(tmp_path: Path, listing: str, files: dict[str, str], limits: list[int]) -> None:
    """Made-up trees of both versions of control groups, and of both at once."""
    (tmp_path / "listing").write_text(listing + "\n")
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert group_limits(tmp_path / "listing", tmp_path / "cgroup") == limits
    assert group_limits(tmp_path / "none") == []


def test_without_any_limit_it_is_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a laptop: control groups of version 2 say "max" there, or nothing at all."""
    monkeypatch.setattr(machine, "group_limits", list)
    monkeypatch.setattr(machine, "_addressable", list)
    assert machine_memory() == psutil.virtual_memory().total
    monkeypatch.setattr(machine, "group_limits", lambda: [1000])
    assert machine_memory() == 1000


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A new group below this process's own with a limit of memory and swap in bytes; removed at the end."""
    name = f"tiledblend-test-{os.getpid()}-{time.time_ns()}"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if "memory" in controllers.split(","):
            made = MOUNTED / "memory" / own.lstrip("/") / name
            files = {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
            break
        if not controllers:
            made, files = MOUNTED / own.lstrip("/") / name, {"memory.max": limit, "memory.swap.max": 0}
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for file, value in files.items():
            if (made / file).exists():  # swap need not be counted, nor memory be limited below this group
                (made / file).write_text(str(value))
        if not (made / next(iter(files))).exists():
            pytest.skip("memory cannot be limited in a control group here")
        yield made
    finally:
        remove_group(made)


def remove_group(made: Path) -> None:
    """Once its last process is gone."""
    for _ in range(500):
        with suppress(OSError):
            made.rmdir()
            return
        time.sleep(0.02)
    made.rmdir()


def blend_in(group: Path, folder: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The real command, all its processes in the group."""
    images = [str(folder / f"{name}.tif") for name in ("base", "overlay")]
    job = [*images, "--mask", str(folder / "mask.tif"), "--feather", "9px", "--shard", "1024"]
    command = [sys.executable, "-m", "tiledblend", "blend", *job, "-o", str(out), *more]
    return subprocess.run(
        ["sh", "-c", 'echo $$ > "$0"/cgroup.procs; exec "$@"', str(group), *command],
        env=os.environ | {"PYTHONPATH": str(Path(tb.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tb.Composite]:
    """Folder of two images of noise and a mask whose every chunk is mixed, and their composite."""
    folder = tmp_path_factory.mktemp("group")
    rng = np.random.default_rng(3)
    for name in ("base", "overlay"):
        pixels = rng.integers(0, 256, (3000, 3000, 3), np.uint8)
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(256, 256), photometric="rgb", compression="packbits")
    mask = np.kron(rng.integers(0, 2, (30, 30), np.uint8) * 255, np.ones((100, 100), np.uint8))
    tifffile.imwrite(folder / "mask.tif", mask, tile=(256, 256), compression="zlib")
    base, overlay, mask_ = (tb.open(folder / f"{name}.tif") for name in ("base", "overlay", "mask"))
    return folder, tb.Composite([tb.Layer(base), tb.Layer(overlay, mask=mask_, feather=tb.Feather.px(9))])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_limit_is_refused_before_the_start_or_holds(
    job: tuple[Path, tb.Composite], tmp_path: Path, workers: int
) -> None:
    """One page below what is planned: one line, nothing written. What is planned: it ends, inside the limit."""
    (folder, composite), out = job, tmp_path / "out.ome.zarr"
    page, threads = os.sysconf("SC_PAGE_SIZE"), 2
    planned = tb.plan(composite, tb.OutputSpec(512, 1024)).process_bytes(threads)
    needed = workers * -(-planned // page) * page
    more = ["--threads-per-worker", str(threads)] + (["--workers", str(workers)] if workers > 1 else [])
    with memory_group(needed - workers * page) as group:
        refused = blend_in(group, folder, out, *more)
    lines = [line for line in refused.stderr.splitlines() if "uint8 values" not in line]
    assert refused.returncode == 6, refused.stderr
    assert len(lines) == 1, refused.stderr
    fewer = "fewer --workers, " if workers > 1 else ""
    assert f"use fewer --threads-per-worker, {fewer}more memory (of the machine, container, job, " in lines[0]
    assert not list(tmp_path.iterdir())
    with memory_group(needed) as group:
        done = blend_in(group, folder, out, *more)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(zarr.open_group(out, mode="r")["0"])
    assert np.array_equal(np.moveaxis(pixels, 0, 2), tb.to_array(composite))
