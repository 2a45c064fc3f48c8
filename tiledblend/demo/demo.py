"""`tiledblend demo`: two stains of one section and an annotation mask, blended on a local dask cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiledblend.bytes.objects import mapped_errors
from tiledblend.demo.tissue import make_slides
from tiledblend.describe.job import build
from tiledblend.errors import RefusedError, UsageError
from tiledblend.look.preview import panel
from tiledblend.run.driver import write
from tiledblend.run.options import ClusterOptions
from tiledblend.run.report import ProgressEvent, RunReport

FEATHER_PX = 16
MIN_SIZE, MAX_SIZE = 256, 100_000


@dataclass(frozen=True)
class DemoReport:
    """What the demo did. folder holds the slides, the mask, `blended.ome.zarr` and `preview.png`."""

    folder: Path
    making_seconds: float
    run: RunReport
    preview: Path

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "folder": str(self.folder),
            "making_seconds": round(self.making_seconds, 3),
            "preview": str(self.preview),
            "run": self.run.as_dict(),
        }


def run_demo(
    folder: Path | None = None,
    *,
    size: int = 8192,
    seed: int = 7,
    cluster: ClusterOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[ProgressEvent], None] | None = None,
    stop: threading.Event | None = None,
) -> DemoReport:
    """Make the slides in `folder` (default: a new ./tiledblend-demo), blend them, and draw what came out.

    size: side of the slides in pixels. say: called with a line before each step. Raises RefusedError when `folder`
    already holds something.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UsageError(f"demo size {size} must be from {MIN_SIZE} to {MAX_SIZE} pixels")
    folder = _new_folder(folder).absolute()
    say(f"making two slides of {size:,} x {size:,} px and a mask in {folder}")
    started = time.perf_counter()
    slides = make_slides(folder, size, seed)
    making_seconds = time.perf_counter() - started
    top = {"image": str(slides.overlay), "mask": str(slides.mask), "feather": f"{FEATHER_PX}px"}
    job = build({"layers": [{"image": str(slides.base)}, top]})
    say(f"blending {slides.overlay.name} over {slides.base.name} by {slides.mask.name}, {FEATHER_PX} px feather")
    result = folder / "blended.ome.zarr"
    run = write(job.composite, str(result), cluster=cluster, progress=progress, stop=stop, job=job.mapping)
    picture = folder / "preview.png"
    say("drawing the preview")
    captions = ("base (H&E)", slides.base), ("overlay (IHC)", slides.overlay), ("mask", slides.mask), ("result", result)
    panel(captions, picture)
    return DemoReport(folder, making_seconds, run, picture)


def _new_folder(folder: Path | None) -> Path:
    if folder is None:
        return _free_folder(Path("tiledblend-demo"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefusedError(f"{folder}: is not empty; the demo writes into a new folder: name another --out")
    with mapped_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free_folder(wanted: Path) -> Path:
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not os.path.lexists(folder):
            with mapped_errors("make", folder.absolute()), suppress(FileExistsError):
                folder.mkdir()
                return folder
        number += 1
