"""Chunks that are passed on against a plain copy: `python benchmarks/passing.py FOLDER --runs 3`.

FOLDER: made by `generate.py --covered 0.01`. Its base becomes a zarr; then `cp -r` of that (and `sync` of the copy with
`--sync`), a copy with SHA-256 by as many threads as we use (`copy_hashed.py`: the least that a result with receipts
costs), and a blend into it by the mask take turns, whole processes. Prints medians, and our ratios by turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sync", action="store_true", help="count cp's writing to the disk too, as ours is counted")
    arguments = parser.parse_args()
    folder, ours = arguments.folder, [sys.executable, "-m", "tiledblend", "blend"]
    base, copy, hashed, out = (folder / f"{name}.ome.zarr" for name in ("base", "copy", "hashed", "passed"))
    if not base.exists():
        seconds([*ours, str(folder / "base.tif"), "-o", str(base)])
    layer = [str(folder / "overlay.tif"), "--mask", str(folder / "mask.tif"), "--feather", "16px"]
    jobs = {
        "cp -r": ["cp", "-r", str(base), str(copy)],
        "copy with SHA-256": [sys.executable, str(HERE / "copy_hashed.py"), str(base), str(hashed)],
        "blend": [*ours, str(base), *layer, "-o", str(out)],
    }
    if arguments.sync:
        jobs["cp -r"] = ["sh", "-c", 'cp -r "$0" "$1" && find "$1" -exec sync {} +', str(base), str(copy)]
    turns = []
    for _ in range(arguments.runs):
        turns.append({name: seconds(command) for name, command in jobs.items()})
        for path in (copy, hashed, out):
            shutil.rmtree(path)
        Path(f"{out}.manifest").unlink()
    for name in jobs:
        median = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn["blend"] / turn[name] for turn in turns)
        print(f"{name:20s}{median:8.2f} s   blend \N{DIVISION SIGN} this {ratio:5.2f}")


if __name__ == "__main__":
    main()
