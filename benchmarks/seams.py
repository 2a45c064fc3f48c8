"""Steps across seams and pictures of them, on three pairs: `python benchmarks/seams.py SLIDE.svs FOLDER`.

Pairs: the demo's two stains; a slide against a recoloured copy of itself, three pixels off; the slide against a copy
with a vignette. For each: hard, feathered, matched, in bands, matched in bands, routed. FOLDER gets the pairs, the
outlines, a table (seams.txt) and a picture for each pair, all made by the `tiledblend` command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiledblend.demo.tissue import make_slides
from tiledblend.sources import open_source

WAYS: dict[str, tuple[str, ...]] = {
    "hard": (),
    "feather 16px": ("--feather", "16px"),
    "match linear, feather 16px": ("--feather", "16px", "--match", "linear"),
    "bands:6": ("--feather", "bands:6"),
    "match linear, bands:6": ("--feather", "bands:6", "--match", "linear"),
    "route, hard": (),
    "route, match linear, bands:6": ("--feather", "bands:6", "--match", "linear"),
}
CROP = 420


def command(*arguments: object) -> str:
    """Runs `tiledblend`; returns what it printed."""
    run = [sys.executable, "-m", "tiledblend", *map(str, arguments)]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


def save(path: Path, pixels: NDArray[Any]) -> Path:
    rgb = {"photometric": "rgb"} if pixels.ndim == 3 else {"photometric": "minisblack"}
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(20040, 20040), resolutionunit="CENTIMETER", **rgb)
    return path


def pairs(slide: Path, folder: Path) -> dict[str, tuple[Path, Path, Path]]:
    """(base, overlay, mask) of each pair."""
    demo = make_slides(folder / "demo", 2048, seed=7)
    source = open_source(str(slide))
    base = np.asarray(source.read(_all(source)))[..., :3]
    y, x = np.mgrid[: base.shape[0], : base.shape[1]]
    wavy = 560 + 60 * np.sin(5 * np.arctan2(y - 1450, x - 1100))
    mask = save(folder / "mask.tif", (np.hypot(y - 1450, x - 1100) < wavy).astype(np.uint8) * np.uint8(255))
    recoloured = np.clip(np.roll(base, 3, 1) * [0.86, 0.93, 1.06] + [16, -4, -12], 0, 255).astype(np.uint8)
    radius = np.hypot((y - 1450) / 1500, (x - 1100) / 1500)[..., None]
    vignette = np.clip(base * (1 - 0.35 * radius**2), 0, 255).astype(np.uint8)
    first = save(folder / "slide.tif", base)
    return {
        "demo": (demo.base, demo.overlay, demo.mask),
        "recoloured": (first, save(folder / "recoloured.tif", recoloured), mask),
        "vignette": (first, save(folder / "vignette.tif", vignette), mask),
    }


def _all(source: Any) -> Any:
    from tiledblend.geometry import Region

    return Region.of_shape(source.shape)


def measured(base: Path, overlay: Path, mask: Path, flags: tuple[str, ...]) -> tuple[float, float]:
    """(mean step across the seam, of the images themselves)."""
    seam = json.loads(command("seams", base, overlay, "--mask", mask, *flags, "--json"))["seams"][0]
    return seam["after"]["mean"], seam["images"]["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    lines = []
    for name, (base, overlay, mask) in pairs(given.slide, given.folder).items():
        route = given.folder / f"{name}.geojson"
        told = command("route", mask, "--base", base, "--overlay", overlay, "--within", "60px", "-o", route)
        lines.append(f"{name}: {told.strip().split('; ')[-1]}")
        shown = []
        for way, flags in WAYS.items():
            by = route if way.startswith("route") else mask
            step, images = measured(base, overlay, by, flags)
            lines.append(f"  {way:<32}{step:8.3f}   images alone {images:.3f}")
            out = given.folder / f"{name}-{len(shown)}.png"
            command("blend", base, overlay, "--mask", by, *flags, "-o", out)
            shown.append((f"{way}: {step:.2f}", Image.open(out)))
        _picture(shown, open_source(str(mask), mask=True)).save(given.folder / f"seams-{name}.png", optimize=True)
    text = "\n".join(lines)
    (given.folder / "seams.txt").write_text(text + "\n")
    print(text)


def _picture(shown: list[tuple[str, Image.Image]], mask: Any) -> Image.Image:
    """The same place of every way, around the mask's edge right of its middle."""
    inside = mask.read(_all(mask))[..., 0] > 0
    width, height = shown[0][1].size
    row = inside.shape[0] // 2
    column = int(np.nonzero(inside[row])[0].max()) * width // inside.shape[1]
    y, x = row * height // inside.shape[0] - CROP // 2, min(max(column - CROP // 2, 0), width - CROP)
    columns = 4
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (CROP + 6) - 6, rows * (CROP + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, image) in enumerate(shown):
        left, top = number % columns * (CROP + 6), number // columns * (CROP + 30)
        sheet.paste(image.crop((x, y, x + CROP, y + CROP)), (left, top + 24))
        draw.text((left + 4, top + 5), title, fill="black", font_size=16)
    return sheet


if __name__ == "__main__":
    main()
