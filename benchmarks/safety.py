"""What it costs that nothing is lost: `python benchmarks/safety.py FOLDER --pairs 5`, on slides of generate.py.

Runs the same blend with everything on and with syncing, SHA-256, the receipts' appends and the second look at inputs
replaced by nothing (in the measured process only), in turn; prints medians and the median of the pairs' ratios. The
checksums inside the chunks stay on: they are the format's.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


class NoDigest:
    """In the place of SHA-256."""

    def update(self, data: object) -> None:
        """Nothing."""

    def hexdigest(self) -> str:
        return "0" * 64


def switch_off() -> None:
    """Take the safety out of this process."""
    import tiledblend.bytes.objects as objects
    import tiledblend.containers.ledger as ledger
    import tiledblend.containers.omezarr.writer as writer
    import tiledblend.containers.receipt_log as receipt_log
    from tiledblend.sources.base import RasterSource

    def nothing(*_: object) -> None:
        return None

    os.fsync = nothing
    objects.sync_folder = receipt_log.sync_folder = ledger.sync_folder = nothing
    writer.hasher = NoDigest
    receipt_log.FileLog.append = nothing
    for kind in (RasterSource, *RasterSource.__subclasses__()):
        kind.require_unchanged = nothing


def child(folder: Path, out: Path, off: bool) -> None:
    """One run: prints wall and CPU seconds of the blend."""
    from tiledblend.cli.main import run_command

    if off:
        from tiledblend.sources import views, zarr  # noqa: F401

        switch_off()
    images = [str(folder / f"{name}.tif") for name in ("base", "overlay")]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    code = run_command(["blend", *images, "--mask", str(folder / "mask.tif"), "--feather", "16px", "-o", str(out)])
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    assert code == 0
    print("measured", wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(folder: Path, out: Path, off: bool) -> tuple[float, float]:
    """(wall, CPU) seconds of one process; the disk is settled before, and the result removed."""
    os.sync()
    command = [sys.executable, __file__, str(folder), "--child", str(out), *(["--off"] if off else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path in (out, out.with_name(out.name + ".manifest"), out.with_name(out.name + ".ledger")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    wall, cpu = map(float, done.stdout.splitlines()[-1].split()[1:])
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--off", action="store_true")
    given = parser.parse_args()
    if given.child:
        child(given.folder, given.child, given.off)
        return
    out = given.folder / "safety.ome.zarr"
    measure(given.folder, out, off=True)  # warms the page cache
    pairs = []
    for number in range(given.pairs):
        order = (False, True) if number % 2 else (True, False)
        found = {off: measure(given.folder, out, off) for off in order}
        pairs.append((found[False], found[True]))
        print(f"pair {number + 1}: on {found[False][0]:.2f} s, off {found[True][0]:.2f} s", flush=True)
    for index, name in enumerate(("wall", "CPU")):
        on, off = (statistics.median(pair[side][index] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[0][index] / pair[1][index] for pair in pairs)
        print(f"{name}: on {on:.2f} s, off {off:.2f} s, on / off {ratio:.3f} (median of {given.pairs} pairs)")


if __name__ == "__main__":
    main()
