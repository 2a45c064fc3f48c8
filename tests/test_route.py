"""Seams: the cut against all there are, and routes that follow a corridor in which two images agree."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize

from tiledblend.kernels.cut import least_cut

Array = NDArray[Any]


def seam_cost(cost: Array, labels: Array) -> int:
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    return int(((cost[1:] + cost[:-1]) * down).sum() + ((cost[:, 1:] + cost[:, :-1]) * across).sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9999), height=st.integers(1, 4), width=st.integers(2, 6), free=st.integers(1, 9))
def test_no_seam_is_cheaper(seed: int, height: int, width: int, free: int) -> None:
    """Against every labelling of the band."""
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 20, (height, width)).astype(np.int32)
    inside = rng.random((height, width)) < 0.5
    band = np.zeros(height * width, bool)
    band[rng.permutation(height * width)[:free]] = True
    band = band.reshape(height, width)
    got = least_cut(cost, inside, band)
    np.testing.assert_array_equal(got[~band], inside[~band])
    best = None
    for choice in itertools.product((False, True), repeat=int(band.sum())):
        labels = inside.copy()
        labels[band] = choice
        best = min(seam_cost(cost, labels), seam_cost(cost, labels) if best is None else best)
    assert seam_cost(cost, got) == best


def save(path: Path, pixels: Array) -> Array:
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb" if pixels.ndim == 3 else "minisblack")
    return pixels


@pytest.fixture
def corridor(tmp_path: Path) -> Array:
    """The corridor: a wavy closed band, 9 px wide, where b.tif and o.tif are the same. m.tif: a disc nearby."""
    rng = np.random.default_rng(3)
    base = (cv2.GaussianBlur(rng.random((400, 500, 3)), (0, 0), 6) * 300).clip(0, 190).astype(np.uint8)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 120 + 14 * np.sin(7 * angle)
    points = np.stack([250 + radius * np.cos(angle), 200 + radius * np.sin(angle)], axis=1).round().astype(np.int32)
    same = np.zeros((400, 500), np.uint8)
    cv2.polylines(same, [points], True, 1, 9)
    overlay = np.where(same[..., None] > 0, base, base + np.uint8(55))
    save(tmp_path / "b.tif", base)
    save(tmp_path / "o.tif", overlay)
    y, x = np.mgrid[:400, :500]
    save(tmp_path / "m.tif", ((y - 200) ** 2 + (x - 250) ** 2 < 115**2).astype(np.uint8) * np.uint8(255))
    return same > 0


FLAGS = ("m.tif", "--base", "b.tif", "--overlay", "o.tif", "--within", "40px")


def drawn(path: Path, shape: tuple[int, int]) -> Array:
    """The outlines as a mask, by rasterio."""
    features = json.loads(path.read_text())["features"]
    geometries = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    return rasterize(geometries, out_shape=shape).astype(bool)


def test_a_route_follows_the_corridor(corridor: Array, command: Command, tmp_path: Path) -> None:
    done = command("route", *FLAGS, "-o", "r.geojson", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert told["outlines"] == 1
    assert told["after"] < 0.75 * told["before"]
    inside = drawn(tmp_path / "r.geojson", corridor.shape)
    edge = (inside[1:] != inside[:-1]) & ~(corridor[1:] & corridor[:-1])
    assert edge.sum() == 0
    # No further from the mask's edge than it may be, and the same each time.
    mask = tifffile.imread(tmp_path / "m.tif") > 0
    moved = inside != mask
    near = cv2.distanceTransform((moved).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert 0 < near.max() <= 41
    assert command("route", *FLAGS, "-o", "again.geojson").code == 0
    assert (drawn(tmp_path / "again.geojson", corridor.shape) == inside).all()
    # A blend takes it as it is, and its seam is the better one.
    blend = ("b.tif", "o.tif", "--mask", "r.geojson", "-o", "out.ome.zarr", "--chunk", "64", "--shard", "128")
    assert command("blend", *blend).code == 0
    seams = json.loads(command("seams", "b.tif", "o.tif", "--mask", "r.geojson", "--json").out)["seams"]
    assert seams[0]["before"]["mean"] == pytest.approx(told["after"])


def test_small_areas_and_holes_are_moved_and_stay(corridor: Array, command: Command, tmp_path: Path) -> None:
    mask = tifffile.imread(tmp_path / "m.tif")
    mask[190:210, 240:260] = 0  # a hole narrower than the distance
    mask[20:30, 20:40] = 255  # and an area
    save(tmp_path / "m.tif", mask)
    assert command("route", *FLAGS, "-o", "r.geojson").code == 0
    polygons = [feature["geometry"] for feature in json.loads((tmp_path / "r.geojson").read_text())["features"]]
    assert len(polygons) == 2
    assert sum(len(polygon["coordinates"]) for polygon in polygons) == 3


def test_wrong_routes(corridor: Array, command: Command, tmp_path: Path) -> None:
    for flags, code, says in (
        ((*FLAGS[:5], "--within", "wide", "-o", "r.geojson"), 2, "--within 'wide' is not understood"),
        ((*FLAGS[:5], "--within", "0px", "-o", "r.geojson"), 2, "must be above 0"),
        ((*FLAGS[:5], "--within", "5um", "-o", "r.geojson"), 2, "needs a pixel size"),
        ((*FLAGS, "-o", "b.tif"), 3, "b.tif"),
    ):
        done = command("route", *flags)
        assert (done.code, says in done.error) == (code, True), done.err
    save(tmp_path / "m.tif", np.full((400, 500), 255, np.uint8))
    done = command("route", *FLAGS, "-o", "r.geojson")
    assert done.code == 4
    assert "no edge on the canvas" in done.error
