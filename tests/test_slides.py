"""Vendor slides: small ones of every kind against the pixels they were made of, and against OpenSlide itself."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import slides
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from slides import MAKERS, MadeSlide

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.look.info import describe
from tiledblend.sources import RasterSource, open_source
from tiledblend.sources.opening import forget_sources, recognise
from tiledblend.sources.slides import source as slide_module


def made(kind: str, folder: Path) -> MadeSlide:
    if kind == "DICOM WSI":
        pytest.importorskip("pydicom", reason="pydicom is not installed")
    return MAKERS[kind](folder)


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def by_openslide(path: Path, level: int, background: tuple[int, int, int]) -> np.ndarray:
    """What was scanned of a level, by the library itself in one call, on the background by Pillow."""
    file = next(iter(sorted(path.iterdir()))) if path.is_dir() else path
    with openslide.OpenSlide(file) as slide:
        x, y, width, height = (
            int(slide.properties.get(f"openslide.bounds-{name}", default))
            for name, default in zip(("x", "y", "width", "height"), (0, 0, *slide.dimensions), strict=True)
        )
        factor = slide.level_downsamples[level]
        picture = slide.read_region((x, y), level, (int(width / factor), int(height / factor)))
    under = Image.new("RGBA", picture.size, (*background, 255))
    return np.asarray(Image.alpha_composite(under, picture))[:, :, :3]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_vendors_slide_has_its_pixels_and_its_facts(tmp_path: Path, kind: str) -> None:
    slide = made(kind, tmp_path)
    source = open_source(slide.path)
    assert source.info.format == kind
    assert source.info.metadata["reader"] == f"OpenSlide {openslide.__library_version__}"
    assert (source.channels, source.dtype, source.is_rgb) == (3, np.uint8, True)
    assert source.pixel_size_um == pytest.approx(slide.pixel_size_um)
    assert source.magnification == slide.magnification
    pixels = whole(source)
    assert pixels.shape == slide.pixels.shape
    assert np.abs(pixels.astype(int) - slide.pixels).max() <= slide.off
    background = tuple(bytes.fromhex(source.info.metadata["background"][1:]))
    for level in range(len(source.levels)):
        np.testing.assert_array_equal(whole(source, level), by_openslide(slide.path, level, background))


@pytest.mark.parametrize("kind", ["MIRAX (MRXS)", "Leica SCN"])
def test_how_a_read_is_cut_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_module, "BLOCK", 48)
    source = open_source(made(kind, tmp_path_factory.mktemp("slide")).path)
    levels = [whole(source, level) for level in range(len(source.levels))]

    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def parts(data: st.DataObject) -> None:
        level = data.draw(st.integers(0, len(levels) - 1))
        height, width = levels[level].shape[:2]
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        region = Region(y, x, data.draw(st.integers(y + 1, height)), data.draw(st.integers(x + 1, width)))
        np.testing.assert_array_equal(source.read(region, level), levels[level][region.slices])

    parts()


def test_levels_by_a_factor_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leica's are as stored, block by block; others OpenSlide interpolates, by half a pixel of level 0 at the most."""
    scn = slides.make_scn(tmp_path, (301, 203))
    with tifffile.TiffFile(scn.path) as tiff:
        stored = tiff.pages[3].asarray()
    monkeypatch.setattr(slide_module, "BLOCK", 32)
    source = open_source(scn.path)
    assert source.levels[1].shape == stored.shape[:2] == (150, 101)
    assert source._downsamples[1] != 2
    assert np.abs(whole(source, 1).astype(int) - stored).max() <= 3
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    folder = tmp_path / "dicom"
    folder.mkdir()
    picture = slides.picture(303, 203)
    slides.write_dicom_level(folder / "a.dcm", picture, 0.0005, "1.2.3")
    slides.write_dicom_level(folder / "b.dcm", picture[:300:3, :201:3], 0.0015, "1.2.3")
    source = open_source(folder)
    factor = source._downsamples[1]
    assert factor != round(factor)
    pixels = whole(source, 1)
    steps = np.abs(np.diff(picture[:300:3, :201:3].astype(int), axis=1)).max()
    assert np.abs(pixels.astype(int) - picture[:300:3, :201:3]).max() <= 3 + steps / factor
    region = Region(33, 40, 90, 60)
    np.testing.assert_array_equal(source.read(region, 1), pixels[region.slices])


