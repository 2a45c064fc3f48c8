"""tiledblend against libvips, naive dask and the floor: `python benchmarks/compare.py FOLDER --runs 3`.

Each run is a whole process, start-up included; the systems take turns, another one first in each round: what
a run pays for memory in a virtual machine seems to depend on who ran before it. Prints medians of wall
time, CPU seconds (in brackets: of them in the kernel) and peak memory (sum of PSS over the process tree, sampled ten
times a second).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tiledblend.sources import open_source

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """wall, cpu, kernel: seconds; cpu includes kernel. memory: peak MB. stored: MB written."""

    wall: float
    cpu: float
    kernel: float
    memory: float
    stored: float


def blend(data: Path, names: tuple[str, str, str], out: str, options: list[str]) -> list[str]:
    """Command line of a blend of (base, overlay, mask) in a folder."""
    base, overlay, mask = (str(data / f"{name}.tif") for name in names)
    command = [sys.executable, "-m", "tiledblend", "blend", base, overlay, "--mask", mask, "-o", f"{out}.zarr"]
    return [*command, *options]


def mask_commands(data: Path, out: str, threads: int, sigma: float) -> dict[str, list[str]]:
    """Our own runs with masks that leave more or less to blend, and of seven 16-bit channels (generate.py --all)."""
    options = ["--feather", f"{sigma:g}px", "--threads-per-worker", str(threads)]
    names = {"26 %": "mask", "0 %": "mask-0", "1 %": "mask-1", "every chunk": "mask-100"}
    python = [sys.executable, "-m", "tiledblend", "blend"]
    return {
        "conversion": [*python, str(data / "base.tif"), "-o", f"{out}.zarr", *options[2:]],
        **{f"mask {share}": blend(data, ("base", "overlay", mask), out, options) for share, mask in names.items()},
        "seven channels": blend(data, ("seven-base", "seven-overlay", "seven-mask"), out, options),
    }


def commands(data: Path, out: str, threads: int, sigma: float) -> dict[str, list[str]]:
    """Command lines by name."""
    python = sys.executable
    ours = blend(data, ("base", "overlay", "mask"), out, ["--feather", f"{sigma:g}px"])
    how = ["--feather", f"{sigma:g}px", "--threads-per-worker", str(threads), "-o", f"{out}.ome.tif"]
    tiff, one = (blend(data, ("base", "overlay", mask), out, how) for mask in ("mask", "mask-1"))
    return {
        "tiledblend": [*ours, "--threads-per-worker", str(threads)],
        "tiledblend, processes": [*ours, "--workers", str(threads), "--threads-per-worker", "1"],
        "tiledblend, interleaved": [*ours, "--threads-per-worker", str(threads), "--layout", "interleaved"],
        "OME-TIFF jpeg:85": [*tiff, "--compression", "jpeg:85", "--chunk", "256", "--shard", "2048"],
        "OME-TIFF deflate": [*tiff, "--compression", "deflate", "--chunk", "256", "--shard", "2048"],
        "OME-TIFF keep": [*tiff, "--compression", "keep"],
        "OME-TIFF keep, 1 %": [*one, "--compression", "keep"],
        "floor": [python, str(HERE / "job_floor.py"), str(data), f"{out}.floor", str(threads)],
        "libvips jpeg": [python, str(HERE / "job_vips.py"), str(data), f"{out}.tif", "jpeg"],
        "libvips deflate": [python, str(HERE / "job_vips.py"), str(data), f"{out}.tif", "deflate"],
        "naive dask": [python, str(HERE / "job_naive.py"), str(data), f"{out}.naive"],
    }


def tree_pss(process: psutil.Process) -> float:
    """Sum of the proportional set sizes of a process and its descendants, in MB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total / 1e6


def measured(command: list[str], threads: int) -> tuple[float, float, float, float]:
    """(wall, CPU seconds, those in the kernel, peak MB) of one process tree."""
    environment = {**os.environ, "VIPS_CONCURRENCY": str(threads), "DASK_NUM_WORKERS": str(threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    started = time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched, peak = psutil.Process(child.pid), 0.0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, tree_pss(watched))
        time.sleep(0.1)
    wall = time.monotonic() - started
    message = child.stderr.read().decode() if child.stderr else ""
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({child.returncode}):\n{message[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_stime, peak


def stored_mb(stem: Path) -> float:
    """Size of what a run wrote; removes it."""
    total = 0
    for path in stem.parent.glob(stem.name + ".*"):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        total += sum(file.stat().st_size for file in files)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return total / 1e6


def keep(path: Path, data: Path, medians: dict[str, Run]) -> None:
    """Add medians with the size of their image to a JSON list."""
    pixels = math.prod(open_source(str(data / "base.tif")).shape)
    known = json.loads(path.read_text("utf-8")) if path.exists() else []
    known += [{"system": name, "pixels": pixels, **asdict(run)} for name, run in medians.items()]
    path.write_text(json.dumps(known, indent=1), "utf-8")


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made by generate.py")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sigma", type=float, default=16)
    parser.add_argument("--only", nargs="*", help="names of systems")
    parser.add_argument("--masks", action="store_true", help="our own runs with several masks and seven channels")
    parser.add_argument("--json", type=Path, help="add the medians to this file, for plot.py")
    arguments = parser.parse_args()
    out = arguments.folder / "result"
    stored_mb(out)
    systems = mask_commands if arguments.masks else commands
    chosen = systems(arguments.folder, str(out), arguments.threads, arguments.sigma)
    chosen = {name: chosen[name] for name in arguments.only or chosen}
    runs: dict[str, list[Run]] = {name: [] for name in chosen}
    names = list(chosen)
    for turn in range(arguments.runs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            result = measured(chosen[name], arguments.threads)
            runs[name].append(Run(*result, stored_mb(out)))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ")
    print(f"load average at the end {load}; medians of {arguments.runs} interleaved runs\n")
    print("| system | wall s | CPU s | peak MB | written MB | ours ÷ theirs, wall | ours ÷ theirs, CPU |")
    print("|---|---|---|---|---|---|---|")
    figures = ("wall", "cpu", "kernel", "memory", "stored")
    middle = {
        name: Run(*(statistics.median(getattr(run, figure) for run in of) for figure in figures))
        for name, of in runs.items()
    }
    if arguments.json:
        keep(arguments.json, arguments.folder, middle)
    ours = middle.get("tiledblend") or next(iter(middle.values()))
    for name, run in middle.items():
        own = f"{run.wall:.1f} | {run.cpu:.1f} ({run.kernel:.1f}) | {run.memory:.0f} | {run.stored:.0f}"
        print(f"| {name} | {own} | {ours.wall / run.wall:.2f} | {ours.cpu / run.cpu:.2f} |")


if __name__ == "__main__":
    main()
