"""Chunks that are passed on against a plain copy: `python benchmarks/passing.py FOLDER --runs 3`.

FOLDER: made by `generate.py --covered 0.01`. Its base becomes a zarr; then `cp -r` of that and a blend into it by the
mask take turns, whole processes. Prints the medians and the median of the pairs' ratios.
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
    arguments = parser.parse_args()
    folder, ours = arguments.folder, [sys.executable, "-m", "tiledblend", "blend"]
    base, copy, out = (folder / f"{name}.ome.zarr" for name in ("base", "copy", "passed"))
    if not base.exists():
        seconds([*ours, str(folder / "base.tif"), "-o", str(base)])
    layer = [str(folder / "overlay.tif"), "--mask", str(folder / "mask.tif"), "--feather", "16px"]
    pairs = []
    for _ in range(arguments.runs):
        pairs.append((seconds(["cp", "-r", str(base), str(copy)]), seconds([*ours, str(base), *layer, "-o", str(out)])))
        for path in (copy, out):
            shutil.rmtree(path)
        Path(f"{out}.manifest").unlink()
    copied, passed = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"cp -r {copied:.2f} s, blend {passed:.2f} s, ratio {ratio:.2f} (medians of {len(pairs)} pairs)")


if __name__ == "__main__":
    main()
