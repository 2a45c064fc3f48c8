#!/usr/bin/env python3
"""Composite two whole-slide images by a mask, from Python: plan, write, preview.

python composite_wsi.py BASE OVERLAY MASK OUT.ome.zarr [--feather 8um] [--scheduler tcp://host:8786]
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

import tiledblend as tb


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("overlay")
    parser.add_argument("mask")
    parser.add_argument("out")
    parser.add_argument("--feather", default="16px")
    parser.add_argument("--scheduler", help="address of a running dask scheduler; default: threads of this process")
    return parser.parse_args()


def show(event: tb.ProgressEvent) -> None:
    print(f"{event.done_tiles} of {event.tiles} tiles, {event.seconds:.1f} s", file=sys.stderr)


def composite_slides(arguments: argparse.Namespace, stop: threading.Event) -> tb.RunReport:
    """Blend OVERLAY into BASE where MASK is set; returns the run's report."""
    overlay = tb.Layer(
        tb.open(arguments.overlay),
        mask=tb.open(arguments.mask, mask=True),
        feather=tb.Feather.parse(arguments.feather),
    )
    composite = tb.Composite([tb.Layer(tb.open(arguments.base)), overlay])
    planned = tb.plan(composite)
    print(f"{planned.pixels / 1e6:.1f} Mpx in {planned.tiles} tiles, classes {planned.classes}", file=sys.stderr)
    cluster = tb.ClusterOptions(scheduler=arguments.scheduler)
    return tb.write(composite, arguments.out, cluster=cluster, progress=show, planned=planned, stop=stop)


def main() -> int:
    """Exit codes are those of `tiledblend blend`; Ctrl-C and SIGTERM let tiles under way be stored first."""
    arguments, stop = parse_arguments(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        report = composite_slides(arguments, stop)
        print(tb.preview(report.uri, report.uri.rstrip("/") + ".png")["path"])
    except tb.TiledblendError as error:
        print(f"composite_wsi: {error}", file=sys.stderr)
        return error.exit_code
    return 0


# dask's worker processes import this file: the guard keeps them from running it again.
if __name__ == "__main__":
    sys.exit(main())
