"""Two JPEG slides and a disc mask of any size: `python benchmarks/generate.py FOLDER --size 16384`.

The slides repeat one patch, drawn or taken from a slide of yours (`--slide`), mirrored in turn, as tiles that are
encoded once: any size is written at the speed of the disk and within 200 MB. The mask has twelve discs that cover 26 %
of it (`--covered` for another share). `--all` adds masks for other shares (mask-0.tif, mask-1.tif, mask-100.tif, where
every chunk is mixed) and a pair of seven-channel 16-bit images of half the side (seven-base.tif, seven-overlay.tif).
`--pyramid` gives the slides smaller levels, `--colours` and `--shared-tables` say how their JPEG tiles are stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.demo.tissue import Tissue
from tiledblend.geometry import Region
from tiledblend.kernels.halve import halve_tile
from tiledblend.sources import open_source
from tiledblend.sources.tiff.streams import EOI, SOI, marker_segments, read_header, without_tables

TILE = 256
PATCH = 2048
DISCS_ACROSS, DISCS_DOWN = 4, 3
COVERED = 0.26


@dataclass(frozen=True)
class Coding:
    """How a slide's JPEG tiles are stored. colours: "420", "422" or "rgb". shared: they rely on one set of tables."""

    colours: str = "420"
    shared: bool = False

    def encoded(self, tile: NDArray[np.uint8]) -> bytes:
        """A complete stream of quality 85."""
        colours = {"outcolorspace": "RGB"} if self.colours == "rgb" else {"outcolorspace": "YCbCr"}
        sampling = "444" if self.colours == "rgb" else self.colours
        return imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", subsampling=sampling, **colours)

    def tables(self, stream: bytes) -> bytes:
        """The tables of a stream, as TIFF's JPEGTables has them."""
        kept = [stream[at:end] for marker, at, end in marker_segments(stream) if marker in (0xDB, 0xC4)]
        return b"".join([SOI, *kept, EOI])


def encoded_tiles(period: NDArray[np.uint8], coding: Coding) -> list[list[bytes]]:
    """The tiles of a picture that repeats itself, row by row."""
    side = len(period) // TILE
    cut = [
        [np.ascontiguousarray(period[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE]) for c in range(side)]
        for r in range(side)
    ]
    rows = [[coding.encoded(tile) for tile in row] for row in cut]
    if coding.shared:
        identifiers = tuple(part.identifier for part in read_header(rows[0][0]).components)
        return [[without_tables(tile, identifiers, drop_tables=True) for tile in row] for row in rows]
    return rows


