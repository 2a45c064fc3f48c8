"""The demo's slides are real slides, the same for the same seed, and the demo does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import Command
from PIL import Image

from tiledblend.demo.demo import run_demo
from tiledblend.demo.tissue import Slides, Tissue, make_slides
from tiledblend.errors import RefusedError, UsageError
from tiledblend.geometry import Region


def test_slides_are_pyramidal_ome_tiff_with_pixel_size(slides: Slides) -> None:
    for path in (slides.base, slides.overlay):
        with tifffile.TiffFile(path) as tiff:
            levels = tiff.series[0].levels
            assert tiff.is_ome
            assert [level.shape for level in levels] == [(1000, 1000, 3), (500, 500, 3)]
            assert [level.keyframe.tile for level in levels] == [(256, 256)] * 2
            assert {level.keyframe.compression.name for level in levels} == {"JPEG"}
            assert 'PhysicalSizeX="0.5"' in (tiff.ome_metadata or "")
            full, half = levels[0].asarray().astype(int), levels[1].asarray().astype(int)
        mean = full.reshape(500, 2, 500, 2, 3).mean((1, 3))
        assert np.abs(half - mean).mean() < 4  # JPEG apart
    with tifffile.TiffFile(slides.mask) as tiff:
        assert tiff.pages[0].shape == (63, 63)
        assert set(np.unique(tiff.asarray())) == {0, 255}


def test_openslide_reads_the_slides(slides: Slides) -> None:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(str(slides.base)) as slide:
        assert slide.dimensions == (1000, 1000)
        seen = np.asarray(slide.read_region((256, 256), 0, (100, 100)))[:, :, :3].astype(int)
    own = tifffile.imread(slides.base)[256:356, 256:356].astype(int)
    assert np.abs(seen - own).mean() < 3


def test_it_looks_like_tissue() -> None:
    """Bare glass is nearly white, H&E is pink and blue-violet, the second stain is brown in places, and both show the
    same cells."""
    tissue = Tissue(4096, seed=7)
    he, ihc = (part.astype(int) for part in tissue.render(Region(1200, 1200, 2224, 2224)))
    glass, _ = tissue.render(Region(0, 0, 64, 64))
    assert glass.min() > 225
    red, green, blue = (he[..., channel] for channel in range(3))
    assert (red > green + 40).mean() > 0.25
    assert ((blue > red + 15) & (green < 120)).mean() > 0.02
    brown = (ihc[..., 0] > ihc[..., 2] + 30).mean()
    assert 0.005 < brown < 0.6
    assert np.corrcoef(he.sum(2).ravel(), ihc.sum(2).ravel())[0, 1] > 0.5


def test_pieces_are_the_whole() -> None:
    """Pixels depend on their place only: patches meet without a seam."""
    tissue = Tissue(1024, seed=1)
    whole = tissue.render(Region(0, 0, 300, 300))
    part = tissue.render(Region(100, 36, 200, 228))
    for one, other in zip(whole, part, strict=True):
        difference = np.abs(one[100:200, 36:228].astype(int) - other)
        assert difference.max() <= 3  # OpenCV's remap rounds its coordinates
        assert difference.mean() < 0.1


def test_same_seed_same_slides(tmp_path: Path) -> None:
    one, other, third = (make_slides(tmp_path / str(i), 300, seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert np.array_equal(tifffile.imread(one.base), tifffile.imread(other.base))
    assert not np.array_equal(tifffile.imread(one.base), tifffile.imread(third.base))


def test_demo_says_what_it_did(tiledblend: Command, tmp_path: Path) -> None:
    ran = tiledblend("demo", "--size", 1200, "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    folder = tmp_path / "tiledblend-demo"
    assert report["run"]["shape"] == [1200, 1200]
    assert sum(report["run"]["chunks"].values()) == 9
    with Image.open(folder / "preview.png") as picture:
        assert picture.size == (4 * 512 + 5 * 12, 512 + 24 + 26)
    text = tiledblend("demo", "--size", 600)  # a second run takes a folder of its own
    assert text.code == 0, text.err
    for word in ("Mpx/s", "copied", "blended", "skipped", "blended.ome.zarr", "preview.png"):
        assert word in text.out
    assert (tmp_path / "tiledblend-demo-2" / "blended.ome.zarr" / "zarr.json").is_file()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="from 256"):
        run_demo(tmp_path, size=10)
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(RefusedError, match="not empty"):
        run_demo(tmp_path, size=300)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
