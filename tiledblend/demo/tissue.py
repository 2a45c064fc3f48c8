"""Procedural stained tissue: two stains of one section, as pyramidal TIFF slides, for the demo and for tests.

Every pixel is a function of its position and the seed. Architecture (outline, glands, fat, follicles) is evaluated
on a grid of 4 px and enlarged; cells and fibres come from one periodic texture that is read through a smooth warp;
colours follow Beer-Lambert: two dyes' concentrations times their optical densities (Ruifrok & Johnston, 2001).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from tiledblend.geometry import Region, ceil_div, halved

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

PIXEL_SIZE_UM = 0.5
MASK_REDUCTION = 16
JPEG_QUALITY = 87
TILE = 256

# optical density per unit of dye in red, green, blue
HEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.10, 0.82, 0.34)  # paler in green than the published vector: it keeps the pink that eyes expect
DAB = (0.27, 0.57, 0.78)

_STEP = 4  # architecture is evaluated every 4 px
_TEXTURE = 2048  # period of the texture of cells and fibres
_PATCH = 512  # pixels rendered at once: its float32 fields stay in the processor's cache
_BLOCK = 2048  # one thread's work; eight TIFF tiles wide, so that three reduced levels need no neighbour
_BLOCK_LEVELS = 4


def _smoothstep(low: float | Floats, high: float | Floats, x: Floats) -> Floats:
    """0 below `low`, 1 above `high`, smooth between; `high` may be the smaller."""
    t: Floats = np.clip((x - low) / (high - low), 0, 1).astype(np.float32, copy=False)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _periodic_noise(random: np.random.Generator, size: int, sigma: float, stretch: float = 1) -> Floats:
    """Gaussian noise (size, size), wrapping at its edges, mean 0, standard deviation 1."""
    white = random.standard_normal((size, size), np.float32)
    margin = int(4 * sigma * stretch) + 1
    noise = cv2.GaussianBlur(np.pad(white, margin, "wrap"), (0, 0), sigmaX=sigma * stretch, sigmaY=sigma)
    noise = noise[margin:-margin, margin:-margin]
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _nuclei(random: np.random.Generator, spacing: int, radii: tuple[float, float], spread: float) -> Pixels:
    """Periodic texture of elliptic nuclei, one per jittered cell of `spacing` px. radii: mean half-axes in px.
    spread: how far their directions scatter around the x axis, in degrees."""
    count = _TEXTURE // spacing
    pitch = _TEXTURE / count
    margin = 64  # wider than any nucleus; folded back below, so that the texture wraps
    image = np.zeros((_TEXTURE + 2 * margin, _TEXTURE + 2 * margin), np.uint8)
    shift = 4  # fractional bits of OpenCV's coordinates
    for row in range(count):
        for column in range(count):
            y, x = (np.array([row, column]) + 0.5 + random.uniform(-0.36, 0.36, 2)) * pitch + margin
            axes = [max(1.5, radius * random.normal(1, 0.16)) for radius in radii]
            angle, level = random.normal(0, spread), int(np.clip(random.normal(185, 38), 80, 255))
            centre = (int(x * (1 << shift)), int(y * (1 << shift)))
            size = (int(axes[0] * (1 << shift)), int(axes[1] * (1 << shift)))
            cv2.ellipse(image, centre, size, angle, 0, 360, level, -1, cv2.LINE_AA, shift)
    for _ in range(2):
        np.maximum(image[margin : 2 * margin], image[-margin:], out=image[margin : 2 * margin])
        np.maximum(image[-2 * margin : -margin], image[:margin], out=image[-2 * margin : -margin])
        image = np.ascontiguousarray(image.T)
    wrapped = image[margin:-margin, margin:-margin]
    soft = cv2.GaussianBlur(np.pad(wrapped, 4, "wrap"), (0, 0), 0.9)[4:-4, 4:-4]
    chromatin = 1 + 0.17 * _periodic_noise(random, _TEXTURE, 1.3)
    return np.clip(soft * chromatin, 0, 255).astype(np.uint8)


def _fibres(random: np.random.Generator) -> Pixels:
    """Periodic texture of wavy strands along x, 0 to 255."""
    strands = 0.65 * _periodic_noise(random, _TEXTURE, 2.2, stretch=14) + 0.5 * _periodic_noise(
        random, _TEXTURE, 6, stretch=9
    )
    cracks = _smoothstep(1.25, 2.0, -strands)
    return np.clip(118 + 62 * strands - 190 * cracks, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Cells:
    """Nearest jittered cell of every position: rho, distance in units of the cell's own radius; gap, distance to
    the second nearest minus the nearest in px; chance, a uniform random number of the nearest cell."""

    rho: Floats
    gap: Floats
    chance: Floats


def _cell_traits(random: np.random.Generator) -> Floats:
    """Traits of 64 x 64 cells, (7, 4096): centre y, x in cells; direction's cosine and sine; aspect; size; chance."""
    y, x, angle, aspect, size, chance = random.random((6, 64 * 64), np.float32)
    angle *= np.float32(np.pi)
    centre_y, centre_x = 0.15 + 0.7 * y, 0.15 + 0.7 * x
    return np.stack([centre_y, centre_x, np.cos(angle), np.sin(angle), 1 + 0.75 * aspect, size, chance])