def periods(patch: NDArray[np.uint8], levels: int) -> Iterator[NDArray[np.uint8]]:
    """A patch and its mirror images, and each half of that; at least a tile."""
    period = np.concatenate([patch, patch[::-1]])
    period = np.concatenate([period, period[:, ::-1]], axis=1)
    for _ in range(levels):
        times = max(1, TILE // len(period))
        yield np.tile(period, (times, times, 1))
        period = halve_tile(period)


def write_slide(path: Path, patch: NDArray[np.uint8], size: int, coding: Coding, *, pyramid: bool) -> None:
    """A tiled JPEG TIFF of size x size pixels; its levels, each half of the one before, in SubIFDs."""
    levels = 1 + (max(0, (size - 1).bit_length() - 9) if pyramid else 0)
    options: dict[str, Any] = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    if coding.colours != "rgb":
        options |= {"photometric": "ycbcr", "subsampling": (2, 2) if coding.colours == "420" else (2, 1)}
    with tifffile.TiffWriter(path, bigtiff=size > 32768) as tiff:
        for level, period in enumerate(periods(patch, levels)):
            tiles, side = encoded_tiles(period, coding), -(-size // (1 << level))
            count = -(-side // TILE)
            stream = (tiles[r % len(tiles)][c % len(tiles)] for r in range(count) for c in range(count))
            if coding.shared:
                data = coding.tables(coding.encoded(period[:TILE, :TILE]))
                options["extratags"] = [(347, 7, len(data), data, True)]
            place: dict[str, Any] = {"subfiletype": 1} if level else {"subifds": levels - 1}
            tiff.write(stream, shape=(side, side, 3), dtype="uint8", tile=(TILE, TILE), **options, **place)


Inside = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.bool_]]


def discs(size: int, covered: float) -> Inside:
    """Twelve discs that cover a share of the canvas."""
    radius = size * (covered / (DISCS_ACROSS * DISCS_DOWN * np.pi)) ** 0.5
    centres_x = (np.arange(DISCS_ACROSS) + 0.5) * size / DISCS_ACROSS
    centres_y = (np.arange(DISCS_DOWN) + 0.5) * size / DISCS_DOWN

    def inside(y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.bool_]:
        nearest_x = np.abs(x[:, None] - centres_x).min(axis=1).astype(np.float32)
        nearest_y = np.abs(y[:, None] - centres_y).min(axis=1).astype(np.float32)
        return nearest_y[:, None] ** 2 + nearest_x[None] ** 2 <= radius**2

    return inside


def checkers(y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Squares of 128 px: an edge in every block of every chunk."""
    return (y[:, None] // 128 + x[None] // 128) % 2 == 0


def write_mask(path: Path, size: int, inside: Inside) -> None:
    """A zlib TIFF of uint8 0 and 255, tiled, drawn row of tiles by row of tiles."""
    x = np.arange(size, dtype=np.float32)

    def stream() -> Iterator[NDArray[np.uint8]]:
        for y0 in range(0, size, TILE):
            band = inside(np.arange(y0, y0 + TILE, dtype=np.float32), x).astype(np.uint8) * np.uint8(255)
            for x0 in range(0, size, TILE):
                yield np.ascontiguousarray(band[:, x0 : x0 + TILE])

    tifffile.imwrite(
        path, stream(), shape=(size, size), dtype="uint8", tile=(TILE, TILE), compression="zlib", metadata=None
    )


def write_seven(path: Path, size: int, seed: int) -> None:
    """Seven channels of 16 bits as an OME-TIFF: smooth fields with a detector's noise, one patch repeated."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:TILE, :TILE] * (2 * np.pi / TILE)
    tiles = [
        (3000 + 2000 * np.sin(y + c) * np.cos(x - c) + rng.normal(0, 40, (TILE, TILE))).astype(np.uint16)
        for c in range(7)
    ]

    def stream() -> Iterator[NDArray[np.uint16]]:
        for tile in tiles:
            for _ in range((size // TILE) ** 2):
                yield tile

    shape: dict[str, Any] = {"shape": (7, size, size), "metadata": {"axes": "CYX"}}
    tifffile.imwrite(path, stream(), dtype="uint16", tile=(TILE, TILE), compression="zlib", ome=True, **shape)


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


def generate(
    folder: Path, size: int, covered: float, slide: Path | None, coding: Coding = Coding(), *, pyramid: bool = False
) -> None:
    """Write base.tif, overlay.tif and mask.tif of size x size pixels (a multiple of 256) into a folder."""
    if size % TILE:
        raise SystemExit(f"--size {size} must be a multiple of {TILE}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, patch in zip(("base", "overlay"), patches(slide), strict=True):
        write_slide(folder / f"{name}.tif", patch, size, coding, pyramid=pyramid)
    write_mask(folder / "mask.tif", size, discs(size, covered))


def generate_further(folder: Path, size: int) -> None:
    """Masks of other shares, and a seven-channel 16-bit pair of half the side."""
    for name, inside in (("0", discs(size, 0)), ("1", discs(size, 0.01)), ("100", checkers)):
        write_mask(folder / f"mask-{name}.tif", size, inside)
    write_mask(folder / "seven-mask.tif", size // 2, discs(size // 2, COVERED))
    for seed, name in enumerate(("base", "overlay")):
        write_seven(folder / f"seven-{name}.tif", size // 2, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--covered", type=float, default=COVERED, help="share of the canvas inside the mask")
    parser.add_argument("--slide", type=Path, help="take the patch from this slide instead of drawing it")
    parser.add_argument("--all", action="store_true", help="further masks and a seven-channel pair, too")
    parser.add_argument("--pyramid", action="store_true", help="slides with smaller levels")
    parser.add_argument("--colours", choices=["420", "422", "rgb"], default="420", help="of the slides' JPEG tiles")
    parser.add_argument("--shared-tables", action="store_true", help="JPEG tables once a level, not in each tile")
    arguments = parser.parse_args()
    stored = Coding(arguments.colours, arguments.shared_tables)
    generate(arguments.folder, arguments.size, arguments.covered, arguments.slide, stored, pyramid=arguments.pyramid)
    if arguments.all:
        generate_further(arguments.folder, arguments.size)
