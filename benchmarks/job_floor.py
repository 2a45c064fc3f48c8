"""The floor: decode one slide once, halve, encode in our own layout and codec, write. No mask, no blend, no dask."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tiledblend.bytes.objects import DirectoryStore
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.omezarr.writer import TileWriter
from tiledblend.guard.process import prepare_process
from tiledblend.kernels.halve import halve_tile
from tiledblend.sources import open_source

prepare_process()
folder, out, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
source, output = open_source(str(folder / "base.tif")), OutputSpec()
grid = output.grid(source.shape)
layout = ArrayLayout(grid, source.channels, str(np.dtype(source.dtype)), True, output)
store = DirectoryStore(Path(out))


def one(tile):
    writer, region, step = TileWriter(layout, store, tile), grid.tile_region(tile), grid.chunk
    halves = {}
    rows = {}

    def push(level, pixels, last):
        row = rows[level] = rows.get(level, -1) + 1
        writer.add_chunk_row(level, row, pixels)
        if level + 1 not in grid.stage_levels(0):
            return
        pending = halves.setdefault(level + 1, [])
        pending.append(halve_tile(pixels))
        if last or sum(map(len, pending)) >= step:
            whole = np.concatenate(pending)
            pending.clear()
            push(level + 1, whole, last)

    for y in range(region.y0, region.y1, step):
        part = type(region)(y, region.x0, min(y + step, region.y1), region.x1)
        push(0, source.read(part), y + step >= region.y1)
    writer.finish()


with ThreadPoolExecutor(threads) as pool:
    list(pool.map(one, grid.tiles(0)))
