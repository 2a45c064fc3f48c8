"""Other people's TIFFs, read here and by Pillow, GDAL and tifffile: what differs, and what is refused here only.

    python -m pip download --no-binary :all: --no-deps pillow==12.0.0   # its sdist has Tests/images/*.tif
    python tests/tiff_corpus.py FOLDER…

A file is "same" where one other reader at least gives these very pixels. Exit code 1 where no reader does.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
from PIL import Image, ImageOps

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.tiff.source import open_tiff


def by_pillow(path: Path) -> Any:
    with Image.open(path) as picture:
        coloured = picture.convert("RGB") if picture.mode in ("P", "YCbCr", "LAB") else picture
        return np.array(ImageOps.exif_transpose(coloured))


def by_gdal(path: Path) -> Any:
    with rasterio.open(path) as file:
        return np.moveaxis(file.read(), 0, 2)


def by_tifffile(path: Path) -> Any:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        pixels = page.asarray()
        return np.moveaxis(pixels, 0, 2) if page.planarconfig == 2 and pixels.ndim == 3 else pixels


READERS: dict[str, Callable[[Path], Any]] = {"Pillow": by_pillow, "GDAL": by_gdal, "tifffile": by_tifffile}


def ours(path: Path) -> Any:
    """The first plane of the first image, as an image or else as a mask."""
    spec = SourceSpec(str(path))
    for _ in range(4):
        try:
            source = open_tiff(spec)
        except BadInputError as error:
            _, asks, axis = str(error).partition("select one along ")
            if asks:
                spec = replace(spec, plane=(*spec.plane, (axis.split()[0], 0)))
                continue
            source = open_tiff(spec, mask=True)
        return source.read(Region.of_shape(source.levels[0].shape))
    raise BadInputError(f"{path}: more than three axes")


def others(path: Path) -> Iterator[tuple[str, Any]]:
    for name, read in READERS.items():
        try:
            pixels = np.asarray(read(path))
        except Exception:  # any reader may not know a file
            continue
        yield name, pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def judge(path: Path) -> tuple[str, str]:
    """("same", "refused" or "differs", and how)."""
    read = dict(others(path))
    try:
        pixels = ours(path)
    except BadInputError as error:
        return "refused", f"{str(error).replace(str(path), '')[:160]}; read by {', '.join(read) or 'nobody'}"
    found = {name: _difference(pixels, theirs) for name, theirs in read.items()}
    said = ", ".join(f"{name} {how}" for name, how in found.items())
    return ("same" if "same" in found.values() or not found else "differs"), said


def _difference(one: Any, two: Any) -> str:
    if one.shape != two.shape:
        return f"has {two.shape}, not {one.shape}"
    apart = np.abs(one.astype(float) - two.astype(float))
    return "same" if not np.nanmax(apart, initial=0) else f"is {np.nanmean(apart):.2f} off"


def main(folders: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts = Counter[str]()
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.tif*")):
        kind, said = judge(path)
        counts[kind] += 1
        if kind != "same":
            print(f"{kind:8} {path.name}: {said}", flush=True)
    print(", ".join(f"{number} {kind}" for kind, number in counts.items()))
    return int(counts["differs"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
