"""Where OME-Zarr inputs say that they lie, and how they are to be shown, comes through to the result."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tiledblend as tb
from tiledblend.cli.main import run_command
from tiledblend.errors import BadInputError

RNG = np.random.default_rng(11)
CYX = RNG.integers(1, 256, (3, 128, 160), dtype=np.uint8)


def image(
    path: Path,
    values: np.ndarray,
    *,
    size: float | tuple[float, float] = 0.5,
    place: tuple[float, float] | None = None,
    channels: list[dict[str, Any]] | None = None,
) -> Path:
    """An OME-Zarr 0.5 of one level, in micrometres."""
    y, x = size if isinstance(size, tuple) else (size, size)
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1, y, x]}]
    if place is not None:
        steps.append({"type": "translation", "translation": [0, *place]})
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("0", data=values, chunks=(1, 64, 64))
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [{"name": "m", "axes": axes, "datasets": datasets}]}
    group.attrs["ome"] = ome | ({"omero": {"channels": channels}} if channels else {})
    return path


def run(*arguments: Any) -> str:
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        code = run_command([str(argument) for argument in arguments])
    assert code == 0, told.getvalue()
    return told.getvalue()


def ome_of(path: Path) -> dict[str, Any]:
    ome: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    return ome


def places_of(path: Path) -> list[list[float]]:
    datasets = ome_of(path)["multiscales"][0]["datasets"]
    return [dataset["coordinateTransformations"][1]["translation"][1:] for dataset in datasets]


def test_a_cut_out_goes_where_it_was_cut_from_and_the_result_where_its_base_was(tmp_path: Path) -> None:
    base = image(tmp_path / "base", CYX * 0, place=(1000, 2000))
    crop = image(tmp_path / "crop", CYX[:, 40:80, 64:128].copy(), place=(1020, 2032))
    out = tmp_path / "out.ome.zarr"
    assert "place       1020, 2032 µm (y, x)" in run("info", crop)
    assert json.loads(run("info", crop, "--json"))["images"][0]["origin_um"] == [1020, 2032]
    assert "lies at 40.000, 64.000 px" in run("plan", base, crop, "--fit", "physical")
    run("blend", base, crop, "--fit", "physical", "-o", out, "--chunk", 32, "--shard", 64)
    expected = np.zeros_like(CYX)
    expected[:, 40:80, 64:128] = CYX[:, 40:80, 64:128]
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], expected)
    assert places_of(out)[:2] == [[1000, 2000], [1000.25, 2000.25]]


def test_a_coarser_cut_out_lies_by_its_corner(tmp_path: Path) -> None:
    base = tb.open(image(tmp_path / "base", CYX, place=(0, 0)))
    # pixels of 1 um, whose first covers those of 0.5 um from 20 and 30 um on
    crop = tb.open(image(tmp_path / "crop", CYX[:, :20, :20].copy(), size=1.0, place=(20.25, 30.25)))
    composite = tb.Composite([tb.Layer(base), tb.Layer(crop, fit="physical")])
    assert composite.exact_offset(composite.layers[1]) == (40, 60)


def test_an_offset_wins_and_zeros_place_nothing(tmp_path: Path) -> None:
    base = tb.open(image(tmp_path / "base", CYX, place=(1000, 2000)))
    crop = tb.open(image(tmp_path / "crop", CYX[:, :20, :20].copy(), place=(1020, 2032)))
    layer = tb.Layer(crop, fit="physical", offset=(3, 4))
    assert tb.Composite([tb.Layer(base), layer]).exact_offset(layer) == (3, 4)
    never = tb.open(image(tmp_path / "never", CYX))
    coarse = tb.Layer(tb.open(image(tmp_path / "coarse", CYX[:, ::2, ::2].copy(), size=1.0)), fit="physical")
    assert tb.Composite([tb.Layer(never), coarse]).exact_offset(coarse) == (0, 0)


def test_a_place_that_the_canvas_does_not_share_is_said(tmp_path: Path) -> None:
    base = tb.from_array(np.moveaxis(CYX, 0, 2), axes="yxc", pixel_size_um=(0.5, 0.5))
    crop = tb.open(image(tmp_path / "crop", CYX[:, :20, :20].copy(), place=(20, 32)))
    with pytest.raises(BadInputError, match="give --offset 20um,32um if the canvas, which says no place"):
        tb.Composite([tb.Layer(base), tb.Layer(crop, fit="physical")])
    far = tb.open(image(tmp_path / "far", CYX[:, :20, :20].copy(), place=(9000, 9000)))
    placed = tb.open(image(tmp_path / "placed", CYX, place=(0, 0)))
    with pytest.raises(BadInputError, match="at 18000, 18000, by the translations of both, lies wholly outside"):
        tb.Composite([tb.Layer(placed), tb.Layer(far, fit="physical")])


def test_a_canvas_around_the_base_begins_where_it_begins(tmp_path: Path) -> None:
    base = tb.open(image(tmp_path / "base", CYX, place=(1000, 2000)))
    around = tb.Canvas((200, 200), pixel_size_um=(0.5, 0.5))
    assert tb.Composite([tb.Layer(base, offset=(10, 20))], canvas=around).full.origin_um == (995, 1990)
    from tiledblend.describe.levels import at_level

    assert at_level(tb.Composite([tb.Layer(base)]), 2).grid.origin_um == (1000.75, 2000.75)
    assert tb.open(tmp_path / "base").origin_um == (1000, 2000)


def window(start: float, end: float) -> dict[str, Any]:
    return {"window": {"start": start, "end": end, "min": 0, "max": 65535}, "color": "00FF00", "label": "x"}


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
def test_windows_are_carried_and_made_from_the_data_where_there_are_none(tmp_path: Path, version: str) -> None:
    values = RNG.integers(200, 1200, (2, 96, 96)).astype(np.uint16)
    named = image(tmp_path / "a", values, channels=[window(5, 900), window(10, 70)])
    run("blend", named, "-o", tmp_path / "o", "--chunk", 32, "--shard", 32, "--ome-zarr", version)
    document = ".zattrs" if version == "0.4" else "zarr.json"
    attributes = json.loads((tmp_path / "o" / document).read_text())
    omero = (attributes if version == "0.4" else attributes["attributes"]["ome"])["omero"]
    assert [(c["window"]["start"], c["window"]["end"]) for c in omero["channels"]] == [(5, 900), (10, 70)]
    run("blend", image(tmp_path / "b", values), "-o", tmp_path / "p", "--chunk", 32, "--shard", 32)
    for channel, made in enumerate(ome_of(tmp_path / "p")["omero"]["channels"]):
        coarsest = zarr.open_array(tmp_path / "p" / "2", mode="r")[channel]
        low, high = np.percentile(coarsest, (0.1, 99.9))
        assert (made["window"]["start"], made["window"]["end"]) == (int(low), int(np.ceil(high)))
        assert (made["window"]["min"], made["window"]["max"]) == (0, 65535)


def test_windows_of_floats_rgb_and_bytes(tmp_path: Path) -> None:
    floats = RNG.normal(1e4, 10, (1, 64, 64)).astype(np.float32)
    floats[0, :9] = np.nan
    run("blend", image(tmp_path / "a", floats), "-o", tmp_path / "o")
    (found,) = ome_of(tmp_path / "o")["omero"]["channels"]
    assert 9950 < found["window"]["start"] < found["window"]["end"] < 10050
    rgb16 = np.stack([np.full((64, 64), value, np.uint16) for value in (100, 200, 300)])
    run("blend", image(tmp_path / "b", rgb16), "--rgb", "-o", tmp_path / "p")
    shown = [
        (c["label"], c["window"]["start"], c["window"]["end"]) for c in ome_of(tmp_path / "p")["omero"]["channels"]
    ]
    assert shown == [("red", 100, 300), ("green", 100, 300), ("blue", 100, 300)]
    run("blend", image(tmp_path / "c", CYX), "-o", tmp_path / "q")
    assert {c["window"]["end"] for c in ome_of(tmp_path / "q")["omero"]["channels"]} == {255}


def test_rgb_by_flag_and_by_key(tmp_path: Path) -> None:
    base, top = image(tmp_path / "a", CYX), image(tmp_path / "b", CYX[::-1].copy())
    assert "give --rgb" in run("plan", base, top)
    run("blend", base, top, "--opacity", 0.5, "--rgb", "-o", tmp_path / "o")
    job = {"layers": [{"image": {"path": str(base), "rgb": True}}, {"image": str(top), "opacity": 0.5}]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    run("blend", "--job", tmp_path / "job.json", "-o", tmp_path / "p")
    for name in ("o", "p"):
        assert [c["label"] for c in ome_of(tmp_path / name)["omero"]["channels"]] == ["red", "green", "blue"]
        sharding = json.loads((tmp_path / name / "0/zarr.json").read_text())["codecs"][0]["configuration"]
        assert sharding["chunk_shape"][0] == 3
