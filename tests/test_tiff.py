"""TIFF sources against tifffile's whole-image reader and openslide, and against damaged files."""

from __future__ import annotations

import io
import pickle
import re
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ndpi import ndpi_bytes, restart_jpeg
from own_tiff import cut, jpeg, page, smooth, write_tiff
from PIL import Image

from tiledblend.bytes.ranges import LocalFile, SeekableBytes, open_bytes
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha, SourceSpec
from tiledblend.sources.tiff import structure as tiff_structure
from tiledblend.sources.tiff.colours import ycbcr_to_rgb
from tiledblend.sources.tiff.jpeg2000 import JPEG_2000, Jpeg2000
from tiledblend.sources.tiff.kept import PartlyUsed
from tiledblend.sources.tiff.large import LargeTiles
from tiledblend.sources.tiff.lerc import LERC, Lerc
from tiledblend.sources.tiff.metadata import resolution_facts, scanner_facts
from tiledblend.sources.tiff.reading import LevelReader
from tiledblend.sources.tiff.samples import interpret
from tiledblend.sources.tiff.segments import JpegFrames, SegmentError, check_segment, jpeg_frame
from tiledblend.sources.tiff.source import TiffSource, list_series, open_tiff

DATA = Path(__file__).parents[2] / "shared" / "data"
CMU = DATA / "CMU-1-Small-Region.svs"
needs_slide = pytest.mark.skipif(not CMU.exists(), reason="the CMU-1 sample slide is not beside the checkout")

SHAPE = (150, 203)


def make_pixels(dtype: str = "uint8", channels: int = 3, shape: tuple[int, int] = SHAPE, seed: int = 0) -> Any:
    """Smooth waves and noise, (y, x, c), over the dtype's range."""
    rng = np.random.default_rng(seed)
    y, x, c = np.meshgrid(*(np.arange(n) for n in (*shape, channels)), indexing="ij")
    waves = 0.5 + 0.3 * np.sin(y / 17 + c) * np.cos(x / 23) + 0.1 * rng.random((*shape, channels))
    if dtype == "float32":
        return waves.astype("f4")
    return (waves * np.iinfo(dtype).max).astype(dtype)


def write(path: Path, pixels: Any, **options: Any) -> Path:
    """A TIFF of (y, x, c) pixels; planar ones are given to tifffile as (c, y, x)."""
    channels = pixels.shape[2]
    options.setdefault("photometric", "rgb" if channels in (3, 4) else "minisblack")
    options.setdefault("metadata", None)
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, 2, 0)
    elif channels == 1:
        pixels = pixels[:, :, 0]
    else:
        options["planarconfig"] = "contig"
    tifffile.imwrite(path, pixels, **options)
    return path


def open_path(path: Path, *, mask: bool = False, **spec: Any) -> TiffSource:
    return open_tiff(SourceSpec(str(path), **spec), mask=mask)


def whole(source: TiffSource, level: int = 0) -> Any:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def expected(path: Path, **options: Any) -> Any:
    """tifffile's pixels as (y, x, c)."""
    pixels = tifffile.imread(path, **options)
    if pixels.ndim == 2:
        return pixels[:, :, np.newaxis]
    with tifffile.TiffFile(path) as file:
        planar = file.pages.first.planarconfig == 2
    return np.moveaxis(pixels, 0, 2) if planar else pixels


def check_regions(source: TiffSource, pixels: Any, level: int = 0, number: int = 6) -> None:
    """Read the whole and random regions, ragged edges and single pixels among them."""
    height, width = source.levels[level].shape
    assert pixels.shape == (height, width, source.channels)
    assert pixels.dtype == source.dtype
    np.testing.assert_array_equal(whole(source, level), pixels)
    rng = np.random.default_rng(height * width)
    regions = [Region(height - 1, width - 1, height, width), Region(0, width - 5, height, width)]
    for _ in range(number):
        y0, x0 = int(rng.integers(height)), int(rng.integers(width))
        regions.append(Region(y0, x0, int(rng.integers(y0, height)) + 1, int(rng.integers(x0, width)) + 1))
    for region in regions:
        result = source.read(region, level)
        assert result.dtype == source.dtype
        assert result.dtype.isnative
        np.testing.assert_array_equal(result, pixels[region.slices], err_msg=str(region))


def refused(path: Path, *, mask: bool = False, read: bool = False, **spec: Any) -> str:
    """The one line that opening (or reading all of) a file is refused with."""

    def attempt() -> None:
        source = open_path(path, mask=mask, **spec)
        if read:
            whole(source)

    with pytest.raises(BadInputError) as caught:
        attempt()
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


class Layouts:
    """The combinations that are written and read back."""

    cutting = (
        {"tile": (64, 48)},
        {"tile": (256, 256)},
        {"rowsperstrip": 16},
        {"rowsperstrip": 150},
    )
    lossless = ("deflate", "lzw", "zstd", "packbits", "lzma", "lerc", "png", "jpegxl", "jpeg2000", "webp")


@pytest.mark.parametrize("cutting", Layouts.cutting, ids=str)
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_layouts_read_as_tifffile_reads_them(
    tmp_path: Path, cutting: dict[str, Any], planarconfig: str, byteorder: str, compression: str | None
) -> None:
    for dtype, channels, bigtiff in [("uint8", 3, False), ("uint16", 1, True), ("float32", 7, False)]:
        if channels == 1 and planarconfig == "separate":
            continue
        path = write(
            tmp_path / f"{dtype}.tif", make_pixels(dtype, channels), planarconfig=planarconfig, byteorder=byteorder,
            bigtiff=bigtiff, compression=compression, **cutting,
        )  # fmt: skip
        source = open_path(path)
        check_regions(source, expected(path))
        assert source.info.metadata["bigtiff"] is bigtiff


