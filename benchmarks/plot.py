"""Wall time and memory against pixels, as kept by compare.py --json: `python benchmarks/plot.py IN.json OUT.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Draw one line per system."""
    runs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, key, label in zip(panels, ("wall", "memory"), ("wall time, s", "peak memory, MB"), strict=True):
        for system in dict.fromkeys(run["system"] for run in runs):
            points = sorted((run["pixels"] / 1e9, run[key]) for run in runs if run["system"] == system)
            panel.plot(*zip(*points, strict=True), marker="o", label=system)
        panel.set(xscale="log", yscale="log" if key == "wall" else "linear", xlabel="gigapixels", ylabel=label)
        panel.grid(alpha=0.3, which="both")
    panels[1].set_ylim(bottom=0)
    panels[0].legend()
    figure.savefig(sys.argv[2], dpi=130)


if __name__ == "__main__":
    main()
