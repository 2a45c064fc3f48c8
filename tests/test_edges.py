"""Outlines of layers on previews, weight maps, and a composite's views: on the right pixels."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from tiledblend.compose.composed import ComposedSource, WeightSource, canvas_views
from tiledblend.compose.lazy import to_array
from tiledblend.describe.composite import Composite
from tiledblend.describe.layers import Layer
from tiledblend.describe.lengths import Feather
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.feather import feather_tile
from tiledblend.kernels.gaussian import FeatherKernel
from tiledblend.look.edges import COLOURS, edge_lines, with_lines
from tiledblend.look.preview import preview
from tiledblend.run.origin import origin_of
from tiledblend.sources.arrays import from_array
from tiledblend.sources.base import Alpha

CYAN = [0, 229, 255]


def test_a_line_lies_on_the_edge_with_a_rim_around_it() -> None:
    weight = np.zeros((20, 20), np.uint8)
    weight[:, 10:] = 255
    lines = edge_lines(weight, COLOURS[0], 2)
    coloured = np.flatnonzero((lines[5] == [*CYAN, 255]).all(1)).tolist()
    rim = np.flatnonzero((lines[5, :, 3] > 0) & (lines[5, :, 3] < 255)).tolist()
    assert coloured == [9, 10]
    assert rim == [8, 11]
    picture = np.full((20, 20, 3), 200, np.uint8)
    drawn = with_lines(picture, lines)
    assert drawn[5, 9].tolist() == CYAN
    assert drawn[5, 0].tolist() == [200, 200, 200]
    assert drawn[5, 8, 0] < 120
    assert not edge_lines(np.full((4, 4), 255, np.uint8), COLOURS[0]).any()


def composite(feather: float = 0.0) -> Composite:
    base, overlay = (from_array(np.full((200, 300, 3), v, np.uint8), axes="yxc") for v in (30, 220))
    half = from_array(np.tile(np.arange(300) >= 150, (200, 1)), axes="yx", mask=True)
    small = from_array(np.full((50, 60, 3), 120, np.uint8), axes="yxc")
    layers = [
        Layer(base),
        Layer(overlay, mask=half, feather=Feather.px(feather), opacity=0.4),
        Layer(small, offset=(20, 10)),
    ]
    return Composite(layers)


def test_preview_of_a_composite_with_seams_and_weights(tmp_path: Path) -> None:
    whole = composite(9)
    assert preview(whole, tmp_path / "plain.png")["shape"] == [200, 300]
    plain = np.asarray(Image.open(tmp_path / "plain.png"))
    assert np.array_equal(plain, to_array(whole))
    preview(whole, tmp_path / "seams.png", seams=True)
    drawn = np.asarray(Image.open(tmp_path / "seams.png"))
    changed = (drawn != plain).any(2)
    assert changed[100, 148:152].any()  # the mask's edge, whatever its feather and opacity
    assert changed[19:21, 30].any()  # and the small layer's border
    assert not changed[:15, :140].any()
    assert (drawn == CYAN).all(2).any()
    done = preview(whole, tmp_path / "weights.png", weights=True)
    assert done["shape"] == [200 + 24 + 26, 3 * 300 + 4 * 12]
    sheet = np.asarray(Image.open(tmp_path / "weights.png"))
    assert sheet[112, 12 + 300 + 12 + 290].tolist() == [102, 102, 102]  # 0.4 of 255
    assert sheet[112, 12 + 300 + 12 + 10].tolist() == [0, 0, 0]


def test_views_lie_on_the_canvas() -> None:
    whole = composite(9)
    views = canvas_views(whole)
    assert [view is None for view in views.weights] == [True, False, False]
    everything = Region(0, 0, 200, 300)
    assert np.array_equal(views.result.read(everything), to_array(whole))
    assert views.images[1].alpha is Alpha.NONE
    assert (views.images[1].read(everything) == 220).all()
    small = views.images[2].read(everything)
    assert small.shape == (200, 300, 4)
    inside = np.zeros((200, 300), bool)
    inside[20:70, 10:70] = True
    assert np.array_equal(small[..., 3] == 255, inside)
    assert np.array_equal(small[..., 0], np.where(inside, 120, 0))
    weight, mask = views.weights[1], np.tile(np.arange(300) >= 150, (200, 1)).astype(np.uint8) * 255
    assert weight is not None
    expected = feather_tile(FeatherKernel(9), everything, (200, 300), lambda r: mask[r.slices]) * np.float32(0.4)
    assert np.array_equal(weight.read(everything)[:, :, 0], np.rint(expected * 255))
    edge = views.edges[1]
    assert edge is not None
    assert np.array_equal(edge.read(everything)[:, :, 0], mask)


def test_views_pickle_as_what_they_show() -> None:
    views = canvas_views(composite(2))
    assert views.weights[1] is not None
    for source in (views.result, views.weights[1]):
        again = pickle.loads(pickle.dumps(source))
        assert isinstance(again, (ComposedSource, WeightSource))
        region = Region(90, 140, 100, 160)
        assert np.array_equal(again.read(region), source.read(region))


def test_seams_of_a_result_and_refusals(tmp_path: Path, command: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(255 - pixels).save(tmp_path / "b.png")
    Image.fromarray(np.kron(np.eye(2), np.ones((75, 80))).astype(np.uint8) * 255).save(tmp_path / "m.png")
    flags = ("a.png", "b.png", "--mask", "m.png", "--feather", "3px")
    assert command("blend", *flags, "--chunk", 64, "--shard", 64, "-o", "out.ome.zarr").code == 0
    assert command("preview", "out.ome.zarr", "r.png", "--seams", "--weights").code == 0
    assert command("preview", *flags, "p.png", "--seams", "--weights").code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "r.png")), np.asarray(Image.open(tmp_path / "p.png")))
    assert "no result of tiledblend" in command("preview", "a.png", "x.png", "--seams").error
    (tmp_path / "b.png").unlink()
    assert command("preview", "out.ome.zarr", "y.png").code == 0
    gone = command("preview", "out.ome.zarr", "z.png", "--weights")
    assert gone.code == 4
    assert "only the result can be shown" in gone.error
    with pytest.raises(UsageError, match="no result"):
        preview(from_array(pixels, axes="yxc"), tmp_path / "q.png", seams=True)
    assert sorted(path.name for path in tmp_path.glob("[xzq].png")) == []


def test_a_web_address_is_no_result_of_ours() -> None:
    """Slides on web servers are looked at as they are; nothing is asked of the server for it."""
    assert origin_of("https://127.0.0.1:1/slide.tif") is None
