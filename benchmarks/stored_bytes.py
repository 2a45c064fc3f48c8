"""What a change of the code must not change: digests of every stored object of 24 drawn composites.

    python benchmarks/stored_bytes.py FOLDER > before.json      # with the older code
    python benchmarks/stored_bytes.py FOLDER --against before.json

All dtypes, both modes, OME-Zarr 0.4 and 0.5, alpha, affine matrices, outlines, label masks, chunks that are passed on,
masks that are grown, opacity, offsets, levels. FOLDER is emptied of its results before each use; inputs are made there.
Only public names are used, so that any revision's code can run it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

import tiledblend as tb

COMPOSITES = 24
DTYPES = ("uint8", "uint16", "float32")
MASKS = ("none", "bool", "grey", "labels", "outlines", "alpha", "small", "shared")


def drawn_pixels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Noise on a ramp, so that codecs and rounding see both."""
    full = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    ramp = np.linspace(0.1, 0.6, shape[1])[None, :, None]
    values = (ramp + rng.random(shape) * 0.35) * full
    return values.astype(dtype) if dtype == "float32" else np.rint(values).astype(dtype)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    """True within a circle given in shares of the shape."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y / shape[0] - centre[0], x / shape[1] - centre[1]) < radius


def mask_of(kind: str, rng: np.random.Generator, shape: tuple[int, int], folder: Path, number: int) -> Any:
    """(mask, mask_values, open or array) of one kind."""
    centre = (float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.3, 0.7)))
    if kind == "bool":
        return tb.from_array(disc(shape, centre, 0.25), axes="yx", mask=True), "auto"
    if kind == "grey":
        grey = np.rint(disc(shape, centre, 0.3) * 200 + rng.random(shape) * 55).astype(np.uint8)
        return tb.from_array(grey, axes="yx", mask=True), "auto"
    if kind == "labels":
        labels = (disc(shape, centre, 0.3) * 2 + disc(shape, centre, 0.15) * 3).astype(np.uint16)
        return tb.from_array(labels, axes="yx", mask=True), tb.Labels((2, 5))
    if kind == "small":
        small = tuple(-(-n // 8) for n in shape)
        path = folder / f"mask{number}.tif"
        tifffile.imwrite(path, disc(small, centre, 0.25).astype(np.uint8) * 255, tile=(16, 16))
        return tb.open(path, mask=True), "auto"
    if kind == "outlines":
        y, x = centre[0] * shape[0], centre[1] * shape[1]
        ring = [[x - 60, y - 40], [x + 70, y - 50], [x + 50, y + 60], [x - 60, y - 40]]
        path = folder / f"outline{number}.geojson"
        feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
        return tb.open(path, mask=True), "auto"
    return None, "auto"


def composite_of(number: int, folder: Path) -> tuple[tb.Composite, tb.OutputSpec]:
    """One of the drawn composites and how it is stored."""
    rng = np.random.default_rng(number)
    dtype = DTYPES[number % 3]
    shape = (int(rng.integers(300, 700)), int(rng.integers(300, 700)))
    colours = (3, 1, 3, 5)[number % 4]
    kind = MASKS[number % len(MASKS)]
    size = (0.5, 0.5 if number % 5 else 0.4)
    has_alpha = number % 4 == 2
    version = ("0.5", "0.5", "0.4")[(number // 2) % 3]
    chunk = (32, 64)[number % 2]
    output = tb.OutputSpec(chunk, chunk * (2, 4)[number // 3 % 2], ome_zarr=version)
    base = _base(number, folder, drawn_pixels(rng, (*shape, colours), dtype), size, output)
    layers = [tb.Layer(base)]
    for index in range(1 + number % 2):
        own = shape if index == 0 else (shape[0] // 2, shape[1] // 2 + 7)
        pixels = drawn_pixels(rng, (*own, colours + has_alpha), dtype)
        alpha = (tb.Alpha.STRAIGHT, tb.Alpha.PREMULTIPLIED)[number // 4 % 2] if has_alpha else tb.Alpha.NONE
        if has_alpha:
            full = 1.0 if dtype == "float32" else np.iinfo(dtype).max
            pixels[..., -1] = (disc(own, (0.5, 0.5), 0.4) * full).astype(dtype)
        source = tb.from_array(pixels, axes="yxc", pixel_size_um=size, alpha=alpha)
        mask, values = mask_of(kind, rng, own, folder, 10 * number + index)
        if kind == "alpha" and has_alpha:
            mask = "alpha"
        if kind == "shared":
            mask, values = layers[-1].mask, layers[-1].mask_values
            if mask is None:
                mask, values = mask_of("labels", rng, shape, folder, number)
        extra: dict[str, Any] = {}
        if mask is not None and mask != "alpha" and number % 3 == 0:
            extra["grow"] = tb.Length(9.0 if number % 2 else -4.0)
        if kind == "shared":
            extra["mask_frame"] = "canvas"
        where: dict[str, Any] = {"offset": (int(rng.integers(-30, 90)), int(rng.integers(-30, 90)))} if index else {}
        if number % 6 == 4 and index == 0:
            where = {"affine": [[0.98, 0.12, 11.5], [-0.11, 1.01, 30.25]]}
        layers.append(
            tb.Layer(
                source,
                mask=mask,
                mask_values=values,
                feather=(tb.Feather.px(7.5), tb.Feather.ksize(5), tb.Feather.um(9), tb.Feather())[number // 2 % 4],
                opacity=(1.0, 0.6)[number // 5 % 2],
                invert=mask is not None and number % 7 == 3,
                **where,
                **extra,
            )
        )
    mode: Any = ("over", "average")[number // 4 % 2]
    canvas = tb.Canvas(shape, channels=colours + (number % 8 == 2), pixel_size_um=size)
    ground = float(number % 2) / (1 if dtype != "float32" else 4)
    composite = tb.Composite(layers, mode, background=ground, canvas=canvas)
    return (tb.at_level(composite, 1) if number % 8 == 7 else composite), output


def _base(number: int, folder: Path, pixels: NDArray[Any], size: tuple[float, float], output: tb.OutputSpec) -> Any:
    """Every third base is a result, whose chunks are passed on; else a TIFF or an array."""
    if number % 3 == 0:
        path = folder / f"base{number}.ome.zarr"
        source = tb.from_array(pixels, axes="yxc", pixel_size_um=size)
        tb.write(tb.Composite([tb.Layer(source)]), path, output=output)
        return tb.open(path)
    if number % 3 == 1 and pixels.shape[2] in (1, 3):
        path = folder / f"base{number}.tif"
        tifffile.imwrite(path, np.squeeze(pixels), tile=(64, 64), photometric="rgb" if pixels.shape[2] == 3 else None)
        return tb.open(path)
    return tb.from_array(pixels, axes="yxc", pixel_size_um=size)


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every stored object, by composite and key."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)  # names within documents are the same wherever the folder lies
    found: dict[str, dict[str, str]] = {}
    for number in range(COMPOSITES):
        composite, output = composite_of(number, Path())
        out = Path(f"out{number}.ome.zarr")
        tb.write(composite, out, output=output)
        found[str(number)] = {
            str(path.relative_to(out)): hashlib.sha256(_settled(path)).hexdigest()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }
    return found


def _settled(path: Path) -> bytes:
    """The bytes of an object; of a document without what no run can repeat: times of arrays and files."""
    data = path.read_bytes()
    if path.name not in ("zarr.json", ".zattrs"):
        return data
    document = json.loads(data)
    root = document.get("attributes", document)
    if "tiledblend" in root:
        root["tiledblend"] = {key: root["tiledblend"][key] for key in ("output",) if key in root["tiledblend"]}
    return json.dumps(document, sort_keys=True).encode()


def main() -> None:
    """Print the digests, or compare them with an earlier print. Exits with 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    before = json.loads(arguments.against.read_text()) if arguments.against else None
    found = digests(arguments.folder)
    if before is None:
        print(json.dumps(found, indent=1))
        return
    wrong = 0
    for number, objects in before.items():
        now = found.get(number, {})
        differing = [key for key in {**objects, **now} if objects.get(key) != now.get(key)]
        wrong += len(differing)
        told = hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()[:16]
        print(f"{number:>2}  {len(objects):4} objects  {told}  {f'DIFFER: {differing[:4]}' if differing else 'same'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
