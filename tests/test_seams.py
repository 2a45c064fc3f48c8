"""Seams in numbers: every pair of the edge, as a whole-array computation finds them; bounded on large canvases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Command
from numpy.typing import NDArray

import tiledblend as tb
from tiledblend.compose.lazy import to_array
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.geometry import Region
from tiledblend.look import seams as module
from tiledblend.look.seams import Step, measure_seams
from tiledblend.sources.arrays import from_array
from tiledblend.sources.base import Level, RasterSource, SourceInfo, SourceSpec

Array = NDArray[Any]


def pictures(shape: tuple[int, int], channels: int, dtype: str) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(3)
    high = int(np.iinfo(dtype).max) if dtype != "float32" else 1
    base, overlay = (rng.random((*shape, channels)) * high * f for f in (0.3, 1.0))
    noise = cv2.GaussianBlur(rng.random(shape), (0, 0), 6)
    return base.astype(dtype), overlay.astype(dtype), noise > np.median(noise)


def brute_force(inside: Array, pixels: Array) -> tuple[Array, int]:
    """Steps over all pairs of the edge, one after the other."""
    found = []
    for y, x in np.ndindex(*inside.shape):
        for dy, dx in ((1, 0), (0, 1)):
            if y + dy < inside.shape[0] and x + dx < inside.shape[1] and inside[y, x] != inside[y + dy, x + dx]:
                found.append(np.abs(pixels[y, x].astype(np.float64) - pixels[y + dy, x + dx].astype(np.float64)))
    return np.array(found), len(found)


def assert_step(step: Step | None, steps: Array) -> None:
    assert step is not None
    assert step.mean == pytest.approx(steps.mean(), rel=1e-5)
    assert step.p99 == pytest.approx(np.percentile(steps.mean(1), 99), rel=1e-5)
    assert step.channels_mean == pytest.approx(steps.mean(0), rel=1e-5)
    assert step.channels_p99 == pytest.approx(np.percentile(steps, 99, axis=0), rel=1e-5)


@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (7, "uint16"), (1, "float32")])
@pytest.mark.parametrize("offset", [None, (-20, 31)])
def test_equals_the_whole_array(
    channels: int, dtype: str, offset: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 40)  # the canvas is several blocks and no multiple of one
    base, overlay, mask = pictures((90, 130), channels, dtype)
    layer = Layer(
        from_array(overlay, axes="yxc"),
        mask=from_array(mask, axes="yx", mask=True),
        feather=Feather.px(3),
        opacity=0.75,
        offset=offset,
    )
    composite = Composite([Layer(from_array(base, axes="yxc")), layer])
    (seam,) = measure_seams(composite, [Feather.px(1)])
    y, x = offset or (0, 0)
    inside = np.zeros(mask.shape, bool)
    source = mask[max(0, -y) : 90 - max(0, y), max(0, -x) : 130 - max(0, x)]
    inside[max(0, y) :, max(0, x) :][: source.shape[0], : source.shape[1]] = source

    def steps(feather: Feather) -> Array:
        changed = Layer(layer.image, mask=layer.mask, feather=feather, opacity=0.75, offset=offset)
        return brute_force(inside, to_array(Composite([composite.layers[0], changed])))[0]

    assert (seam.sampled, seam.layer, seam.feather) == (False, 1, "3px")
    assert seam.pairs == brute_force(inside, base)[1]
    assert_step(seam.before, steps(Feather()))
    assert_step(seam.after, steps(Feather.px(3)))
    assert seam.widths[0][0] == "1px"
    assert_step(seam.widths[0][1], steps(Feather.px(1)))
    if offset is None:
        own, below = brute_force(inside, overlay)[0], brute_force(inside, base)[0]
        assert_step(seam.images, (own + below) / 2)


def test_a_wider_feather_makes_a_smaller_step_down_to_the_images() -> None:
    """Two flat images have no texture: what is left is the feather's own slope, 100 / (sigma sqrt(2 pi)) a pixel."""
    flat = [from_array(np.full((400, 400), v, np.float32), axes="yx") for v in (0.2, 0.6)]
    mask = from_array(np.tile(np.arange(400) >= 200, (400, 1)), axes="yx", mask=True)
    (seam,) = measure_seams(
        Composite([Layer(flat[0]), Layer(flat[1], mask=mask, feather=Feather.px(4))]), [Feather.px(16)]
    )
    assert seam.pairs == 400
    assert seam.before is not None
    assert seam.after is not None
    assert seam.images is not None
    assert seam.before.mean == pytest.approx(0.4, rel=1e-5)
    for step, sigma in ((seam.after, 4), (seam.widths[0][1], 16)):
        assert step.mean == pytest.approx(0.4 / (sigma * np.sqrt(2 * np.pi)), rel=0.02)
    assert seam.images.mean == 0