@pytest.mark.parametrize("compression", Layouts.lossless)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("cutting", [{"tile": (64, 64)}, {"rowsperstrip": 40}], ids=str)
def test_compressions(tmp_path: Path, compression: str, dtype: str, cutting: dict[str, Any]) -> None:
    if (compression in ("png", "jpeg2000") and dtype == "float32") or (compression == "webp" and dtype != "uint8"):
        pytest.skip(f"{compression} has no {dtype}")
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    for channels in (1, 3) if compression != "webp" else (3, 4):
        if compression == "jpegxl" and channels == 3 and dtype == "float32":
            continue
        pixels = make_pixels(dtype, channels)
        path = write(tmp_path / f"{channels}.tif", pixels, compression=compression, **cutting, **options)
        check_regions(open_path(path), expected(path), number=3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_predictors(tmp_path: Path, dtype: str, compression: str, byteorder: str) -> None:
    for channels in (1, 4):
        pixels = make_pixels(dtype, channels)
        path = write(
            tmp_path / f"{channels}.tif", pixels, compression=compression, predictor=True, tile=(64, 64),
            byteorder=byteorder,
        )  # fmt: skip
        check_regions(open_path(path), pixels, number=3)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("cutting", [{"tile": (64, 48)}, {"rowsperstrip": 16}], ids=str)
def test_jpeg_ycbcr_becomes_rgb(tmp_path: Path, cutting: dict[str, Any], subsampling: tuple[int, int]) -> None:
    pixels = make_pixels()
    path = write(tmp_path / "a.tif", pixels, compression="jpeg", subsampling=subsampling, **cutting)
    source = open_path(path)
    check_regions(source, expected(path))
    assert source.is_rgb
    if subsampling == (1, 1):
        assert np.abs(whole(source).astype(int) - pixels).mean() < 4


def test_grey_jpeg(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", make_pixels(channels=1), compression="jpeg", tile=(64, 64))
    check_regions(open_path(path), expected(path))


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[TiffSource, Any]:
    pixels = make_pixels("uint16", 3, (301, 517))
    path = write(tmp_path_factory.mktemp("tiff") / "a.tif", pixels, tile=(48, 80), compression="deflate")
    return open_path(path), pixels


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_region_of_any_channels(tiled: tuple[TiffSource, Any], data: st.DataObject) -> None:
    source, pixels = tiled
    y0 = data.draw(st.integers(0, 300))
    x0 = data.draw(st.integers(0, 516))
    region = Region(y0, x0, data.draw(st.integers(y0, 301)), data.draw(st.integers(x0, 517)))
    result = source.read(region)
    assert result.shape == (*region.shape, 3)
    np.testing.assert_array_equal(result, pixels[region.slices])


@pytest.mark.parametrize("channels", [(2,), (0, 2), (2, 0, 1), (1, 2), (1, 1)])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_channel_selection(tmp_path: Path, channels: tuple[int, ...], planarconfig: str, compression: str) -> None:
    pixels = make_pixels("uint16", 5)
    path = write(tmp_path / "a.tif", pixels, planarconfig=planarconfig, compression=compression)
    source = open_path(path, channels=channels)
    check_regions(source, pixels[:, :, list(channels)])
    assert "no channel 5" in refused(path, channels=(0, 5))
    assert "no channels selected" in refused(path, channels=())


# --- what samples mean


@pytest.mark.parametrize(("extra", "alpha"), [(1, Alpha.PREMULTIPLIED), (2, Alpha.STRAIGHT), (None, Alpha.STRAIGHT)])
def test_alpha_of_extra_samples(tmp_path: Path, extra: int | None, alpha: Alpha) -> None:
    path = write(tmp_path / "a.tif", make_pixels(channels=4), extrasamples=[extra or 0])
    if extra is None:  # as OpenCV leaves it
        rename_tag(path, 338, 65000)
    source = open_path(path)
    assert (source.alpha, source.is_rgb, source.channels) == (alpha, True, 4)
    assert any("taken as straight alpha" in note for note in source.info.notes) is (extra is None)
    colours = open_path(path, channels=(0, 1, 2))
    assert (colours.alpha, colours.is_rgb) == (Alpha.NONE, True)
    alone = open_path(path, channels=(3,))
    assert (alone.alpha, alone.is_rgb) == (Alpha.NONE, False)


def test_many_unstated_extra_samples_are_channels(tmp_path: Path) -> None:
    source = open_path(write(tmp_path / "a.tif", make_pixels(channels=7)))
    assert (source.alpha, source.is_rgb, source.channels) == (Alpha.NONE, False, 7)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_min_is_white_is_inverted(tmp_path: Path, dtype: str, compression: str | None) -> None:
    pixels = make_pixels(dtype, 1)
    path = write(tmp_path / "a.tif", pixels, photometric="miniswhite", compression=compression)
    check_regions(open_path(path), np.iinfo(dtype).max - pixels)
    path = write(tmp_path / "f.tif", make_pixels("float32", 1), photometric="miniswhite")
    assert "min-is-white" in refused(path)


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_palette_is_rgb_and_labels_as_a_mask(tmp_path: Path, compression: str | None) -> None:
    index = make_pixels("uint8", 1)
    colours = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, index[:, :, 0], photometric="palette", colormap=colours, compression=compression)
    source = open_path(path)
    assert source.is_rgb
    check_regions(source, (colours >> 8).astype("u1").T[index[:, :, 0]])
    check_regions(open_path(path, mask=True), index)


def test_bilevel_masks(tmp_path: Path) -> None:
    bits = make_pixels("uint8", 1) > 128
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, bits[:, :, 0], photometric="minisblack", rowsperstrip=50)
    assert "dtype bool" in refused(path)
    check_regions(open_path(path, mask=True), bits)
    tifffile.imwrite(path, bits[:, :, 0], photometric="miniswhite", software="scanner")
    check_regions(open_path(path, mask=True), ~bits)
    tifffile.imwrite(path, bits[:, :, 0])  # which says min-is-white of every bool array
    check_regions(open_path(path, mask=True), bits)


@pytest.mark.parametrize("fill_order", [1, 2])
def test_group_4_fax_masks(tmp_path: Path, fill_order: int) -> None:
    bits = make_pixels("uint8", 1) > 128
    path = tmp_path / "a.tif"
    image = Image.fromarray(bits[:, :, 0])
    image.save(path, compression="group4", tiffinfo={266: fill_order, 278: 40})
    check_regions(open_path(path, mask=True), bits)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.fillorder == fill_order
        offset, count = tiff.pages.first.dataoffsets[0], tiff.pages.first.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="truncated group 4 fax: no end marker"):
        open_path(path, mask=True).read(Region(0, 0, 10, 10))


