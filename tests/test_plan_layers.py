"""What a plan says of each layer, against numbers that scipy and whole arrays give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Command
from scipy.ndimage import gaussian_filter

import tiledblend as tb
from tiledblend.look.layer_lines import layers_text

SHAPE = (300, 420)
OUTPUT = tb.OutputSpec(chunk=32, shard=128)


def image(shape: tuple[int, int] = SHAPE, name: str = "i.tif", **options: Any) -> Any:
    return tb.from_array(np.zeros((*shape, 3), np.uint8), axes="yxc", name=name, **options)


def drawn(seed: int) -> Any:
    mask = np.zeros(SHAPE, bool)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for cy, cx, r in np.random.default_rng(seed).uniform((0, 0, 20), (*SHAPE, 90), (5, 3)):
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return mask


@pytest.mark.parametrize("mode", ["over", "average"])
def test_what_each_layer_decides_alone_is_counted_by_pixels(mode: str) -> None:
    masks = [drawn(seed) for seed in (1, 2)]
    layers = [tb.Layer(image())]
    layers += [tb.Layer(image(), mask=tb.from_array(m, axes="yx", mask=True), feather=tb.Feather.px(3)) for m in masks]
    found = tb.plan(tb.Composite(layers, mode=mode), OUTPUT, exact=True).layers
    weights = [np.ones(SHAPE), *(gaussian_filter(m.astype(float), 3, mode="mirror", truncate=4) for m in masks)]
    weights = [np.where(w > 1 - 2**-12, 1, np.where(w < 2**-12, 0, w)) for w in weights]
    if mode == "over":
        expected = [
            np.mean((w == 1) & np.all([above == 0 for above in weights[i + 1 :]] or [np.ones(SHAPE, bool)], axis=0))
            for i, w in enumerate(weights)
        ]
    else:
        any_weight = np.array([w > 0 for w in weights])
        expected = [np.mean(one & (any_weight.sum(axis=0) == 1)) for one in any_weight]
    assert [layer.alone for layer in found] == pytest.approx(expected, abs=0.004)
    assert (expected[1] > 0.05) == (mode == "over")


def test_an_edge_is_as_wide_as_is_said() -> None:
    step = np.zeros((200, 400), bool)
    step[:, 200:] = True
    for side in ("both", "inside"):
        layer = tb.Layer(
            image((200, 400)),
            mask=tb.from_array(step, axes="yx", mask=True),
            feather=tb.Feather.px(16),
            feather_side=side,
        )
        (said,) = tb.plan(tb.Composite([layer]), OUTPUT).layers
        blurred = gaussian_filter(step.astype(float), 16, mode="mirror")[100]
        weight = blurred if side == "both" else np.maximum(0, 2 * blurred - 1)
        x = np.interp([0.05, 0.95], weight[np.argmax(weight > 0) - 1 :], np.arange(400)[np.argmax(weight > 0) - 1 :])
        assert said.edge_px[1] == pytest.approx(x[1] - x[0], rel=0.02)
        assert said.feather_px == (16, 16)


def test_swapped_offsets_show() -> None:
    base, small = image((400, 1000)), image((100, 200), "small.tif")
    layers = tb.plan(tb.Composite([tb.Layer(base), tb.Layer(small, offset=(350, 900))]), OUTPUT).layers
    assert layers[1].place == (350, 900, 450, 1100)
    assert layers[1].on_canvas == pytest.approx(50 * 100 / (100 * 200))
    assert layers[1].covers == pytest.approx(50 * 100 / (400 * 1000))
    text = "\n".join(layers_text(layers))
    assert "lies on y 350 to 450, x 900 to 1,100: 1.2 % of the canvas; 25.0 % of the layer is on it" in text


def test_the_command_shows_a_table(tmp_path: Path, command: Command) -> None:
    for name in ("base", "over"):
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        pixels = np.zeros((*SHAPE, 3), np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", pixels, photometric="rgb", tile=(64, 64), metadata=metadata)
    tifffile.imwrite(tmp_path / "mask.tif", drawn(1).astype(np.float32))
    flags = ("base.ome.tif", "over.ome.tif", "--mask", "mask.tif", "--threshold", "0.5", "--feather", "8um")
    said = command("plan", *flags, "--opacity", "0.5").out
    for line in (
        "layer 0  base.ome.tif: 300 x 420 px (y x x), 0.5 um/px",
        "lies on y 0 to 300, x 0 to 420: 100.0 % of the canvas; decides alone on",
        "inside of mask mask.tif, at or above 0.5",
        "feather 16 px (8 um): an edge goes from 5 to 95 % within 52.64 px (26.32 um)",
        "opacity 0.5",
    ):
        assert line in said
    (_, layer) = json.loads(command("plan", *flags, "--json").out)["layers"]
    assert (layer["threshold"], layer["feather_um"], layer["place"]) == (0.5, [8, 8], [0, 0, 300, 420])


@pytest.mark.parametrize("verb", ["plan", "blend"])
def test_an_overlay_without_a_mask_is_told(tmp_path: Path, command: Command, verb: str) -> None:
    for name in ("base.tif", "over.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((*SHAPE, 3), np.uint8), photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "mask.tif", np.ones(SHAPE, bool))
    tifffile.imwrite(tmp_path / "small.tif", np.zeros((60, 60, 3), np.uint8), photometric="rgb")
    hides = "over.tif: has no mask and hides the base"

    def said(number: int, *flags: str) -> str:
        ran = command(verb, "base.tif", *flags, *(("-o", f"{number}.ome.zarr") if verb == "blend" else ()))
        assert ran.code == 0, ran.err
        return ran.out + ran.err

    assert said(1, "over.tif").count(hides) == 1
    for number, flags in enumerate((("--mask", "mask.tif"), ("--opacity", "0.5"), ("--mode", "average")), 2):
        assert hides not in said(number, "over.tif", *flags)
    assert "hides" not in said(9, "small.tif", "--offset", "3,4")
