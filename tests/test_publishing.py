"""Results for publication: no folder of an input is left anywhere, and all else is as without the flag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Command

from tiledblend.describe.publishing import text_without_folders, without_folders

SIZES = ("--chunk", "64", "--shard", "128")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Inputs in a folder that tells a patient's name."""
    folder = tmp_path / "patient smith & sons" / "he"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    for name in ("base", "over"):
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb", tile=(64, 64))
    square = [[10, 10], [150, 10], [150, 150], [10, 150], [10, 10]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    (folder / "m.geojson").write_text(json.dumps([feature, {"type": "Feature", "geometry": None, "properties": {}}]))
    (folder / "matrix.txt").write_text("1 0 2.5 0 1 0")
    return folder


def everything_in(path: Path) -> bytes:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return b"".join(file.read_bytes() for file in files)


@pytest.mark.parametrize("out", ["out.ome.zarr", "out.ozx", "out.ome.tif", "out.tif"])
def test_no_folder_is_left_in_result_and_report(secret: Path, tmp_path: Path, command: Command, out: str) -> None:
    layers = (secret / "base.tif", secret / "over.tif", "--mask", secret / "m.geojson", "--feather", "3px")
    more = ("--layer", f"{{image: '{secret / 'over.tif'}', affine: '{secret / 'matrix.txt'}', opacity: 0.3}}")
    made = secret / out  # the result's own folder is left out of the report, too
    ran = command("blend", *layers, *more, *SIZES, "-o", made, "--no-paths", "--report", "a.html")
    assert ran.code == 0, ran.err
    for found in (everything_in(made), (tmp_path / "a.html").read_bytes()):
        assert b"smith" not in found
    page = (tmp_path / "a.html").read_text("utf-8")
    assert all(name in page for name in ("base.tif", "over.tif", "m.geojson"))
    if out.endswith(".ome.zarr"):
        own = json.loads((made / "zarr.json").read_text())["attributes"]["tiledblend"]
        assert own["description"]["layers"][0] == {"image": "base.tif"}
        assert [known["uri"] for known in own["job"]["inputs"]] == ["base.tif", "over.tif", "m.geojson", "over.tif"][:3]
        assert all(len(known["structure"]) == 64 for known in own["job"]["inputs"])
        plain = command("blend", *layers, *more, *SIZES, "-o", "plain.ome.zarr")
        assert plain.code == 0
        assert b"smith" in everything_in(tmp_path / "plain.ome.zarr")
        for chunk in (tmp_path / "plain.ome.zarr" / "0").rglob("*"):
            if chunk.is_file():
                assert chunk.read_bytes() == (made / chunk.relative_to(tmp_path / "plain.ome.zarr")).read_bytes()
        assert command("verify", made).code == 0
        assert command("blend", *layers, *more, *SIZES, "-o", made, "--no-paths", "--resume").code == 0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"canvas": {"like": "/a b/c.tif"}}, {"canvas": {"like": "c.tif"}}),
        ({"image": {"path": "https://h/x/y.tif", "series": 1}}, {"image": {"path": "y.tif", "series": 1}}),
        ({"uri": "memory:numpy array", "mask": "alpha"}, {"uri": "memory:numpy array", "mask": "alpha"}),
        ({"affine": {"matrix": "/k/m.txt"}}, {"affine": {"matrix": "m.txt"}}),
        (
            {"changed": ["input /p/q/a.tif: other size", "s3://b/k/c.tif gone"]},
            {"changed": ["input a.tif: other size", "c.tif gone"]},
        ),
    ],
)
def test_documents(document: Any, expected: Any) -> None:
    assert without_folders(document) == expected


def test_texts() -> None:
    text = "/a/b/c.tif: 3 notes; s3://k/b/m.tif and /a/b/other.tif; /etc/x"
    assert text_without_folders(text, ["/a/b/c.tif", "s3://k/b/m.tif"]) == "c.tif: 3 notes; m.tif and other.tif; /etc/x"
