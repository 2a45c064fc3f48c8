"""Masks to outlines: the outlines rasterise back to the same mask, and are valid polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tiledblend as tb
from tiledblend.compose.composed import WeightSource
from tiledblend.errors import BadInputError, RefusedError
from tiledblend.geometry import Region
from tiledblend.kernels.scanline import edges_of_rings, fill_polygons
from tiledblend.look import outline as module
from tiledblend.look.outline import outline, trace
from tiledblend.sources.outlines.source import PolygonSource, PolygonSpec, open_polygons

masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(np.bool_, shape))


def filled(polygons: list[list[Any]], shape: tuple[int, int]) -> Any:
    rings = [ring for polygon in polygons for ring in polygon]
    owner = np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons])
    edges, ring = edges_of_rings([ring.astype(float) for ring in rings])
    return fill_polygons(edges, owner[ring] if len(ring) else ring, Region.of_shape(shape))


@settings(max_examples=400, deadline=None)
@given(mask=masks, rows=st.integers(1, 14))
def test_outlines_of_any_mask_are_valid_and_give_it_back(mask: Any, rows: int) -> None:
    shape = mask.shape
    polygons = trace([mask[y : y + rows] for y in range(0, shape[0], rows)], shape)
    np.testing.assert_array_equal(filled(polygons, shape), mask)
    for polygon in polygons:
        assert shapely.is_valid(shapely.Polygon(polygon[0], polygon[1:])), polygon
        for ring in polygon:
            turns = np.diff(np.concatenate([ring, ring[:2]]), axis=0).astype(bool)
            assert (turns[1:] != turns[:-1]).all(), "a point lies in the middle of a straight side"
    assert shapely.area([shapely.Polygon(p[0], p[1:]) for p in polygons]).sum() == mask.sum()


def test_bands_do_not_show() -> None:
    mask = np.random.default_rng(1).random((90, 70)) < 0.6
    expected = [[r.tolist() for r in p] for p in trace([mask], mask.shape)]

    def normal(polygons: Any) -> Any:
        def turned(ring: Any) -> Any:
            at = ring.index(min(ring))
            return ring[at:] + ring[:at]

        return sorted([turned(p[0]), sorted(turned(ring) for ring in p[1:])] for p in polygons)

    for rows in (1, 7, 64):
        bands = [mask[y : y + rows] for y in range(0, 90, rows)]
        assert normal([[r.tolist() for r in p] for p in trace(bands, mask.shape)]) == normal(expected)


def source(mask: Any) -> Any:
    return tb.from_array(mask, axes="yx", mask=True, name="mask")


def reread(path: Path, shape: tuple[int, int], *classes: str) -> Any:
    polygons: PolygonSource = open_polygons(PolygonSpec(str(path), classes=classes, invalid="refuse"))
    return polygons.with_shape(shape).read(Region.of_shape(shape))[:, :, 0]


def test_the_file_gives_the_mask_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAND_PIXELS", 1000)
    y, x = np.mgrid[:120, :150]
    mask = (np.hypot(y - 60, x - 70) < 50) ^ (np.hypot(y - 50, x - 60) < 20) ^ (np.hypot(y - 50, x - 60) < 8)
    done = outline(source(mask), tmp_path / "a.geojson", name="Tumor")
    assert (done.outlines, done.classes) == (2, {"Tumor": 2})
    assert done.bytes_written == (tmp_path / "a.geojson").stat().st_size
    np.testing.assert_array_equal(reread(tmp_path / "a.geojson", (120, 150), "Tumor"), mask)
    document = json.loads((tmp_path / "a.geojson").read_text())
    first = document["features"][0]
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tumor", "color": [200, 0, 0]},
    }
    assert len(first["id"]) == 36
    assert all(ring[0] == ring[-1] for f in document["features"] for ring in f["geometry"]["coordinates"])


def test_coordinates_are_the_slides(tmp_path: Path) -> None:
    mask = np.random.default_rng(3).random((25, 19)) < 0.5
    slide = tb.from_array(np.zeros((25 * 4 - 3, 19 * 4 - 1, 3), np.uint8), axes="yxc")
    done = outline(source(mask), tmp_path / "a.geojson", like=slide)
    assert done.scale == (4, 4)
    large = np.repeat(np.repeat(mask, 4, 0), 4, 1)[:97, :75]
    np.testing.assert_array_equal(reread(tmp_path / "a.geojson", (97, 75)), large)
    third = tb.from_array(np.zeros((75, 57, 3), np.uint8), axes="yxc")
    assert outline(source(mask), tmp_path / "b.geojson", like=third).scale == (3, 3)
    with pytest.raises(BadInputError, match="does not match"):
        outline(source(mask), tmp_path / "c.geojson", like=tb.from_array(np.zeros((30, 90, 3), np.uint8), axes="yxc"))


@pytest.mark.parametrize("shape", [(103, 79), (97, 74), (100, 76)])
def test_the_last_pixels_reach_the_slides_end(shape: tuple[int, int], tmp_path: Path) -> None:
    """A mask of rounded down (or up) size covers all of its slide, as it does in a blend."""
    mask = np.random.default_rng(4).random((25, 19)) < 0.7
    slide = tb.from_array(np.zeros((*shape, 3), np.uint8), axes="yxc")
    outline(source(mask), tmp_path / "a.geojson", like=slide)
    large = np.pad(np.repeat(np.repeat(mask, 4, 0), 4, 1), ((0, 3), (0, 3)), mode="edge")[: shape[0], : shape[1]]
    np.testing.assert_array_equal(reread(tmp_path / "a.geojson", shape), large)
    composite = tb.Composite([tb.Layer(slide), tb.Layer(slide, mask=source(mask))])
    np.testing.assert_array_equal(WeightSource(composite, 1).read(Region.of_shape(shape))[:, :, 0] > 0, large)
    rings = json.loads((tmp_path / "a.geojson").read_text())["features"]
    corners = np.concatenate([r for f in rings for r in f["geometry"]["coordinates"]])
    assert corners.max(0).tolist() == [shape[1], shape[0]]


def test_labels_are_classes(tmp_path: Path) -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[2:8, 2:8], labels[4:6, 8:15], labels[15:, 15:] = 2, 5, 7
    done = outline(source(labels), tmp_path / "a.geojson", mask_values=tb.Labels((2, 5)))
    assert done.classes == {"label 2": 1, "label 5": 1}
    np.testing.assert_array_equal(reread(tmp_path / "a.geojson", (20, 20), "label 5"), labels == 5)


def test_soft_masks_are_cut_at_half(tmp_path: Path) -> None:
    soft = np.linspace(0, 1, 40, dtype=np.float32)[None].repeat(10, 0)
    outline(source(soft), tmp_path / "a.geojson")
    np.testing.assert_array_equal(reread(tmp_path / "a.geojson", (10, 40)), soft >= 0.5)


def test_nothing_inside_and_nothing_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    assert outline(source(np.zeros((5, 5), bool)), path).outlines == 0
    assert json.loads(path.read_text()) == {"type": "FeatureCollection", "features": []}
    with pytest.raises(RefusedError, match="exists"):
        outline(source(np.ones((5, 5), bool)), path)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiledblend.cli.main import run_command

    mask = np.random.default_rng(3).random((25, 19)) < 0.5
    tifffile.imwrite(tmp_path / "mask.tif", mask.astype(np.uint8) * 255, metadata=None)
    out = tmp_path / "a.geojson"
    assert run_command(["outline", str(tmp_path / "mask.tif"), "-o", str(out), "--class", "Tumor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"].keys() == {"Tumor"}
    np.testing.assert_array_equal(reread(out, (25, 19), "Tumor"), mask)
    assert run_command(["outline", str(tmp_path / "mask.tif"), "-o", str(out)]) == 3
