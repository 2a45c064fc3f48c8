"""ICC profile and objective power: carried by every reader, and the power into an OME-TIFF."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from ndpi import ndpi_bytes
from PIL import Image, ImageCms

from tiledblend.run.ometiff import export_ometiff
from tiledblend.sources import from_array, open_source

PIXELS = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_an_icc_profile_is_carried_as_stored(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".tif"):
        tifffile.imwrite(path, PIXELS, photometric="rgb", iccprofile=PROFILE)
    else:
        Image.fromarray(PIXELS).save(path, icc_profile=PROFILE)
    with Image.open(path) as image:
        assert image.info["icc_profile"] == PROFILE
    source = open_source(path)
    assert source.icc_profile == PROFILE
    assert source.icc_digest == hashlib.sha256(PROFILE).hexdigest()
    assert open_source(path, channels=(0, 1, 2), level=0).icc_profile == PROFILE


def test_no_profile(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    source = open_source(tmp_path / "a.png")
    assert (source.icc_profile, source.icc_digest) == (None, None)
    assert from_array(PIXELS, axes="yxc").icc_profile is None


def test_the_objectives_power_goes_into_an_ometiff_and_comes_back(tmp_path: Path) -> None:
    ome_types = pytest.importorskip("ome_types", reason="ome-types is not installed")
    slide = tmp_path / "slide.svs"
    text = "Aperio Image Library v1\r\n64x48|AppMag = 40|MPP = 0.25"
    tifffile.imwrite(slide, PIXELS, photometric="rgb", tile=(16, 16), description=text, metadata=None)
    source = open_source(slide)
    assert (source.magnification, source.pixel_size_um) == (40.0, (0.25, 0.25))
    out = tmp_path / "out.ome.tif"
    export_ometiff(source, out)
    with tifffile.TiffFile(out) as tiff:
        ome = ome_types.from_xml(tiff.ome_metadata)
    objective = ome.instruments[0].objectives[0]
    assert objective.nominal_magnification == 40
    assert ome.images[0].objective_settings.id == objective.id
    assert open_source(out).magnification == 40.0
    assert from_array(PIXELS, axes="yxc").magnification is None


def test_the_power_of_hamamatsus_objective(tmp_path: Path) -> None:
    path = tmp_path / "a.ndpi"
    path.write_bytes(ndpi_bytes(PIXELS))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.ndpi_tags["Magnification"] == 20
    assert open_source(path).magnification == 20.0
