"""Metadata pass independent validators and mean what the specification says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from store_pixels import make_layout, random_pyramid, write_missing, write_result

from tiledblend.containers.commit import commit
from tiledblend.containers.image import ImageMetadata
from tiledblend.containers.omezarr.documents import root_attributes
from tiledblend.containers.output import begin
from tiledblend.errors import UsageError

KINDS: list[dict[str, Any]] = [
    {"channels": 3, "is_rgb": True},
    {"channels": 4, "is_rgb": True},
    {"channels": 1, "is_rgb": False, "dtype": "uint16"},
    {"channels": 7, "is_rgb": False, "dtype": "float32"},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_validators_accept(tmp_path: Path, kind: dict[str, Any], version: str) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    models = pytest.importorskip("ome_zarr_models")
    path = tmp_path / "out.ome.zarr"
    layout = make_layout((70, 50), ome_zarr=version, **kind)
    write_result(path, layout)
    yaozarrs.validate_zarr_store(str(path))
    import zarr

    image = models.open_ome_zarr(zarr.open_group(str(path), mode="r"))
    assert type(image).__module__.startswith(f"ome_zarr_models.v{version.replace('.', '')}")
    assert type(image).__name__ == "Image"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("size", [None, (0.5, 0.25)])
def test_attributes_validate(kind: dict[str, Any], version: str, size: tuple[float, float] | None) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    attributes = root_attributes(make_layout((70, 50), ome_zarr=version, **kind), ImageMetadata("x", size))
    own = attributes if version == "0.5" else {key: attributes[key] for key in ("multiscales", "omero")}
    yaozarrs.validate_ome_object(own["ome"] if version == "0.5" else own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, (0.5, 0.25)])
def test_0_6_is_what_its_readers_take(tmp_path: Path, kind: dict[str, Any], size: tuple[float, float] | None) -> None:
    layout = make_layout((70, 50), levels=2, ome_zarr="0.6", **kind)
    path = tmp_path / "out.ome.zarr"
    output = begin(str(path), layout, job={"by": "test"})
    write_missing(output, random_pyramid(layout))
    commit(output, ImageMetadata("x", size, origin_um=(10.0, 20.0) if size else None))
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["version"] == "0.6"
    ngff_zarr = pytest.importorskip("ngff_zarr")
    ngff_zarr.validate(attributes, version="0.6", strict=False)
    images = ngff_zarr.from_ngff_zarr(str(path), validate=True).images
    y, x = size or (1.0, 1.0)
    assert [(i.scale["y"], i.scale["x"]) for i in images] == [(y, x), (2 * y, 2 * x)]
    if size is not None:
        places = [(i.translation["y"], i.translation["x"]) for i in images]
        assert places == [(10, 20), (10 + y / 2, 20 + x / 2)]
    models = pytest.importorskip("ome_zarr_models.v06")
    import zarr

    models.Image.from_zarr(zarr.open_group(str(path), mode="r"))


def test_scale_translation_and_units() -> None:
    layout = make_layout((70, 50), levels=3)
    multiscale = root_attributes(layout, ImageMetadata("x", (0.5, 0.25)))["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "micrometer", "micrometer"]
    scale, translation = multiscale["datasets"][2]["coordinateTransformations"]
    assert scale["scale"] == [1.0, 2.0, 1.0]
    assert translation["translation"] == [0.0, 0.75, 0.375]
    unknown = root_attributes(layout, ImageMetadata("x"))["ome"]["multiscales"][0]
    assert not any("unit" in axis for axis in unknown["axes"])
    assert unknown["datasets"][1]["coordinateTransformations"][0]["scale"] == [1.0, 2.0, 2.0]
    assert unknown["datasets"][1]["coordinateTransformations"][1]["translation"] == [0.0, 0.5, 0.5]


def test_channels() -> None:
    rgb = root_attributes(make_layout((20, 20)), ImageMetadata("x"))["ome"]["omero"]["channels"]
    assert [channel["color"] for channel in rgb] == ["FF0000", "00FF00", "0000FF"]
    assert rgb[0]["window"] == {"min": 0, "max": 255, "start": 0, "end": 255}
    layout = make_layout((20, 20), 2, "uint16", is_rgb=False)
    image = ImageMetadata("x", None, ("DAPI", "CD8"), ("#0000ff", "ff00ffFF"), ((0, 900), (10, 70000)))
    given = root_attributes(layout, image)["ome"]["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in given] == [("DAPI", "0000FF"), ("CD8", "FF00FF")]
    assert given[1]["window"] == {"min": 0, "max": 70000, "start": 10, "end": 70000}
    for wrong in ({"channel_names": ("a",)}, {"channel_colors": ("red", "blue")}, {"windows": ((0, 1),)}):
        with pytest.raises(UsageError):
            root_attributes(layout, ImageMetadata("x", **wrong))


def test_root_keeps_job_and_manifest_hash(tmp_path: Path) -> None:
    import hashlib

    write_result(tmp_path / "o", make_layout((20, 20)))
    own = json.loads((tmp_path / "o/zarr.json").read_text())["attributes"]["tiledblend"]
    assert own["job"]["feather"] == {"sigma": 16}
    assert own["manifest_sha256"] == hashlib.sha256((tmp_path / "o.manifest").read_bytes()).hexdigest()