def test_threads_and_pickles(tmp_path: Path) -> None:
    source = open_source(made("MIRAX (MRXS)", tmp_path).path)
    expected = whole(source)
    boxes = [Region(y, x, y + 50, x + 60) for y in range(0, 200, 50) for x in range(0, 300, 60)]
    with ThreadPoolExecutor(8) as pool:
        for box, pixels in zip(boxes, pool.map(source.read, boxes), strict=True):
            np.testing.assert_array_equal(pixels, expected[box.slices])
    again = pickle.loads(pickle.dumps(source))
    assert again is source
    forget_sources()
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(source))), expected)


def test_channels_and_levels_are_selected(tmp_path: Path) -> None:
    path = made("Ventana BIF", tmp_path).path
    source = open_source(path, level=1, channels=(2, 0))
    np.testing.assert_array_equal(whole(source), whole(open_source(path), 1)[:, :, [2, 0]])
    assert source.pixel_size_um == (0.5, 0.5)
    for wrong in ({"series": 1}, {"plane": {"z": 1}}):
        with pytest.raises(BadInputError, match="OpenSlide reads one"):
            open_source(path, **wrong)


@pytest.mark.parametrize("part", ["folder", "file"])
def test_a_dicom_slide_is_a_folder_or_one_of_its_files(tmp_path: Path, part: str) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    slide = slides.make_dicom(tmp_path, icc=profile)
    source = open_source(slide.path if part == "folder" else slide.path / "level1.dcm")
    assert [level.shape for level in source.levels] == [(200, 150), (100, 75)]
    assert source.icc_profile == profile
    assert len(list(source.contents())) == 2
    assert [entry["layer"] for entry in describe(slide.path)] == [True]
    before = source.fingerprint()
    slides.write_dicom_level(slide.path / "level0.dcm", slide.pixels[:100], 0.0005, "1.2.3")
    with pytest.raises(BadInputError, match="changed while"):
        source.require_unchanged()
    assert source.fingerprint() != before


def test_dicom_files_that_are_no_slide(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    shutil.copytree(slides.make_dicom(first).path, tmp_path / "both")
    shutil.copy(slides.make_dicom(second).path / "level0.dcm", tmp_path / "both" / "other.dcm")
    with pytest.raises(BadInputError, match="of 2 slides; give one file of the slide"):
        open_source(tmp_path / "both")
    assert open_source(tmp_path / "both" / "level0.dcm").shape == (200, 150)
    data = (first / "dicom" / "level0.dcm").read_bytes()
    label = (tmp_path / "both" / "other.dcm").read_bytes().replace(b"\\VOLUME\\NONE", b"\\LABEL\\NONE ")
    (tmp_path / "both" / "other.dcm").write_bytes(label)  # of another series, as some scanners have it
    assert open_source(tmp_path / "both").shape == (200, 150)
    other = tmp_path / "scan.dcm"
    other.write_bytes(data.replace(b"1.2.840.10008.5.1.4.1.1.77.1.6", b"1.2.840.10008.5.1.4.1.1.77.1.4"))
    with pytest.raises(BadInputError, match="does not read it: it is no whole-slide image"):
        open_source(other)


def test_a_mirax_file_without_its_folder_is_no_picture(tmp_path: Path) -> None:
    path = made("MIRAX (MRXS)", tmp_path).path
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(BadInputError, match="copy the folder, too"):
        recognise(str(path))


def test_a_damaged_place_is_named_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_module, "BLOCK", 64)
    slide = made("MIRAX (MRXS)", tmp_path)
    data = tmp_path / "small" / "Data0000.dat"
    stored = bytearray(data.read_bytes())
    stored[:200] = bytes(200)  # the first picture of level 0
    data.write_bytes(bytes(stored))
    source = open_source(slide.path)
    good = Region(64, 128, 180, 300)
    for _ in range(2):  # an error of OpenSlide would stay
        with pytest.raises(BadInputError, match=r"small\.mrxs: level 0, region \[0:"):
            source.read(Region(0, 0, 10, 10))
        assert np.abs(source.read(good).astype(int) - slide.pixels[good.slices]).max() <= slide.off


