"""Layers placed by the scene of their store: against ngff-zarr's writer and matrices made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tiledblend as tb
from tiledblend.compose.lazy import to_array
from tiledblend.errors import BadInputError, UsageError

RNG = np.random.default_rng(6)
BASE = RNG.integers(0, 200, (3, 120, 150), dtype=np.uint8)
TOP = RNG.integers(200, 256, (3, 40, 50), dtype=np.uint8)


def identifier(path: str | None, name: str | None) -> dict[str, str]:
    return {key: value for key, value in (("path", path), ("name", name)) if value is not None}


def joined(kind: dict[str, Any], source: tuple[str | None, str | None], target: tuple[str | None, str | None]) -> Any:
    return {**kind, "input": identifier(*source), "output": identifier(*target)}


def affine(rows: list[list[float]]) -> dict[str, Any]:
    """Of c, y, x: rows are those of y and x, [y, x, shift]."""
    return {"type": "affine", "affine": [[1, 0, 0, 0], *([0, *row] for row in rows)]}


def image(path: Path, values: np.ndarray, size: float, *, levels: int = 1, extra: Any = None) -> None:
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    group = zarr.create_group(path, zarr_format=3)
    datasets = []
    for k in range(levels):
        group.create_array(str(k), data=np.ascontiguousarray(values[:, :: 2**k, :: 2**k]), chunks=(3, 32, 32))
        steps = [
            {"type": "scale", "scale": [1, size * 2**k, size * 2**k]},
            {"type": "translation", "translation": [0, size * (2**k - 1) / 2, size * (2**k - 1) / 2]},
        ]
        ends = {"input": {"path": str(k)}, "output": {"name": "physical"}}
        datasets.append(
            {"path": str(k), "coordinateTransformations": [{"type": "sequence", "transformations": steps, **ends}]}
        )
    systems = [{"name": "physical", "axes": axes}, {"name": "stage", "axes": axes}]
    multiscale = {"name": "m", "coordinateSystems": systems, "datasets": datasets}
    if extra is not None:
        multiscale["coordinateTransformations"] = [extra]
    group.attrs["ome"] = {"version": "0.6", "multiscales": [multiscale]}


def store(path: Path, transformations: list[Any], *, size: float = 0.5, **more: Any) -> tuple[tb.Layer, Path]:
    group = zarr.create_group(path, zarr_format=3)
    scene = {"coordinateTransformations": transformations, **more}
    group.attrs["ome"] = {"version": "0.6", "scene": scene}
    image(path / "base", BASE, 0.5, levels=2)
    image(path / "top", TOP, size)
    return tb.Layer(tb.open(path / "top"), fit="scene"), path


def placed(layer: tb.Layer, path: Path, **how: Any) -> tb.Composite:
    return tb.Composite([tb.Layer(tb.open(path / "base"), **how), layer])


SHIFT = affine([[1, 0, 10], [0, 1, 20]])  # micrometres: 20 and 40 pixels


@pytest.mark.parametrize(
    "transformations",
    [
        [joined(SHIFT, ("top", "physical"), ("base", "physical"))],
        [joined(SHIFT, ("top", None), ("base", None))],
        [joined(affine([[1, 0, -10], [0, 1, -20]]), ("base", "physical"), ("top", "physical"))],
        [
            joined(affine([[1, 0, 110], [0, 1, 220]]), ("top", "physical"), (None, "world")),
            joined(affine([[1, 0, 100], [0, 1, 200]]), ("base", "physical"), (None, "world")),
        ],
        [
            joined({"type": "translation", "translation": [0, 4, 8]}, ("top", "physical"), (None, "a")),
            joined({"type": "translation", "translation": [0, 6, 12]}, (None, "a"), ("base", "physical")),
        ],
    ],
)
def test_a_whole_shift_comes_through_bit_for_bit(tmp_path: Path, transformations: list[Any]) -> None:
    layer, path = store(tmp_path / "s", transformations)
    expected = np.moveaxis(BASE, 0, 2).copy()
    expected[20:60, 40:90] = np.moveaxis(TOP, 0, 2)
    np.testing.assert_array_equal(to_array(placed(layer, path)), expected)


def test_a_turn_is_the_same_as_its_matrix(tmp_path: Path) -> None:
    # micrometres (y, x) of the top image to those of the base
    layer, path = store(
        tmp_path / "s",
        [joined(affine([[0.8, -0.3, 12], [0.3, 0.8, 15]]), ("top", "physical"), ("base", "physical"))],
        size=1.0,
    )
    found = placed(layer, path).layers[1].affine
    assert found is not None
    # pixel (y, x) of the top: micrometres = index * 1.0; of the base: index = micrometres / 0.5
    for y, x in ((0, 0), (7, 11), (39, 3)):
        at_y, at_x = (0.8 * y - 0.3 * x + 12) / 0.5, (0.3 * y + 0.8 * x + 15) / 0.5
        assert found.of(x + 0.5, y + 0.5) == pytest.approx((at_x + 0.5, at_y + 0.5))
    by_hand = tb.Layer(layer.image, affine=found)
    np.testing.assert_array_equal(to_array(placed(layer, path)), to_array(placed(by_hand, path)))


def test_systems_of_the_images_themselves_are_ways(tmp_path: Path) -> None:
    to_stage = joined({"type": "translation", "translation": [0, 3, 6]}, (None, "physical"), (None, "stage"))
    path = tmp_path / "s"
    layer, _ = store(
        path, [joined({"type": "translation", "translation": [0, 7, 14]}, ("top", "stage"), ("base", None))]
    )
    import shutil

    shutil.rmtree(path / "top")
    image(path / "top", TOP, 0.5, extra=to_stage)
    layer = tb.Layer(tb.open(path / "top"), fit="scene")
    assert placed(layer, path).layers[1].affine.whole_shift == (20, 40)


def test_a_projection_and_other_axes(tmp_path: Path) -> None:
    plane = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    world = {"coordinateSystems": [{"name": "world", "axes": plane}]}
    drop = {"type": "projectAxis", "droppedInputs": [0]}
    ways = [joined(drop, ("top", "physical"), (None, "world")), joined(drop, ("base", "physical"), (None, "world"))]
    layer, path = store(tmp_path / "s", ways, **world)
    assert placed(layer, path).layers[1].affine.whole_shift == (0, 0)
    mixed = {"type": "affine", "affine": [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]}
    layer, path = store(tmp_path / "t", [joined(mixed, ("top", "physical"), ("base", "physical"))])
    with pytest.raises(BadInputError, match=r"does not lead from it to .*mixes other axes into y and x"):
        placed(layer, path)


def test_levels_and_offsets_count(tmp_path: Path) -> None:
    layer, path = store(tmp_path / "s", [joined(SHIFT, ("top", "physical"), ("base", "physical"))])
    coarse = tb.Composite([tb.Layer(tb.open(path / "base", level=1)), layer]).layers[1].affine
    assert coarse is not None
    assert coarse.of(0, 0) == pytest.approx((20, 10))
    assert coarse.of(50, 40) == pytest.approx((45, 30))
    canvas = tb.Canvas((200, 200))
    shifted = tb.Composite([tb.Layer(tb.open(path / "base"), offset=(5, 6)), layer], canvas=canvas)
    assert shifted.layers[1].affine.whole_shift == (25, 46)


def test_what_a_scene_does_not_say_is_said(tmp_path: Path) -> None:
    layer, path = store(tmp_path / "s", [joined(SHIFT, ("top", "physical"), (None, "world"))])
    with pytest.raises(BadInputError, match="does not lead from it to"):
        placed(layer, path)
    image(tmp_path / "alone", TOP, 0.5)
    alone = tb.Layer(tb.open(tmp_path / "alone"), fit="scene")
    with pytest.raises(BadInputError, match="no scene is above it"):
        placed(alone, path)
    array = tb.Layer(tb.from_array(np.moveaxis(TOP, 0, 2), axes="yxc"), fit="scene")
    with pytest.raises(BadInputError, match="fit scene is for OME-Zarr images"):
        placed(array, path)
    with pytest.raises(UsageError, match="the bottom layer of a scene lies as it is"):
        tb.Composite([tb.Layer(tb.open(path / "base"), fit="scene"), layer])
    with pytest.raises(UsageError, match="both fit scene and an offset"):
        tb.Layer(layer.image, fit="scene", offset=(1, 2))
    field = {"type": "displacements", "path": "field"}
    layer, path = store(tmp_path / "t", [joined(field, ("top", "physical"), ("base", "physical"))])
    with pytest.raises(BadInputError, match="'displacements' is not affine"):
        placed(layer, path)
    with pytest.raises(BadInputError, match="a scene of images, not one image"):
        tb.open(path)


@pytest.mark.filterwarnings("ignore")
def test_what_ngff_zarr_writes_and_the_command_line(tmp_path: Path) -> None:
    nz = pytest.importorskip("ngff_zarr")
    from ngff_zarr.scene import NgffScene
    from ngff_zarr.v06 import zarr_metadata as v06

    def multiscales(values: np.ndarray) -> Any:
        made = nz.to_ngff_image(
            values,
            dims=list("cyx"),
            scale={"c": 1, "y": 0.5, "x": 0.5},
            axes_units={"y": "micrometer", "x": "micrometer"},
        )
        return nz.to_multiscales(made, scale_factors=[], chunks=32)

    path = tmp_path / "s.ome.zarr"
    names = [v06.CoordinateSystemIdentifier(path=name, name="intrinsic") for name in ("top", "base")]
    way = v06.Affine(affine=[[1, 0, 0, 0], [0, 1, 0, 10], [0, 0, 1, 20]], input=names[0], output=names[1])
    NgffScene({"top": multiscales(TOP), "base": multiscales(BASE)}, [way]).to_ome_zarr(str(path), version="0.6")
    from tiledblend.cli.main import run_command

    out = tmp_path / "out.ome.zarr"
    assert run_command(["blend", f"{path}/base", f"{path}/top", "--fit", "scene", "-o", str(out)]) == 0
    expected = BASE.copy()
    expected[:, 20:60, 40:90] = TOP
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], expected)