_NO_CELLS = _Cells(*(np.full((1, 1), value, np.float32) for value in (9, 99, 0)))


class Tissue:
    """One section of tissue on a square canvas of `size` pixels, 0.5 µm each, the same for the same `seed`."""

    def __init__(self, size: int, seed: int = 7) -> None:
        self.size = size
        random = np.random.default_rng(seed)
        self._noise = [_periodic_noise(random, 512, sigma) for sigma in (10, 10, 10, 10, 10, 10)]
        self._cells = _cell_traits(random)
        self._texture = np.dstack(
            [
                _nuclei(random, 17, (6.6, 5.0), 60),  # epithelium: round, close
                _nuclei(random, 44, (12.0, 2.6), 12),  # stroma: spindles along the fibres
                _fibres(random),
                np.clip(128 + 40 * _periodic_noise(random, _TEXTURE, 0.7), 0, 255).astype(np.uint8),
            ]
        )

    def _field(self, which: int, y: Floats, x: Floats, wavelength: float, octaves: int = 2) -> Floats:
        """Smooth noise, about N(0, 1), at positions y (h, 1) and x (1, w) in px; features of about `wavelength`."""
        total = np.zeros((y.shape[0], x.shape[1]), np.float32)
        for octave in range(octaves):
            scale = 40 * 2**octave / wavelength  # the noise's own features are about 40 samples apart
            at_y = np.repeat((y * scale + 131 * octave) % 512, x.shape[1], axis=1)
            at_x = np.repeat((x * scale + 71 * octave) % 512, y.shape[0], axis=0)
            noise = self._noise[(which + octave) % len(self._noise)]
            total += cv2.remap(noise, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP) * 0.5**octave
        return total

    def _nearest(self, y: Floats, x: Floats, pitch: float, table: int, radius: tuple[float, float]) -> _Cells:
        """Cellular noise (Worley 1996) of jittered ellipses at positions y, x (h, w)."""
        first = np.full(y.shape, np.inf, np.float32)
        second = first.copy()
        rho, chance = first.copy(), np.zeros_like(first)
        row, column = np.floor(y / pitch).astype(np.int32), np.floor(x / pitch).astype(np.int32)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                at = ((row + dy + 17 * table) & 63) * 64 + ((column + dx + 29 * table) & 63)
                centre_y, centre_x, along_x, along_y, aspect, size, own_chance = self._cells[:, at]
                to_y = y - (row + (dy + centre_y)) * pitch
                to_x = x - (column + (dx + centre_x)) * pitch
                along = to_x * along_x + to_y * along_y
                across = (to_y * along_x - to_x * along_y) * aspect
                distance = np.sqrt(along * along + across * across)
                nearer = distance < first
                second = np.where(nearer, first, np.minimum(second, distance))
                first = np.where(nearer, distance, first)
                own = (radius[0] + (radius[1] - radius[0]) * size) * np.sqrt(aspect)
                rho = np.where(nearer, distance / own, rho)
                chance = np.where(nearer, own_chance, chance)
        return _Cells(rho, second - first, chance)

    def _tissue_depth(self, y: Floats, x: Floats) -> Floats:
        """Signed depth inside the section, in units of the canvas: negative on bare glass."""
        v, u = y / self.size - 0.5, x / self.size - 0.5
        outline = 0.412 - np.sqrt((u * 1.02) ** 2 + (v * 1.12) ** 2)
        return outline + 0.042 * self._field(0, y, x, self.size * 0.42, octaves=4)

    def _architecture(self, y: Floats, x: Floats) -> Floats:
        """What lies where, for positions y (h, 1), x (1, w) in px: float32 (h, w, 8).

        Channels: base hematoxylin, base eosin, weight of epithelial nuclei, of stromal nuclei, of fibres,
        DAB (the marker of the second stain), and the texture's warp in y and x, in px.
        """
        warp_y = 34 * self._field(1, y, x, 900) + 9 * self._field(4, y, x, 210)
        warp_x = 34 * self._field(2, y, x, 900) + 9 * self._field(5, y, x, 210)
        wy, wx = y + warp_y, x + warp_x
        depth = self._tissue_depth(y, x)
        inside = _smoothstep(-0.0005, 0.0012, depth)
        if not inside.any():
            return np.zeros((*inside.shape, 8), np.float32)
        zone = self._field(3, y, x, 2600, octaves=3)
        fat = _smoothstep(1.0, 1.2, self._field(2, y, x, 2300)) * _smoothstep(0.012, 0.03, depth)
        follicle = _smoothstep(1.45, 1.75, self._field(4, y, x, 1200, octaves=3)) * (1 - fat)
        muscle = _smoothstep(-0.85, -1.1, zone) * (1 - fat) * (1 - follicle)

        glands = self._nearest(wy, wx, 215, 0, (76, 108))
        has_gland = _smoothstep(0.10, 0.16, glands.chance) * (1 - fat) * (1 - follicle) * (1 - muscle)
        body = _smoothstep(1.0, 0.95, glands.rho) * has_gland
        open_lumen = 0.20 + 0.26 * glands.chance
        lumen = _smoothstep(open_lumen + 0.05, open_lumen, glands.rho + 0.04 * self._field(5, y, x, 60)) * has_gland
        wall = body * (1 - lumen)
        basal = _smoothstep(0.62, 0.80, glands.rho) * wall
        goblets = self._nearest(wy, wx, 27, 1, (7, 12)) if wall.any() else _NO_CELLS
        goblet = _smoothstep(1.1, 0.8, goblets.rho) * _smoothstep(0.45, 0.55, goblets.chance) * (wall - basal)
        adipocytes = self._nearest(wy, wx, 128, 2, (40, 60)) if fat.any() else _NO_CELLS
        membrane = _smoothstep(9, 3, adipocytes.gap)
        stroma = (1 - body) * (1 - fat) * (1 - follicle)
        cleft = _smoothstep(1.55, 1.75, self._field(0, y, x, 330)) * stroma * (1 - muscle)
        marker = _smoothstep(-0.25, 0.55, self._field(1, y, x, 2300)) * (0.35 + 0.65 * glands.chance)

        solid = inside * (1 - cleft) * (1 - 0.96 * fat * (1 - membrane))
        hematoxylin = 0.03 + 0.22 * wall + 0.18 * basal - 0.14 * goblet + 0.30 * follicle + 0.02 * muscle
        eosin = 0.05 + 0.20 * stroma + 0.20 * wall - 0.26 * goblet + 0.10 * muscle + 0.10 * follicle + 0.28 * fat
        epithelial = 0.22 * wall * (1 - goblet) + 0.95 * basal + 1.05 * follicle
        spindles = (0.95 - 0.25 * muscle) * stroma
        fibre = (0.36 + 0.16 * muscle) * stroma
        dab = marker * (0.95 * wall - 0.70 * goblet - 0.25 * basal) + 0.10 * follicle * marker
        keep = solid * (1 - 0.94 * lumen)
        fields = [hematoxylin, eosin, epithelial, spindles, fibre, dab]
        return np.dstack([*(np.clip(field, 0, None) * keep for field in fields), warp_y, warp_x]).astype(np.float32)

    def _enlarged_architecture(self, region: Region) -> tuple[Floats, Floats]:
        """Architecture at every pixel of `region`: its channels 0..3 and 4..7, each (h, w, 4)."""
        y0, x0 = region.y0 // _STEP - 1, region.x0 // _STEP - 1
        y = np.arange(y0, ceil_div(region.y1, _STEP) + 2, dtype=np.float32)[:, None] * _STEP
        x = np.arange(x0, ceil_div(region.x1, _STEP) + 2, dtype=np.float32)[None, :] * _STEP
        coarse = self._architecture(y, x)
        scale = 1 / _STEP
        to_coarse = np.array([[scale, 0, region.x0 * scale - x0], [0, scale, region.y0 * scale - y0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        height, width = region.shape
        first, second = (
            cv2.warpAffine(np.ascontiguousarray(part), to_coarse, (width, height), flags=flags)
            for part in (coarse[..., :4], coarse[..., 4:])
        )
        return np.asarray(first, np.float32), np.asarray(second, np.float32)

    def render(self, region: Region) -> tuple[Pixels, Pixels]:
        """The two stains of `region`: hematoxylin-eosin, and hematoxylin with DAB; uint8 (h, w, 3) each."""
        low, high = self._enlarged_architecture(region)
        height, width = region.shape
        at_y = high[..., 2] + (np.arange(height, dtype=np.float32) + region.y0 % _TEXTURE)[:, None]
        at_x = high[..., 3] + (np.arange(width, dtype=np.float32) + region.x0 % _TEXTURE)[None, :]
        texture = cv2.remap(self._texture, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        epithelial, spindle, fibre, grain = (np.multiply(c, np.float32(1 / 255)) for c in cv2.split(texture))
        nuclei = low[..., 2] * epithelial + low[..., 3] * spindle
        grey: Floats = np.float32(0.775) + np.float32(0.45) * grain
        strands: Floats = high[..., 0] * fibre
        hematoxylin = (low[..., 0] + nuclei) * grey
        eosin = (low[..., 1] + strands * 1.15) * grey * (1 - 0.35 * np.minimum(nuclei, 1))
        he = _stained(hematoxylin * 0.92, eosin * 0.68, HEMATOXYLIN, EOSIN, grain)
        counterstain = hematoxylin * 0.62 + eosin * 0.17
        dab: Floats = high[..., 1] * grey * (1.10 + 0.25 * epithelial) + strands * 0.07
        return he, _stained(counterstain, dab, HEMATOXYLIN, DAB, grain)

    def mask(self) -> Pixels:
        """Annotation of a few rounded areas, uint8 0 or 255, at 1/16 of the canvas's resolution."""
        side = ceil_div(self.size, MASK_REDUCTION)
        at = (np.arange(side, dtype=np.float32) + 0.5) * MASK_REDUCTION
        y, x = at[:, None], at[None, :]
        blobs = self._field(5, y, x, self.size * 0.30) - 0.12
        inside = self._tissue_depth(y, x) > 0.01
        return np.where((blobs > 0) & inside, 255, 0).astype(np.uint8)


def _stained(first: Floats, second: Floats, dye: tuple[float, ...], other: tuple[float, ...], grain: Floats) -> Pixels:
    """Beer-Lambert colours of two dyes' concentrations (h, w) before a faintly grainy lamp: uint8 (h, w, 3)."""
    densities = np.array([dye, other, (0.011, 0.011, 0.014)], np.float32)
    density = cv2.transform(cv2.merge([first, second, grain]), -2.3 * densities.T)
    return np.asarray(cv2.convertScaleAbs(cv2.exp(density), alpha=248), np.uint8)


class _Spool:
    """Encoded tiles of one slide, in a temporary file until their level is written; fed by several threads."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._places: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._end = 0
        self._lock = Lock()

    def put(self, level: int, row: int, column: int, data: bytes) -> None:
        with self._lock:
            self._file.seek(self._end)
            self._file.write(data)
            self._places[level, row, column] = (self._end, len(data))
            self._end += len(data)

    def tiles(self, level: int, shape: tuple[int, int]) -> Iterator[bytes]:
        for row in range(ceil_div(shape[0], TILE)):
            for column in range(ceil_div(shape[1], TILE)):
                offset, length = self._places[level, row, column]
                self._file.seek(offset)
                yield self._file.read(length)

    def close(self) -> None:
        self._file.close()


def _encode_tiles(pixels: Pixels, spool: _Spool, level: int, row: int, column: int) -> None:
    """JPEG tiles of one piece of a level whose first tile is (row, column); ragged edges are replicated."""
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, 0, -height % TILE, 0, -width % TILE, cv2.BORDER_REPLICATE)
    for y in range(0, padded.shape[0], TILE):
        for x in range(0, padded.shape[1], TILE):
            tile = np.ascontiguousarray(padded[y : y + TILE, x : x + TILE])
            data = imagecodecs.jpeg8_encode(
                tile, level=JPEG_QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
            )
            spool.put(level, row + y // TILE, column + x // TILE, bytes(data))


def _halved_pixels(pixels: Pixels) -> Pixels:
    """Mean of 2 x 2; a missing neighbour is replicated."""
    height, width = pixels.shape[:2]
    even = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA))


def _pyramid_levels(size: int) -> int:
    """Levels until the smallest is at most 512 px."""
    levels = 1
    while halved((size, size), levels - 1)[0] > 512:
        levels += 1
    return levels


class _SlideWriter:
    """Collects one slide's blocks in any order and writes them as an OME-TIFF whose reduced levels are SubIFDs."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.levels = _pyramid_levels(size)
        self._spool = _Spool(path.parent)
        # the levels above the block's own come from its last one, kept whole: 1/64 of the slide
        self._top = np.zeros((*halved((size, size), _BLOCK_LEVELS - 1), 3), np.uint8)

    def add(self, pixels: Pixels, y0: int, x0: int) -> None:
        for level in range(min(self.levels, _BLOCK_LEVELS)):
            if level:
                pixels = _halved_pixels(pixels)
            _encode_tiles(pixels, self._spool, level, (y0 >> level) // TILE, (x0 >> level) // TILE)
        if self.levels > _BLOCK_LEVELS:
            y, x = y0 >> (_BLOCK_LEVELS - 1), x0 >> (_BLOCK_LEVELS - 1)
            self._top[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    def finish(self, name: str) -> None:
        pixels = self._top
        for level in range(_BLOCK_LEVELS, self.levels):
            pixels = _halved_pixels(pixels)
            _encode_tiles(pixels, self._spool, level, 0, 0)
        metadata = {
            "axes": "YXS",
            "Name": name,
            "PhysicalSizeX": PIXEL_SIZE_UM,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": PIXEL_SIZE_UM,
            "PhysicalSizeYUnit": "µm",
        }
        with tifffile.TiffWriter(self.path, bigtiff=self.size > 30_000, ome=True) as tiff:
            for level in range(self.levels):
                shape = halved((self.size, self.size), level)
                options: dict[str, Any] = {"subifds": self.levels - 1, "metadata": metadata}
                tiff.write(
                    self._spool.tiles(level, shape),
                    shape=(*shape, 3),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="ycbcr",
                    subsampling=(2, 2),
                    compression="jpeg",
                    resolution=(1e4 / (PIXEL_SIZE_UM * 2**level), 1e4 / (PIXEL_SIZE_UM * 2**level)),
                    resolutionunit="CENTIMETER",
                    **(options if level == 0 else {"subfiletype": 1, "metadata": None}),
                )
        self._spool.close()


@dataclass(frozen=True)
class Slides:
    """Paths of the two stains and the annotation mask that `make_slides` wrote."""

    base: Path
    overlay: Path
    mask: Path


def make_slides(folder: str | Path, size: int = 8192, seed: int = 7, threads: int | None = None) -> Slides:
    """Write `he.ome.tif`, `ihc.ome.tif` (size x size, JPEG pyramids, 0.5 µm per pixel) and `mask.tif` into `folder`.

    Memory stays at about 60 MB per thread and 1/64 of each slide, whatever the size. Overwrites files of these names
    in `folder`: callers that must not, check before.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    slides = Slides(folder / "he.ome.tif", folder / "ihc.ome.tif", folder / "mask.tif")
    tissue = Tissue(size, seed)
    writers = [_SlideWriter(slides.base, size), _SlideWriter(slides.overlay, size)]

    def make_block(origin: tuple[int, int]) -> None:
        block = Region(*origin, min(origin[0] + _BLOCK, size), min(origin[1] + _BLOCK, size))
        stains = [np.empty((*block.shape, 3), np.uint8) for _ in writers]
        for y in range(block.y0, block.y1, _PATCH):
            for x in range(block.x0, block.x1, _PATCH):
                patch = Region(y, x, y + _PATCH, x + _PATCH) & block
                inside = patch.shift(-block.y0, -block.x0)
                for stain, rendered in zip(stains, tissue.render(patch), strict=True):
                    stain[inside.slices] = rendered
        for writer, stain in zip(writers, stains, strict=True):
            writer.add(stain, block.y0, block.x0)

    origins = [(y, x) for y in range(0, size, _BLOCK) for x in range(0, size, _BLOCK)]
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(make_block, origins))
    for writer, name in zip(writers, ("hematoxylin and eosin", "hematoxylin and DAB"), strict=True):
        writer.finish(name)
    pixel_size = PIXEL_SIZE_UM * MASK_REDUCTION
    tifffile.imwrite(
        slides.mask,
        tissue.mask(),
        tile=(TILE, TILE),
        compression="zlib",
        photometric="minisblack",
        resolution=(1e4 / pixel_size, 1e4 / pixel_size),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return slides
