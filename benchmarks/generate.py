"""Two JPEG slides and a disc mask of any size: `python benchmarks/generate.py FOLDER --size 16384`.

The slides repeat one patch, drawn or taken from a slide of yours (`--slide`), mirrored in turn, as tiles that are
encoded once: any size is written at the speed of the disk and within 200 MB. The mask has twelve discs that cover 26 %
of it (`--covered` for another share).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.geometry import Region
from tiledblend.sources import open_source
from tiledblend.tissue import Tissue

TILE = 256
PATCH = 2048
DISCS_ACROSS, DISCS_DOWN = 4, 3
COVERED = 0.26


def encoded_tiles(patch: NDArray[np.uint8]) -> dict[tuple[int, int, bool, bool], bytes]:
    """JPEG Q85 of each tile of a patch (y, x, 3), by row, column and the mirroring of either axis."""
    tiles = {}
    for flip_y in (False, True):
        for flip_x in (False, True):
            turned = patch[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
            for row in range(PATCH // TILE):
                for column in range(PATCH // TILE):
                    tile = turned[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                    tiles[row, column, flip_y, flip_x] = imagecodecs.jpeg8_encode(
                        np.ascontiguousarray(tile), level=85, colorspace="RGB", outcolorspace="YCbCr", subsampling="420"
                    )
    return tiles


def write_slide(path: Path, patch: NDArray[np.uint8], size: int) -> None:
    """A tiled RGB JPEG TIFF of size x size pixels."""
    tiles, side = encoded_tiles(patch), PATCH // TILE

    def stream() -> Iterator[bytes]:
        for row in range(size // TILE):
            for column in range(size // TILE):
                flips = (row // side) % 2 == 1, (column // side) % 2 == 1
                yield tiles[(row % side, column % side, *flips)]

    options: dict[str, Any] = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2), "metadata": None}
    tifffile.imwrite(
        path, stream(), shape=(size, size, 3), dtype="uint8", tile=(TILE, TILE), bigtiff=size > 32768, **options
    )


def write_mask(path: Path, size: int, covered: float) -> None:
    """A zlib TIFF of uint8 0 and 255, tiled, drawn row of tiles by row of tiles."""
    radius = size * (covered / (DISCS_ACROSS * DISCS_DOWN * np.pi)) ** 0.5
    centres_x = (np.arange(DISCS_ACROSS) + 0.5) * size / DISCS_ACROSS
    centres_y = (np.arange(DISCS_DOWN) + 0.5) * size / DISCS_DOWN
    x = np.arange(size, dtype=np.float32)
    nearest_x = np.abs(x[:, None] - centres_x).min(axis=1).astype(np.float32)

    def stream() -> Iterator[NDArray[np.uint8]]:
        for y0 in range(0, size, TILE):
            y = np.arange(y0, y0 + TILE, dtype=np.float32)
            nearest_y = np.abs(y[:, None] - centres_y).min(axis=1).astype(np.float32)
            inside = nearest_y[:, None] ** 2 + nearest_x[None] ** 2 <= radius**2
            band = inside.astype(np.uint8) * np.uint8(255)
            for x0 in range(0, size, TILE):
                yield np.ascontiguousarray(band[:, x0 : x0 + TILE])

    tifffile.imwrite(
        path, stream(), shape=(size, size), dtype="uint8", tile=(TILE, TILE), compression="zlib", metadata=None
    )


def patches(slide: Path | None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The (base, overlay) patch, (y, x, 3): drawn, or the middle of a slide and the same with its stain recoloured."""
    if slide is None:
        middle = Region(3072, 3072, 3072 + PATCH, 3072 + PATCH)
        base, overlay = Tissue(8192, 7).render(middle)
        return base, overlay
    source = open_source(str(slide))
    y, x = ((side - PATCH) // 2 for side in source.shape)
    if min(y, x) < 0:
        raise SystemExit(f"{slide} is {source.shape[0]} x {source.shape[1]} pixels; {PATCH} x {PATCH} are needed")
    patch = np.ascontiguousarray(source.read(Region(y, x, y + PATCH, x + PATCH))[:, :, :3])
    return patch, np.ascontiguousarray(patch[::-1, ::-1, ::-1])


def generate(folder: Path, size: int, covered: float, slide: Path | None) -> None:
    """Write base.tif, overlay.tif and mask.tif of size x size pixels (a multiple of 256) into a folder."""
    if size % TILE:
        raise SystemExit(f"--size {size} must be a multiple of {TILE}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, patch in zip(("base", "overlay"), patches(slide), strict=True):
        write_slide(folder / f"{name}.tif", patch, size)
    write_mask(folder / "mask.tif", size, covered)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--covered", type=float, default=COVERED, help="share of the canvas inside the mask")
    parser.add_argument("--slide", type=Path, help="take the patch from this slide instead of drawing it")
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.size, arguments.covered, arguments.slide)
