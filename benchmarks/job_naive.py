"""The blend as a first dask script would do it: map_overlap with scipy, zarr-python; no pyramid."""

import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import tifffile
import zarr
from scipy.ndimage import gaussian_filter

SIGMA, CHUNK = 16, 2048


def opened(path: Path) -> da.Array:
    return da.from_zarr(zarr.open_array(tifffile.imread(path, aszarr=True), mode="r"), chunks=None)


folder, out = Path(sys.argv[1]), sys.argv[2]
base, overlay = (opened(folder / f"{name}.tif").rechunk((CHUNK, CHUNK, 3)) for name in ("base", "overlay"))
mask = opened(folder / "mask.tif").rechunk((CHUNK, CHUNK)).astype(np.float32) / 255
weight = mask.map_overlap(gaussian_filter, depth=4 * SIGMA, boundary="none", sigma=SIGMA)[:, :, None]
blended = (weight * overlay + (1 - weight) * base).round().clip(0, 255).astype(np.uint8)
array = zarr.create_array(
    out, shape=blended.shape, chunks=(CHUNK, CHUNK, 3), dtype="uint8", compressors=[zarr.codecs.ZstdCodec(level=1)]
)
with dask.config.set(scheduler="threads"):
    da.store(blended, array, lock=False)