def test_what_openslide_refuses_is_one_line(tmp_path: Path) -> None:
    slide = made("Philips TIFF", tmp_path)
    text = slide.path.read_bytes().replace(b">WSI<", b">XYZ<")
    slide.path.write_bytes(text)
    with pytest.raises(BadInputError, match="Philips TIFF: OpenSlide refuses it: Expected one WSI image"):
        open_source(slide.path)
    czi = tmp_path / "a.czi"
    czi.write_bytes(b"ZISRAWFILE" + bytes(1000))
    with pytest.raises(BadInputError, match="Zeiss CZI"):
        open_source(czi)


@pytest.mark.parametrize("kind", ["Ventana BIF", "MIRAX (MRXS)", "DICOM WSI"])
def test_behind_a_web_server_it_says_to_copy_it(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("obstore")
    from range_server import range_server

    path = made(kind, tmp_path).path
    path = path / "level0.dcm" if path.is_dir() else path
    with (
        range_server(tmp_path) as address,
        pytest.raises(BadInputError, match="from this machine's disks only; copy it"),
    ):
        open_source(f"{address}/{path.relative_to(tmp_path)}")


def test_a_tile_that_no_memory_holds_is_refused_before_openslide_asks_for_it(tmp_path: Path) -> None:
    path = made("Ventana BIF", tmp_path).path
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags["TileWidth"].overwrite(2**30 // 64 * 64)
    with pytest.raises(BadInputError, match="tiles of 64 x 1073741824 pixels, more than the limit"):
        open_source(path)


def test_without_openslide_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made("Ventana BIF", tmp_path).path
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(BadInputError, match="pip install openslide-python openslide-bin"):
        open_source(path)


def test_other_slides_do_not_import_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, slides.picture(100, 100), photometric="rgb", tile=(64, 64))
    code = (
        "import sys; from tiledblend.look.info import describe; describe(sys.argv[1]); "
        "sys.exit('openslide' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


def test_fluorescence_of_leica_stays_a_tiff(tmp_path: Path) -> None:
    slide = made("Leica SCN", tmp_path)
    data = slide.path.read_bytes()
    # The macro picture, the first, is by transmitted light.
    head, mark, tail = data.partition(b"brightfield")
    slide.path.write_bytes(head + mark + tail.replace(b"brightfield", b"fluoresenc_"))
    source = open_source(slide.path)
    assert source.info.format == "SCN (TIFF)"
    assert source.shape == slide.pixels.shape[:2]
    assert np.abs(whole(source).astype(int) - slide.pixels).max() <= slide.off


def test_a_slide_is_blended(tmp_path: Path) -> None:
    slide = made("Ventana BIF", tmp_path)
    out = tmp_path / "out.ome.zarr"
    command = [sys.executable, "-m", "tiledblend", "blend", str(slide.path), "-o", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    result = open_source(out)
    np.testing.assert_array_equal(whole(result), whole(open_source(slide.path)))
    assert result.pixel_size_um == (0.25, 0.25)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a parent watches only on Linux")
@pytest.mark.parametrize("when", ["__init__", "read_region"])
def test_a_crash_of_openslide_is_one_line(tmp_path: Path, when: str) -> None:
    path = made("Ventana BIF", tmp_path).path
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        f"import os, openslide\nopenslide.OpenSlide.{when} = lambda *arguments: os.abort()\n"
    )
    paths = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tiledblend", "blend", str(path), "-o", str(tmp_path / "out.ome.zarr")]
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONFAULTHANDLER": ""}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 4, ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("tiledblend: error")]
    assert f"{path}: level 0, region" in line
    assert "crashed (SIGABRT)" in line
