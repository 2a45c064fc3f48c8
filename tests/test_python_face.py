"""The Python face as a user meets it: examples, words for what is given as text, short lines for what is shown."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import tiledblend as tb
from tiledblend.errors import UsageError


def image(shape: tuple[int, ...] = (60, 80, 3), axes: str = "yxc", **options: Any) -> tb.RasterSource:
    return tb.from_array(np.zeros(shape, np.uint8), axes=axes, **options)


def test_every_function_has_an_example_that_runs() -> None:
    """pytest runs them: --doctest-modules over the package."""
    functions = [getattr(tb, name) for name in tb.__all__ if inspect.isfunction(getattr(tb, name))]
    assert len(functions) >= 14
    assert [found.__name__ for found in functions if ">>> " not in (found.__doc__ or "")] == []


def test_the_help_of_write_says_what_output_and_progress_are() -> None:
    said = " ".join((tb.write.__doc__ or "").split())
    assert "output: how it is stored, an `OutputSpec`" in said
    assert "progress: a function that is called with a `ProgressEvent`" in said


@pytest.mark.parametrize("feather", ["8um", "16px", 16, "bands:3", {"ksize": 5}])
def test_a_feather_may_be_text(feather: Any) -> None:
    mask = tb.from_array(np.ones((60, 80), bool), axes="yx", mask=True)
    layer = tb.Layer(image(), mask=mask, feather=feather)
    assert layer.feather == tb.Feather.parse(feather)


def test_open_takes_classes(tmp_path: Path) -> None:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, 0], [x + 10, 0], [x + 10, 10], [x, 10], [x, 0]]]},
            "properties": {"classification": {"name": name}},
        }
        for x, name in ((0, "Tumor"), (20, "Stroma"))
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(features))
    for classes, count in (("Tumor", 100), (["Tumor", "Stroma"], 200), ((), 200)):
        mask = tb.open(path, classes=classes)
        assert mask.read(tb.Region.of_shape(mask.shape)).sum() == count
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match="classes and invalid are for outlines"):
        tb.open(tmp_path / "a.tif", classes="Tumor")


def test_channels_that_are_said_to_be_rgb_are_stored_as_rgb(tmp_path: Path) -> None:
    planes = (3, 60, 80)
    assert image(planes, "cyx", rgb=True).is_rgb
    assert not image((60, 80, 3), "yxc", rgb=False).is_rgb
    doubted = image(planes, "cyx")
    assert not doubted.is_rgb
    assert "give rgb=True" in doubted.info.notes[0]
    assert image(planes, "cyx", rgb=False).info.notes == image((60, 80, 3)).info.notes == ()
    with pytest.raises(UsageError, match="rgb needs three colour channels, and the array has 2"):
        image((2, 60, 80), "cyx", rgb=True)
    for rgb in (True, None):
        out = tmp_path / f"{rgb}.ome.zarr"
        tb.write(tb.Composite([tb.Layer(image(planes, "cyx", rgb=rgb))]), out)
        chunks = zarr.open_array(str(out / "0"), mode="r").chunks
        assert chunks[0] == (3 if rgb else 1)  # OME-Zarr of RGB holds all channels in a chunk


def test_plans_and_reports_are_shown_in_one_short_line(tmp_path: Path) -> None:
    composite = tb.Composite([tb.Layer(image()), tb.Layer(image())])
    planned = tb.plan(composite)
    report = tb.write(composite, tmp_path / "a.ome.zarr")
    for shown in (planned, report):
        assert len(repr(shown)) < 120 + len(str(tmp_path))
        assert "\n" not in repr(shown)
    assert repr(planned) == "<Plan: 60 x 80 px (y x x), 3 of uint8, 1 levels, 1 tiles; 100 % copied, 1 notes>"
    assert repr(report).startswith(f"<RunReport {tmp_path}/a.ome.zarr: 60 x 80 px (y x x), 3 of uint8, 1 tiles in ")
    assert tb.verify(tmp_path / "a.ome.zarr", "full").ok