def test_a_layer_is_measured_without_those_above_it() -> None:
    values = (10, 60, 200)
    images = [from_array(np.full((64, 64), v, np.uint8), axes="yx") for v in values]
    mask = from_array(np.tile(np.arange(64) >= 32, (64, 1)), axes="yx", mask=True)
    layers = [Layer(images[0]), Layer(images[1], mask=mask), Layer(images[2])]
    (seam,) = measure_seams(Composite(layers))
    assert seam.before is not None
    assert (seam.layer, seam.before.mean) == (1, 50)


def test_the_border_of_a_layer_inside_the_canvas_is_an_edge() -> None:
    base, small = np.full((60, 60), 100, np.uint8), np.full((20, 30), 130, np.uint8)
    layer = Layer(from_array(small, axes="yx"), offset=(10, 5))
    (seam,) = measure_seams(Composite([Layer(from_array(base, axes="yx")), layer]))
    assert seam.before is not None
    assert seam.images is not None
    assert (seam.pairs, seam.mask, seam.before.mean, seam.images.mean) == (2 * (20 + 30), None, 30, 0)


def test_no_edge_and_no_seam() -> None:
    image = from_array(np.zeros((50, 50), np.uint8), axes="yx")
    assert measure_seams(Composite([Layer(image), Layer(image, opacity=0.5)])) == ()
    full = from_array(np.ones((50, 50), bool), axes="yx", mask=True)
    (seam,) = measure_seams(Composite([Layer(image), Layer(image, mask=full)]))
    assert (seam.pairs, seam.before, seam.after) == (0, None, None)


class Endless(RasterSource):
    """A gigapixel picture that is computed; counts the pixels that are read."""

    def __init__(self, kind: str, side: int = 100_000) -> None:
        self.spec = SourceSpec(kind)
        self.dtype = np.dtype(np.uint8)
        self.channels = 1
        self.levels = (Level((side, side), (256, 256)),)
        self.info = SourceInfo("test", "yx")
        self.read_pixels = 0

    def _read(self, region: Region, level: int) -> Array:
        self.read_pixels += region.size
        y, x = np.ogrid[region.y0 : region.y1, region.x0 : region.x1]
        if self.spec.path == "mask":
            value = ((y // 3000 + x // 3000) % 2) * 255
        else:
            value = (y * 7 + x * 13) % 50 + (100 if self.spec.path == "overlay" else 0)
        return np.broadcast_to(value, region.shape).astype(np.uint8)[:, :, None]

    def fingerprint(self) -> dict[str, Any]:
        return {"uri": self.spec.path}


def test_ten_gigapixels_are_sampled_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOWS", 32)

    def measured() -> tuple[Any, tuple[int, int]]:
        mask, overlay = Endless("mask"), Endless("overlay")
        composite = Composite([Layer(Endless("base")), Layer(overlay, mask=mask, feather=Feather.px(8))])
        return measure_seams(composite), (mask.read_pixels, overlay.read_pixels)

    (seam,), (mask_pixels, overlay_pixels) = measured()
    assert seam.sampled
    assert seam.windows == module.WINDOWS
    assert overlay_pixels < 10e6
    assert mask_pixels < 200e6
    # neighbours of one image differ by 7, 13, or (at the wrap) 43 and 37: the overlay is brighter by 100
    assert seam.before.mean == pytest.approx(100, rel=0.03)
    assert seam.after.mean < 20
    assert measured()[0] == (seam,)


def test_command(tmp_path: Path, command: Command) -> None:
    base, overlay, mask = pictures((120, 100), 3, "uint8")
    for name, pixels in (("base", base), ("overlay", overlay), ("mask", mask.astype(np.uint8) * 255)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    flags = ("base.png", "overlay.png", "--mask", "mask.png", "--feather", "4px")
    ran = command("seams", *flags, "--widths", "2px, 8px")
    assert ran.code == 0, ran.err
    assert [line.split()[:2] for line in ran.out.splitlines()[3:]] == [
        ["hard", "edge"],
        ["feather", "4px"],
        ["feather", "2px"],
        ["feather", "8px"],
        ["images", "alone"],
    ]
    planned = json.loads(command("seams", *flags, "--json").out)["seams"]
    assert command("blend", *flags, "--chunk", 64, "--shard", 128, "-o", "out.ome.zarr").code == 0
    assert json.loads(command("seams", "out.ome.zarr", "--json").out)["seams"] == planned
    assert planned[0]["after"]["mean"] < planned[0]["before"]["mean"]
    (tmp_path / "overlay.png").unlink()
    gone = command("seams", "out.ome.zarr")
    assert gone.code == 4
    assert "only the result can be shown" in gone.error
    assert command("seams", *flags[:2], "--widths", "wide").code == 2


def test_a_result_written_from_python_does_not_say_from_what(tmp_path: Path, command: Command) -> None:
    image = from_array(np.zeros((40, 40), np.uint8), axes="yx")
    tb.write(Composite([Layer(image)]), str(tmp_path / "out.ome.zarr"))
    ran = command("seams", "out.ome.zarr")
    assert ran.code == 4
    assert "does not say from what" in ran.error
