"""Where our own run spends its time, on one thread: `python benchmarks/profile_run.py FOLDER [SIGMA]`.

Renders every tile in this thread with the steps timed by wrappers; what is in no step is "rest".
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiledblend as tb
from tiledblend.bytes import objects
from tiledblend.compose import pyramid, reader, scene
from tiledblend.compose.modes import mode
from tiledblend.containers.omezarr import layout
from tiledblend.kernels import feather

SECONDS: dict[str, float] = {}
_OPEN: list[float] = []


def timed(step: str, owner: Any, name: str) -> None:
    """Replace owner.name by the same function with its own time (without inner steps) added to a step."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _OPEN.append(0.0)
        started = time.thread_time()
        try:
            return original(*args, **kwargs)
        finally:
            spent = time.thread_time() - started
            SECONDS[step] = SECONDS.get(step, 0.0) + spent - _OPEN.pop()
            if _OPEN:
                _OPEN[-1] += spent

    setattr(owner, name, wrapper)


def main() -> None:
    """Print seconds of CPU per step."""
    folder, sigma = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 16.0
    timed("mask read", reader.LayerReader, "mask_units")
    timed("feather, cells", feather, "_filtered_cells")
    timed("feather, weight", feather.FeatheredMask, "weight")
    timed("classify", scene.Scene, "classify")
    timed("image read", reader.LayerReader, "read")
    timed("blend", mode, "blend_tile")
    timed("halve", pyramid, "halve_tile")
    timed("encode", layout.TileWriter, "add_chunk_row")
    timed("checksum", layout._Shard, "_append")
    timed("write", objects.FileDraft, "append")
    timed("write", objects.DirectoryStore, "put_drafts")
    base, overlay, mask = (tb.open(str(folder / f"{name}.tif")) for name in ("base", "overlay", "mask"))
    composite = tb.Composite([tb.Layer(base), tb.Layer(overlay, mask=mask, feather=tb.Feather.px(sigma))])
    out = folder / "profiled.zarr"
    for left in (out, out.with_name(f"{out.name}.ledger")):
        shutil.rmtree(left, ignore_errors=True)
    started = time.process_time()
    tb.write(composite, str(out), part=(1, 1))
    total = time.process_time() - started
    for left in (out, out.with_name(f"{out.name}.ledger")):
        shutil.rmtree(left, ignore_errors=True)
    SECONDS["rest"] = total - sum(SECONDS.values())
    for step, seconds in sorted(SECONDS.items(), key=lambda item: -item[1]):
        print(f"{step:16} {seconds:7.2f} s {100 * seconds / total:5.1f} %")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{'total':16} {total:7.2f} s; kernel {usage.ru_stime:.2f} s, {usage.ru_minflt} page faults")


if __name__ == "__main__":
    main()