@pytest.mark.parametrize("compression", ["group3", "tiff_ccitt"])
def test_fax_without_an_end_marker_is_refused_by_name(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(make_pixels("uint8", 1)[:, :, 0] > 128).save(path, compression=compression)
    assert re.search(r"compression . \(ccitt\w+\) is not read; convert the file", refused(path, mask=True))


def test_lerc_inside_an_unknown_code_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    extra = [(50674, "I", 2, (4, 7), True)]
    tifffile.imwrite(path, make_pixels("uint8", 1), tile=(32, 32), compression="zlib", extratags=extra)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[259].valueoffset
    data[at : at + 2] = struct.pack("<H", 34887)
    path.write_bytes(data)
    assert "LERC inside codec 7 is not read; convert it" in refused(path)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int32", "float64", "float16", "uint64", "int64"])
def test_mask_dtypes(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    pixels = (np.arange(80 * 90).reshape(80, 90) % 120).astype(dtype)
    tifffile.imwrite(path, pixels, tile=(32, 32), compression="zlib")
    assert f"dtype {dtype}" in refused(path)
    check_regions(open_path(path, mask=True), pixels[:, :, np.newaxis])


def test_other_colour_spaces_are_refused_by_name(tmp_path: Path) -> None:
    pixels = make_pixels(channels=4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="separated")
    assert "SEPARATED" in refused(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", pixels[:, :, :3], photometric="cielab")
    assert "CIELAB" in refused(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", pixels.astype("c8")[:, :, 0])
    assert "complex64" in refused(tmp_path / "c.tif", mask=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = make_pixels()
    path = write(
        tmp_path / "a.tif", pixels, tile=(64, 48), extratags=[(274, 3, 1, orientation, True)],
        resolution=(40000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1), 7: np.rot90(pixels, -1)[::-1], 8: np.rot90(pixels, 1),
    }[orientation]  # fmt: skip
    source = open_path(path)
    check_regions(source, turned)
    assert source.pixel_size_um == ((0.5, 0.25) if orientation < 5 else (0.25, 0.5))


def test_aperio_jpeg2000_ycbcr(tmp_path: Path) -> None:
    rgb = make_pixels(shape=(64, 64))
    r, g, b = (rgb[:, :, i].astype(float) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    ycc = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=2).round().clip(0, 255).astype("u1")
    path = write(tmp_path / "a.tif", ycc, tile=(64, 64), compression="jpeg2000")
    patch_tag(path, 259, 33003)
    source = open_path(path)
    np.testing.assert_array_equal(whole(source), ycbcr_to_rgb(ycc))
    assert np.abs(whole(source).astype(int) - rgb).max() <= 2


# --- pyramids, series, planes


def write_pyramid(path: Path, pixels: Any, how: str, **options: Any) -> list[Any]:
    levels = [pixels, pixels[::2, ::2], pixels[::4, ::4]]
    options = {"tile": (32, 32), "photometric": "rgb", "compression": "deflate", **options}
    with tifffile.TiffWriter(path, ome=how == "ome") as file:
        meta = {"axes": "YXS"} if how == "ome" else None
        file.write(levels[0], subifds=0 if how == "pages" else 2, metadata=meta, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, **options)
    return levels


@pytest.mark.parametrize("how", ["subifds", "ome", "pages"])
def test_pyramids(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.tif"
    levels = write_pyramid(path, make_pixels(shape=(301, 217)), how, resolution=(2e4, 2e4), resolutionunit=3)
    source = open_path(path)
    assert [level.shape for level in source.levels] == [level.shape[:2] for level in levels]
    assert source.levels[0].tile == (32, 32)
    for number, level in enumerate(levels):
        check_regions(source, level, number)
    coarse = open_path(path, level=1)
    assert [level.shape for level in coarse.levels] == [level.shape[:2] for level in levels[1:]]
    check_regions(coarse, levels[2], 1)
    assert coarse.pixel_size_um == pytest.approx((1.0, 1.0))
    assert "no level 3" in refused(path, level=3)


def test_reduced_pages_by_odd_factors_are_levels(tmp_path: Path) -> None:
    pixels = make_pixels(shape=(640, 700))
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for step, kind in [(1, 0), (5, 1), (10, 1)]:
            file.write(pixels[::step, ::step], subfiletype=kind, metadata=None, photometric="rgb", tile=(64, 64))
    source = open_path(path)
    assert [level.shape for level in source.levels] == [(640, 700), (128, 140), (64, 70)]
    check_regions(source, pixels[::10, ::10], 2)


def test_ome_channels_as_pages_with_names_and_pixel_size(tmp_path: Path) -> None:
    pixels = np.moveaxis(make_pixels("uint16", 5), 2, 0)
    path = tmp_path / "a.ome.tif"
    metadata = {
        "axes": "CYX", "PhysicalSizeX": 325.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.65,
        "PhysicalSizeYUnit": "µm", "Channel": {"Name": list("abcde"), "Color": [-16776961, 16711935, 65535, -1, 255]},
    }  # fmt: skip
    tifffile.imwrite(path, pixels, metadata=metadata, tile=(64, 64), compression="zlib")
    source = open_path(path, channels=(3, 1, 0))
    check_regions(source, np.moveaxis(pixels, 0, 2)[:, :, [3, 1, 0]])
    assert source.info.format == "OME-TIFF"
    assert source.info.channel_names == ("d", "b", "a")
    assert source.info.channel_colors == ("FFFFFF", "00FF00", "FF0000")
    assert source.pixel_size_um == pytest.approx((0.65, 0.325))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_a_plane_of_a_stack(tmp_path: Path, kind: str, compression: str | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (2, 3, 4, 70, 50), dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, pixels, metadata={"axes": "TZCYX"}, imagej=kind == "imagej", compression=compression)
    assert "t=2, z=3, c=4, y=70, x=50" in refused(path)
    assert "plane {z: 0}" in refused(path, plane=(("t", 1),))
    assert "z=3 is not from 0 to 2" in refused(path, plane=(("t", 1), ("z", 3)))
    assert "no axis q" in refused(path, plane=(("t", 1), ("z", 2), ("q", 1)))
    source = open_path(path, plane=(("t", 1), ("z", 2)))
    check_regions(source, np.moveaxis(pixels[1, 2], 0, 2))
    one = open_path(path, plane=(("t", 0), ("z", 1)), channels=(2,))
    check_regions(one, pixels[0, 1, 2][:, :, np.newaxis])


def test_pages_without_stated_axes_are_refused_by_their_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 50), dtype=np.uint8)
    tifffile.imwrite(path, pixels, metadata=None, photometric="minisblack")
    assert "i=5" in refused(path)
    check_regions(open_path(path, plane=(("i", 3),)), pixels[3][:, :, np.newaxis])


def test_a_stack_described_by_its_first_page_only(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 40, 50), dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "CYX"}, truncate=True)
    check_regions(open_path(path), np.moveaxis(pixels, 0, 2))
    tifffile.imwrite(path, pixels, metadata={"axes": "ZYX"}, truncate=True, photometric="minisblack")
    check_regions(open_path(path, plane=(("z", 4),)), pixels[4][:, :, np.newaxis])


def test_series_are_chosen_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    small, large = make_pixels(shape=(50, 60)), make_pixels(shape=(200, 170))
    with tifffile.TiffWriter(path) as file:
        file.write(small, photometric="rgb", metadata=None)
        file.write(large, photometric="rgb", metadata=None, tile=(64, 64))
        file.write(large.astype("f8")[:, :, 0], metadata=None)
    np.testing.assert_array_equal(whole(open_path(path)), large)
    np.testing.assert_array_equal(whole(open_path(path, series=0)), small)
    assert "no series 3" in refused(path, series=3)
    summary = list_series(str(path))
    assert [item.shape for item in summary] == [(50, 60, 3), (200, 170, 3), (200, 170)]
    assert [item.problem is None for item in summary] == [True, True, False]
    assert "float64" in str(summary[2].problem)


def test_pixel_sizes() -> None:
    assert scanner_facts("Aperio Image Library |MPP = 0.2521|AppMag = 40").pixel_size_um == (0.2521, 0.2521)
    assert scanner_facts("Aperio Image Library |MPP = nothing").pixel_size_um is None
    for dpi in (72, 96, 300, 600, 1200, 2400):
        assert resolution_facts(2, (dpi, 1), (dpi, 1)).pixel_size_um is None
    assert resolution_facts(3, (2834, 100), (2834, 100)).pixel_size_um is None
    assert resolution_facts(1, (20000, 1), (20000, 1)).pixel_size_um is None
    assert resolution_facts(3, (1, 0), (0, 0)).pixel_size_um is None


def test_imagej_pixel_size_and_icc(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, make_pixels(channels=1)[:, :, 0], imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    assert open_path(path).pixel_size_um == (0.5, 0.25)
    write(path, make_pixels(), iccprofile=b"profile" * 20)
    digest = open_path(path).icc_digest
    assert digest is not None
    assert len(digest) == 64


# --- the real slide


@needs_slide
def test_slide_equals_tifffile_and_openslide() -> None:
    source = open_path(CMU)
    pixels = tifffile.imread(CMU, key=0)
    check_regions(source, pixels, number=12)
    assert source.pixel_size_um == (0.499, 0.499)
    assert source.info.format == "SVS (TIFF)"
    assert [item.name for item in list_series(str(CMU))] == ["Baseline", "Thumbnail", "Label", "Macro"]
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(str(CMU)) as slide:
        for y, x in [(0, 0), (1000, 777), (2967 - 300, 2220 - 400)]:
            theirs = np.asarray(slide.read_region((x, y), 0, (400, 300)))[:, :, :3]
            np.testing.assert_array_equal(source.read(Region(y, x, y + 300, x + 400)), theirs)


@needs_slide
@pytest.mark.parametrize(("name", "word"), [("unreadable.svs", "JPEG"), ("unopenable.tiff", "compression 52479")])
def test_the_broken_samples(name: str, word: str) -> None:
    assert word in refused(DATA / name, read=True)


# --- what is read, and how often


class Reads:
    """Counts the byte ranges that are read after it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()
        plain = LocalFile.pread

        def pread(reader: LocalFile, offset: int, size: int) -> bytes:
            with self._lock:
                self.ranges[offset, size] += 1
            return plain(reader, offset, size)

        monkeypatch.setattr(LocalFile, "pread", pread)


def segments(path: Path) -> list[tuple[int, int]]:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def test_only_needed_tiles_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_pixels(shape=(300, 500))
    path = write(tmp_path / "a.tif", pixels, tile=(64, 64), compression="zlib")
    source = open_path(path)
    reads = Reads(monkeypatch)
    np.testing.assert_array_equal(source.read(Region(60, 130, 70, 140)), pixels[60:70, 130:140])
    where = segments(path)
    assert reads.ranges == Counter([where[2], where[10]])
    reads.ranges.clear()
    exact = source.read(Region(128, 192, 192, 256))
    assert reads.ranges == Counter([where[2 * 8 + 3]])
    np.testing.assert_array_equal(exact, pixels[128:192, 192:256])


def test_only_needed_planes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_pixels("uint16", 5, (64, 64))
    path = write(tmp_path / "a.tif", pixels, planarconfig="separate", tile=(32, 32), compression="zlib")
    source = open_path(path, channels=(3, 1))
    reads = Reads(monkeypatch)
    source.read(Region(0, 0, 8, 8))
    where = segments(path)
    assert reads.ranges == Counter([where[12], where[4]])


def test_uncompressed_rows_are_read_without_their_strip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_pixels("uint16", 1, (400, 300))
    path = write(tmp_path / "a.tif", pixels, rowsperstrip=400)
    source = open_path(path)
    reads = Reads(monkeypatch)
    np.testing.assert_array_equal(source.read(Region(10, 20, 14, 50)), pixels[10:14, 20:50])
    assert sum(size for _, size in reads.ranges.elements()) == 4 * 30 * 2


@pytest.mark.parametrize("cutting", [{"tile": (96, 80)}, {"rowsperstrip": 56}], ids=str)
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_bands_decode_each_tile_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cutting: dict[str, Any], planarconfig: str
) -> None:
    pixels = make_pixels(shape=(500, 410))
    path = write(tmp_path / "a.tif", pixels, compression="zlib", planarconfig=planarconfig, **cutting)
    source = open_path(path)
    reads = Reads(monkeypatch)
    for y in range(0, 500, 64):
        for x in range(0, 410, 200):
            region = Region(y, x, min(500, y + 64), min(410, x + 200))
            np.testing.assert_array_equal(source.read(region), pixels[region.slices])
    assert reads.ranges == Counter(segments(path))


@pytest.mark.parametrize("compression", ["zlib", "packbits", "jpeg", None])
@pytest.mark.parametrize("orientation", [1, 6])
def test_regions_of_one_value_are_known_and_no_others(
    tmp_path: Path, compression: str | None, orientation: int
) -> None:
    rng = np.random.default_rng(5)
    values = rng.choice(np.array([0, 255, 90], np.uint8), (9, 7)).repeat(32, 0).repeat(32, 1)[:270, :210]
    values[100, 50] = 7
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, values, tile=(32, 32), compression=compression, extratags=[(274, "H", 1, orientation, True)])
    source, known = open_tiff(SourceSpec(str(path)), mask=True), 0
    whole = source.read(Region.of_shape(source.shape))[:, :, 0]
    for _ in range(400):
        y, x = rng.integers(0, source.shape[0]), rng.integers(0, source.shape[1])
        region = Region(y, x, y + 1 + rng.integers(0, 60), x + 1 + rng.integers(0, 60)) & Region.of_shape(source.shape)
        value, part = source.uniform(region), whole[region.slices]
        if value is not None:
            known += 1
            assert (part == value).all()
    if compression in ("zlib", "packbits"):
        assert source.uniform(Region(0, 0, 20, 20)) == whole[0, 0]
        assert known > 40
    np.testing.assert_array_equal(source.read(Region.of_shape(source.shape))[:, :, 0], whole)


def test_kept_tiles_are_bounded_and_dropped_when_used() -> None:
    cache = PartlyUsed(1000)
    tile = np.zeros(100, np.uint8)
    for number in range(20):
        cache.put((0, 0, number), tile, 50)
    assert sum(cache.take((0, 0, number), 1) is not None for number in range(20)) == 10
    assert cache.take((0, 0, 19), 49) is not None
    assert cache.take((0, 0, 19), 1) is None
    cache.put((1, 0, 0), np.zeros(251, np.uint8), 5)
    assert cache.take((1, 0, 0), 1) is None
    cache.put((2, 0, 0), tile, 0)
    assert cache.take((2, 0, 0), 1) is None


def test_a_large_strip_is_decoded_once_for_the_reads_that_follow_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decoded again by every row of chunks: a strip that is the whole image eight times for each tile."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 9, (1800, 2000, 3), np.uint8)
    path = write(tmp_path / "a.tif", pixels, rowsperstrip=1800, compression="zlib", photometric="rgb")
    source, decoded = open_path(path), list[int]()
    plain = LevelReader._decoded
    monkeypatch.setattr(
        LevelReader, "_decoded", lambda self, data, item, region: decoded.append(1) or plain(self, data, item, region)
    )
    for y in range(0, 1800, 300):
        region = Region(y, 100, y + 300, 1900)
        np.testing.assert_array_equal(source.read(region), pixels[region.slices])
    assert len(decoded) == 1
    source.rest()
    source.read(Region(0, 0, 9, 9))
    assert len(decoded) == 2


def test_large_tiles_of_a_thread_are_bounded_and_shared() -> None:
    large, tiles = LargeTiles(250), [np.full(100, number, np.uint8) for number in range(3)]
    for number in range(3):
        large.make_room(100)
        large.put((number,), tiles.pop(0))
    assert [large.has((number,)) for number in range(3)] == [False, True, True]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(large.get, (1,)).result()
        assert found is not None
        assert found[0] == 1
        del found
        large.clear()
        assert [large.has((number,)) for number in range(3)] == [False, True, False]
        pool.submit(large.clear).result()
    assert large.get((1,)) is None
    large.make_room(1000)
    large.put((7,), np.zeros(1000, np.uint8))
    assert large.get((7,)) is not None
    large.make_room(1)
    assert not large.has((7,))


def test_threads_and_pickles(tmp_path: Path) -> None:
    pixels = make_pixels(shape=(600, 500))
    path = write(tmp_path / "a.tif", pixels, tile=(64, 64), compression="jpeg", photometric="rgb")
    source = open_path(path)
    pixels = expected(path)
    data = pickle.dumps(source)
    assert len(data) < 2000
    rng = np.random.default_rng(0)
    corners = [(int(y), int(x)) for y, x in zip(rng.integers(0, 500, 60), rng.integers(0, 400, 60), strict=True)]

    def read(corner: tuple[int, int]) -> bool:
        region = Region(corner[0], corner[1], corner[0] + 100, corner[1] + 100)
        both = (source.read(region), pickle.loads(data).read(region))
        return all(np.array_equal(result, pixels[region.slices]) for result in both)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, corners))
    code = (
        "import pickle, sys; from tiledblend.geometry import Region;"
        "s = pickle.loads(sys.stdin.buffer.read()); sys.stdout.buffer.write(s.read(Region(3, 4, 90, 130)).tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=60)
    assert found.stdout == pixels[3:90, 4:130].tobytes()


def test_fingerprint_follows_the_structure(tmp_path: Path) -> None:
    one = open_path(write(tmp_path / "a.tif", make_pixels(), tile=(64, 64), compression="zlib")).fingerprint()
    again = open_path(tmp_path / "a.tif").fingerprint()
    assert one == again
    assert set(one) == {"uri", "size", "modified", "structure"}
    other = open_path(write(tmp_path / "b.tif", make_pixels(seed=1), tile=(64, 64), compression="zlib")).fingerprint()
    assert other["structure"] != one["structure"]


# --- bytes


def test_byte_reader(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 10)
    reader = open_bytes(path)
    assert reader.size == 2560
    assert reader.pread_many([(0, 3), (2559, 1)]) == [b"\x00\x01\x02", b"\xff"]
    assert open_bytes(f"file://{path}").pread(5, 1) == b"\x05"
    assert pickle.loads(pickle.dumps(reader)).pread(1, 1) == b"\x01"
    assert reader.identity() == {"uri": str(path), "size": 2560, "modified": path.stat().st_mtime_ns}
    file = SeekableBytes(reader, block=16, blocks=2)
    assert (file.read(20), file.tell(), file.seek(-3, 2), file.read(), file.read(5)) == (
        bytes(range(20)), 20, 2557, b"\xfd\xfe\xff", b"",
    )  # fmt: skip
    path.write_bytes(b"short")
    with pytest.raises(BadInputError, match="input changed or truncated"):
        reader.pread(0, 100)
    with pytest.raises(BadInputError, match="no such file"):
        open_bytes(tmp_path / "none")
    with pytest.raises(BadInputError, match="not a regular file"):
        open_bytes(tmp_path)
    with pytest.raises(BadInputError, match="ftp:// is not read"):
        open_bytes("ftp://host/key")


# --- damaged and hostile files


def patch_tag(path: Path, code: int, *values: int, page: int = 0) -> None:
    """Overwrite the values of a tag in place."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags[code]
        form = f"{file.byteorder}{len(values)}{tifffile.TIFF.DATA_FORMATS[tag.dtype][-1]}"
        where = tag.valueoffset
    with open(path, "r+b") as raw:
        raw.seek(where)
        raw.write(struct.pack(form, *values))


def rename_tag(path: Path, code: int, to: int) -> None:
    """Make a tag one that nobody knows."""
    with tifffile.TiffFile(path) as file:
        where, form = file.pages[0].tags[code].offset, f"{file.byteorder}H"
    patch_bytes(path, where, struct.pack(form, to))


def patch_bytes(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(data)


def jpeg_file(tmp_path: Path) -> Path:
    return write(tmp_path / "a.tif", make_pixels(shape=(128, 192)), tile=(64, 64), compression="jpeg")


def check_tile_refused(path: Path, tile: int, word: str) -> None:
    """Reading that tile is refused, naming it, its level and region; its neighbour reads."""
    message = refused(path, read=True)
    assert word in message
    assert f"tile {tile} at" in message
    assert "level 0, region [0:128, 0:192]" in message
    open_path(path).read(Region(0, 0, 64, 64))


def test_truncated_jpeg_tile(tmp_path: Path) -> None:
    path = jpeg_file(tmp_path)
    offset, count = segments(path)[4]
    patch_bytes(path, offset + count // 2, bytes(count - count // 2))
    check_tile_refused(path, 4, "no end marker")


def test_jpeg_tile_cut_by_its_byte_count(tmp_path: Path) -> None:
    path = jpeg_file(tmp_path)
    counts = [count for _, count in segments(path)]
    patch_tag(path, 325, *(count // 2 if i == 2 else count for i, count in enumerate(counts)))
    check_tile_refused(path, 2, "no end marker")


@pytest.mark.parametrize("size", [(65500, 65500), (64, 4096), (16, 64)])
def test_jpeg_tile_of_another_size_than_the_tiffs(tmp_path: Path, size: tuple[int, int]) -> None:
    path = jpeg_file(tmp_path)
    offset, count = segments(path)[3]
    with open(path, "rb") as file:
        file.seek(offset)
        at = file.read(count).index(b"\xff\xc0")
    patch_bytes(path, offset + at + 5, struct.pack(">HH", *size))
    check_tile_refused(path, 3, f"{size[0]} x {size[1]}")


def test_a_header_that_was_parsed_stands_for_itself_only() -> None:
    """The one that differs may be the bomb's."""
    frames, small = JpegFrames(), imagecodecs.jpeg_encode(np.zeros((16, 16, 3), np.uint8))
    large = small.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 60_000, 60_000), 1)
    for data in (small, small, large, large, small):
        assert frames.of(data) == jpeg_frame(data)
    assert frames.of(large).shape == (60_000, 60_000)
    with pytest.raises(SegmentError, match="60000 x 60000"):
        check_segment(large, 7, (16, 16, 3), (16, 16), JpegFrames())


@pytest.mark.parametrize("compression", ["jpeg2000", "png", "webp"])
def test_tile_bombs_of_other_codecs(compression: str) -> None:
    bomb = np.zeros((512, 512, 3), np.uint8)
    code = {"jpeg2000": 34712, "png": 34933, "webp": 50001}[compression]
    encode = getattr(imagecodecs, f"{'jpeg2k' if compression == 'jpeg2000' else compression}_encode")
    for options in ({}, {"lossless": True}) if compression == "webp" else ({},):
        data = encode(bomb, **options)
        check_header(data, code, (512, 512, 3), (512, 512))
        check_header(data, code, (600, 512, 3), (512, 512))
        with pytest.raises(SegmentError, match="512 x 512"):
            check_header(data, code, (64, 64, 3), (64, 64))
        with pytest.raises(SegmentError):
            check_header(data[:20], code, (512, 512, 3), (512, 512))


def check_header(data: bytes, code: int, stored: tuple[int, int, int], needed: tuple[int, int]) -> None:
    """Check a segment before anything is decoded: JPEG 2000 and LERC in codecs of ours."""
    if code in JPEG_2000:
        Jpeg2000(code, False, True).decode(data, stored, needed)
    elif code in LERC:
        Lerc(0, 1, False).decode(data, stored, needed)
    else:
        check_segment(data, code, stored, needed, None)


@pytest.mark.parametrize("compression", ["jpeg", "zlib"])
def test_missing_tiles(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "a.tif", make_pixels(shape=(128, 192)), tile=(64, 64), compression=compression)
    pixels = expected(path).copy()
    counts = [count for _, count in segments(path)]
    patch_tag(path, 325, *(0 if i == 5 else count for i, count in enumerate(counts)))
    check_tile_refused(path, 5, "--allow-sparse")
    pixels[64:, 128:] = 0
    source = open_path(path, allow_sparse=True)
    check_regions(source, pixels)
    assert not source.read(Region(64, 128, 128, 192)).any()


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "lzma"])
def test_damaged_compressed_tiles(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "a.tif", make_pixels(shape=(128, 192)), tile=(64, 64), compression=compression)
    counts = [count for _, count in segments(path)]
    patch_tag(path, 325, *(count // 3 if i == 1 else count for i, count in enumerate(counts)))
    check_tile_refused(path, 1, "cannot be decoded")


def test_tiles_beyond_the_end(tmp_path: Path) -> None:
    path = jpeg_file(tmp_path)
    offsets = [offset for offset, _ in segments(path)]
    patch_tag(path, 324, *(4_000_000_000 if i == 1 else offset for i, offset in enumerate(offsets)))
    check_tile_refused(path, 1, "truncated")
    path = write(tmp_path / "b.tif", make_pixels(), rowsperstrip=10)
    source = open_path(path)
    with open(path, "r+b") as file:
        file.truncate(40_000)
    with pytest.raises(BadInputError, match="input changed or truncated"):
        whole(source)


def test_a_cut_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", make_pixels(), tile=(64, 64), compression="zlib")
    data = path.read_bytes()
    for size in (0, 2, 7, 9, 60, 200, 300, len(data) // 2):
        path.write_bytes(data[:size])
        refused(path, read=True)


def chained(*nexts: int, order: str = "<") -> bytes:
    """A TIFF of one-tag directories, each followed by the offset of the next."""
    head = struct.pack(f"{order}2sHI", b"II", 42, 8)
    tag = struct.pack(f"{order}HHHII", 1, 256, 3, 1, 16)
    return head + b"".join(tag + struct.pack(f"{order}I", after) for after in nexts)


def test_directories_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for data in (chained(8), chained(26, 44, 26)):
        path.write_bytes(data)
        assert "in a circle" in refused(path)


def test_too_many_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(chained(*range(26, 26 + 18 * 200_000, 18), 0))
    assert "more than 20000 TIFF directories" in refused(path)
    monkeypatch.setattr(tiff_structure, "MAX_DIRECTORIES", 3)
    path = tmp_path / "b.tif"
    write_pyramid(path, make_pixels(shape=(100, 120)), "subifds")
    open_path(path)
    monkeypatch.setattr(tiff_structure, "MAX_DIRECTORIES", 2)
    assert "more than 2 TIFF directories" in refused(path)


@pytest.mark.parametrize("code", [324, 325])
def test_tables_larger_than_the_file(tmp_path: Path, code: int) -> None:
    path = jpeg_file(tmp_path)
    with tifffile.TiffFile(path) as file:
        where = file.pages.first.tags[code].offset
    patch_bytes(path, where + 4, struct.pack("<I", 0x3FFFFFF))
    assert "does not fit into a file" in refused(path)


def test_dimension_bombs(tmp_path: Path) -> None:
    path = jpeg_file(tmp_path)
    patch_tag(path, 256, 4_000_000_000)
    assert "needs" in refused(path)
    path = jpeg_file(tmp_path)
    patch_tag(path, 322, 1_000_000)
    patch_tag(path, 323, 1_000_000)
    assert "more than the limit" in refused(path)
    path = jpeg_file(tmp_path)
    patch_tag(path, 322, 0)
    refused(path, read=True)
    path = write(tmp_path / "b.tif", make_pixels(), rowsperstrip=10)
    patch_tag(path, 257, 4_000_000_000)
    refused(path, read=True)


def test_byte_flips_never_escape(tmp_path: Path) -> None:
    """Damage anywhere in the directory gives pixels or one line, never another exception."""
    path = tmp_path / "a.tif"
    write_pyramid(path, make_pixels(shape=(60, 70)), "subifds")
    data = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        places = [(page.offset, 250) for page in (file.pages.first, file.pages.first.pages[0])]
    rng = np.random.default_rng(5)
    messages: list[str] = []
    for _ in range(300):
        start, length = places[int(rng.integers(2))]
        broken = bytearray(data)
        for at in rng.integers(start, min(start + length, len(data)), 2):
            broken[at] = int(rng.integers(256))
        path.write_bytes(broken)
        try:
            source = open_path(path)
            if source.shape[0] * source.shape[1] * source.channels < 1e7:
                whole(source)
        except BadInputError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 300
    assert not any("\n" in message for message in messages)


def test_not_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"not a tiff at all, but long enough")
    assert "not a TIFF" in refused(path)
    refused(tmp_path / "none.tif")


# --- NDPI: no sample is at hand, so a file with its 64-bit directory layout and its JPEG with restart intervals


@pytest.mark.parametrize("name", ["a.ndpi", "renamed.tif"])
def test_ndpi_layout(tmp_path: Path, name: str) -> None:
    pixels = make_pixels(shape=(64, 160))
    path = tmp_path / name
    path.write_bytes(ndpi_bytes(pixels))
    source = open_path(path)
    assert source.info.format == "NDPI (TIFF)"
    assert source.levels[0].tile == (8, 160)
    assert source.pixel_size_um == pytest.approx((1 / 4.5, 1 / 4.5))
    decoded = imagecodecs.jpeg_decode(restart_jpeg(pixels))
    check_regions(source, decoded)


def ndpi_of_strips(path: Path, change: Callable[[list[bytes]], None], rows: int = 40) -> tuple[TiffSource, Any]:
    """An NDPI whose strips, each with the marker that follows it, were changed, and its pixels as they were."""
    pixels = make_pixels(shape=(8 * rows, 64))
    path.write_bytes(ndpi_bytes(pixels, change))
    return open_path(path), imagecodecs.jpeg_decode(restart_jpeg(pixels))


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize(
    ("own", "said"), [((126, 200), (128, 204)), ((127, 203), (128, 203)), ((250, 503), (256, 512))]
)
def test_an_ndpi_level_whose_jpeg_is_smaller_than_its_tags(
    tmp_path: Path, own: tuple[int, int], said: tuple[int, int], is_cut: bool
) -> None:
    pixels = make_pixels(shape=own)
    path = tmp_path / "a.ndpi"
    path.write_bytes(ndpi_bytes(pixels, said=said, is_cut=is_cut))
    source = open_path(path)
    assert source.levels[0].shape == own
    note = f"its JPEG is of {own[0]} x {own[1]} pixels, which is read; the tags say {said[0]} x {said[1]}"
    assert note in source.info.notes
    with Image.open(io.BytesIO(restart_jpeg(pixels))) as picture:
        check_regions(source, np.array(picture))


def test_an_ndpi_level_whose_jpeg_is_much_smaller_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ndpi"
    path.write_bytes(ndpi_bytes(make_pixels(shape=(100, 150)), said=(128, 204), is_cut=False))
    assert "100 x 150 pixels, the TIFF says 128 x 204" in refused(path, read=True)


@pytest.mark.parametrize("compression", ["sequential", "restarts", "grey"])
def test_a_jpeg_without_an_end_marker_is_read_where_its_scan_is_whole(tmp_path: Path, compression: str) -> None:
    rgb = smooth((128, 192))
    pixels = rgb[:, :, 0] if compression == "grey" else rgb
    options = {"restart_marker_blocks": 5} if compression == "restarts" else {}
    segments = cut(np.ascontiguousarray(pixels), (64, 64), lambda part: jpeg(part, **options))
    samples, photometric = (1, 1) if compression == "grey" else (3, 6)

    def file(cut_by: int) -> Path:
        data = [segment[: len(segment) - cut_by] for segment in segments]
        made = page((128, 192), data, tile=(64, 64), samples=samples, photometric=photometric, compression=7)
        return write_tiff(tmp_path / f"{cut_by}.tif", [made])

    whole_file = open_path(file(0))
    assert not [note for note in whole_file.info.notes if "end marker" in note]
    open_ended = open_path(file(2))
    assert "JPEGs without an end marker: those are read whose data is whole" in open_ended.info.notes
    check_regions(open_ended, whole(whole_file))
    for cut_by in (3, 4, 9, 60):
        assert "tile 0 at" in refused(file(cut_by), read=True)
        assert "truncated JPEG: no end marker" in refused(file(cut_by), read=True)


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}])
def test_where_a_later_scan_or_a_lenient_decoder_may_hide_what_is_missing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Progressive scans refine each other; RGB with a colour segment of its own goes to the general decoder."""
    data = [segment[:-2] for segment in cut(smooth((128, 192)), (64, 64), lambda part: jpeg(part, **options))]
    photometric = 6 if "progressive" in options else 2
    made = page((128, 192), data, tile=(64, 64), samples=3, photometric=photometric, compression=7)
    assert "truncated JPEG: no end marker" in refused(write_tiff(tmp_path / "a.tif", [made]), read=True)


@pytest.mark.parametrize(("one", "two", "rows"), [(3, 4, 40), (0, 1, 40), (17, 36, 40), (2, 38, 40), (1, 5, 8)])
def test_exchanged_strips_of_an_ndpi_are_found(tmp_path: Path, one: int, two: int, rows: int) -> None:
    def exchange(strips: list[bytes]) -> None:
        strips[one], strips[two] = strips[two], strips[one]

    source, sound = ndpi_of_strips(tmp_path / "a.ndpi", exchange, rows)
    for index, other in ((one, two), (two, one)):
        with pytest.raises(BadInputError, match=rf"tile {index} .* marker {other % 8}, not in .* {index % 8} as its"):
            source.read(Region(8 * index, 0, 8 * index + 8, 64))
    np.testing.assert_array_equal(source.read(Region(8 * rows - 8, 3, 8 * rows, 9)), sound[-8:, 3:9])


def test_the_end_of_an_ndpis_image_in_its_middle_is_found(tmp_path: Path) -> None:
    def exchange(strips: list[bytes]) -> None:
        strips[5], strips[-1] = strips[-1], strips[5]

    source, _ = ndpi_of_strips(tmp_path / "a.ndpi", exchange)
    with pytest.raises(BadInputError, match=r"tile 5 .* ends in the end marker"):
        source.read(Region(40, 0, 48, 64))


@pytest.mark.parametrize("counts", [lambda i: 0, lambda i: (i + 1) % 8, lambda i: i % 5, lambda i: i * i % 8])
def test_an_ndpi_that_does_not_count_its_markers_is_read(tmp_path: Path, counts: Callable[[int], int]) -> None:
    def number(strips: list[bytes]) -> None:
        for index, strip in enumerate(strips[:-1]):
            strips[index] = strip[:-1] + bytes([0xD0 + counts(index)])

    check_regions(*ndpi_of_strips(tmp_path / "a.ndpi", number))


def test_a_run_of_strips_that_do_not_count_is_no_exchange(tmp_path: Path) -> None:
    """As of a writer that stores one blank strip for all of them."""

    def blank(strips: list[bytes]) -> None:
        for index in range(130, 150):
            strips[index] = strips[index][:-1] + b"\xd3"

    check_regions(*ndpi_of_strips(tmp_path / "a.ndpi", blank, 200))


def test_interpret_needs_known_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", make_pixels())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        page.dtype = None
        with pytest.raises(BadInputError, match="8 bits"):
            interpret(page, "a", mask=False)


# --- JPEG, strictly


def test_damaged_scans_are_found(tmp_path: Path) -> None:
    """Flips inside a scan that libjpeg only warns of; those that shift no block boundary cannot be known."""
    path = write(tmp_path / "a.tif", make_pixels(shape=(64, 64)), tile=(64, 64), compression="jpeg")
    (offset, count), data = segments(path)[0], path.read_bytes()
    scan = data.index(b"\xff\xda", offset) + 14
    rng, found = np.random.default_rng(0), 0
    for at in rng.integers(scan, offset + count - 2, 60):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            whole(open_path(path))
        except BadInputError as error:
            found += "cannot be decoded" in str(error)
    assert 5 < found < 60


@pytest.mark.parametrize("how", ["zero padding", "a hole", "scans"])
def test_padding_is_no_damage_but_a_hole_is(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "a.tif", make_pixels(shape=(64, 64)), tile=(64, 64), compression="jpeg")
    sound, (offset, count) = whole(open_path(path)), segments(path)[0]
    jpeg = path.read_bytes()[offset : offset + count]
    changed = {
        "zero padding": jpeg[:-2] + bytes(7) + b"\xff\xd9",
        "a hole": jpeg[: count // 2] + bytes(100) + jpeg[count // 2 + 100 :],
        "scans": jpeg[:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9",
    }[how]
    with open(path, "ab") as file:
        start = file.tell()
        file.write(changed)
    patch_tag(path, 324, start)
    patch_tag(path, 325, len(changed))
    if how == "zero padding":
        np.testing.assert_array_equal(whole(open_path(path)), sound)
    else:
        assert "tile 0 at" in refused(path, read=True)


# --- what other codecs' headers claim


@pytest.mark.parametrize(("codec", "code"), [("lerc", 34887), ("jpegxl", 50002), ("jpegxr", 34934)])
def test_sizes_in_other_codecs_own_headers(codec: str, code: int) -> None:
    encode = getattr(imagecodecs, f"{codec}_encode")
    for height, width in [(512, 512), (240, 256), (300, 77), (16, 1000)]:
        data = encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        check_header(data, code, (height, width, 3), (height, width))
        for stored in [(height // 2, width, 3), (height, width // 2, 3)]:
            with pytest.raises(SegmentError, match=f"{height} x {width}"):
                check_header(data, code, stored, stored[:2])
        with pytest.raises(SegmentError):
            check_header(data[:8], code, (height, width, 3), (height, width))


def test_samples_in_other_codecs_own_headers() -> None:
    many = np.zeros((64, 64, 40), np.uint8)
    for code, data in [(34887, imagecodecs.lerc_encode(many)), (34712, imagecodecs.jpeg2k_encode(many[..., :4]))]:
        with pytest.raises(SegmentError, match="samples per pixel, the TIFF says 3"):
            check_header(data, code, (64, 64, 3), (64, 64))


def test_unlike_pages_by_the_thousand(tmp_path: Path) -> None:
    """As a parser groups pages by what they are, each against all others, this took half a minute."""
    path, parts = tmp_path / "a.tif", [struct.pack("<2sHI", b"II", 42, 8)]
    for number in range(2000):
        tags = [(256, 3, 1, 16 + number), (257, 3, 1, 16), (258, 3, 1, 8), (273, 4, 1, 8), (279, 4, 1, 99)]
        after = 8 + 66 * (number + 1)
        parts.append(struct.pack("<H", 5) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", after))
    path.write_bytes(b"".join(parts))
    assert "more than 512 TIFF pages that are unlike" in refused(path)


def test_a_raw_strip_that_states_too_few_bytes_is_refused(tmp_path: Path) -> None:
    """The bytes after it are another strip's: a tiled file that lost its TileWidth gave those as pixels."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((3, 64, 96), np.uint8), photometric="rgb", planarconfig="separate", tile=(32, 32))
    with tifffile.TiffFile(path, mode="r+") as file:
        entry = file.pages[0].tags["TileWidth"].offset
    data = bytearray(path.read_bytes())
    data[entry + 2 : entry + 4] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=r"a\.tif"):
        open_source(path).read(Region(0, 0, 64, 96))
