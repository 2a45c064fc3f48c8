"""Tiles and strips that are not stored, or stored oddly, and LERC's masks: against GDAL (rasterio) and Pillow."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import zstandard
from own_tiff import bare_jpeg, cut, jpeg, page, smooth, to_ycbcr, write_tiff
from PIL import Image

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.tiff.lerc import Lerc
from tiledblend.sources.tiff.segments import SegmentError
from tiledblend.sources.tiff.source import TiffSource, open_tiff

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

SHAPE, TILE = (150, 203), (64, 80)
RGB = smooth(SHAPE)
GREY = np.ascontiguousarray(RGB[:, :, 0])
HOLE = Region(64, 80, 128, 160)  # tile 4 of 9
CASES = Path(__file__).parents[2] / "shared" / "cases" / "tiff"


def opened(path: Path, **spec: Any) -> TiffSource:
    return open_tiff(SourceSpec(str(path), **spec), mask=spec.pop("mask", False))


def whole(source: TiffSource, level: int = 0) -> Any:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def deflate(part: Any) -> bytes:
    return zlib.compress(part.tobytes())


def by_gdal(path: Path) -> Any:
    with rasterio.open(path) as file:
        return np.moveaxis(file.read(), 0, 2)


def sparse(
    path: Path, pixels: Any, *, encode: Any = deflate, compression: int = 8, nodata: str = "", **how: Any
) -> Path:
    """A TIFF whose tile 4 is not stored."""
    segments = cut(pixels, TILE, encode)
    segments[4] = b""
    more = {**how.pop("more", {}), **({42113: (2, nodata)} if nodata else {})}
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    made = page(
        SHAPE, segments, tile=TILE, samples=samples, bits=8 * pixels.dtype.itemsize, compression=compression,
        more=more, **how,
    )  # fmt: skip
    return write_tiff(path, [made])


def check_hole(path: Path, wanted: Any, stored: Any) -> TiffSource:
    """Refused without the flag, naming what it would read as; with it as wanted in the hole, as stored elsewhere."""
    fill = np.atleast_1d(wanted)
    said = str(fill[0]) if len(set(fill.tolist())) == 1 else ", ".join(str(value) for value in fill.tolist())
    with pytest.raises(BadInputError, match=f"tile 4 at .* sparse.* pass --allow-sparse to read it as {said}$"):
        whole(opened(path))
    source = opened(path, allow_sparse=True)
    stored = stored.copy() if stored.ndim == 3 else stored[:, :, np.newaxis].copy()
    stored[HOLE.slices] = wanted
    np.testing.assert_array_equal(whole(source), stored)
    np.testing.assert_array_equal(source.read(HOLE), stored[HOLE.slices])
    lacks, refused = source.unstored(), opened(path).unstored()
    assert lacks is not None
    assert refused is not None
    assert (lacks.missing, lacks.chunks, lacks.first, lacks.fill, lacks.refused) == (1, 9, HOLE, said, False)
    assert refused.refused
    return source


@pytest.mark.parametrize(("nodata", "value"), [("", 0), ("255", 255), ("7", 7), ("300", 0), ("-9999", 0), ("nan", 0)])
def test_nodata_of_a_hole(tmp_path: Path, nodata: str, value: int) -> None:
    path = sparse(tmp_path / "a.tif", RGB, nodata=nodata, photometric=2)
    check_hole(path, [value] * 3, RGB)
    if nodata in ("", str(value)):
        np.testing.assert_array_equal(whole(opened(path, allow_sparse=True)), by_gdal(path))


def test_nodata_of_16_bits_and_floats(tmp_path: Path) -> None:
    deep = GREY.astype("<u2") * 200
    check_hole(sparse(tmp_path / "a.tif", deep, nodata="65535"), 65535, deep)
    real = (GREY / 7).astype("<f4")
    path = sparse(tmp_path / "b.tif", real, nodata="-9999", more={339: (3, [3])})
    check_hole(path, -9999.0, real)
    np.testing.assert_array_equal(whole(opened(path, allow_sparse=True)), by_gdal(path))
    path = sparse(tmp_path / "c.tif", real, nodata="nan", more={339: (3, [3])})
    found = whole(opened(path, allow_sparse=True))
    assert np.isnan(found[HOLE.slices]).all()
    np.testing.assert_array_equal(found, by_gdal(path))


def test_a_hole_in_min_is_white_is_white(tmp_path: Path) -> None:
    check_hole(sparse(tmp_path / "a.tif", GREY, photometric=0), 255, 255 - GREY)
    check_hole(sparse(tmp_path / "b.tif", GREY, photometric=0, nodata="5"), 250, 255 - GREY)


def test_a_hole_in_a_palette_has_the_first_colour(tmp_path: Path) -> None:
    colours = np.arange(256)
    table = np.stack([255 - colours, colours, (colours + 90) % 256])
    more = {320: (3, (table * 257).ravel().tolist())}
    path = sparse(tmp_path / "a.tif", GREY, photometric=3, more=more)
    check_hole(path, [255, 0, 90], table.T.astype(np.uint8)[GREY])
    check_hole(sparse(tmp_path / "b.tif", GREY, photometric=3, more=more, nodata="10"), [245, 10, 100], table.T[GREY])
    labels = open_tiff(SourceSpec(str(path), allow_sparse=True), mask=True)
    assert not labels.read(HOLE).any()


@pytest.mark.parametrize("nodata", ["", "255"])
def test_a_hole_in_jpeg_is_black_or_nodata(tmp_path: Path, nodata: str) -> None:
    path = sparse(
        tmp_path / "a.tif", RGB, encode=jpeg, compression=7, photometric=6, more={530: (3, [1, 1])}, nodata=nodata
    )
    found = whole(opened(path, allow_sparse=True))
    assert (found[HOLE.slices] == int(nodata or 0)).all()
    assert np.abs(found.astype(int) - by_gdal(path)).mean() < 1


def test_a_hole_in_planes(tmp_path: Path) -> None:
    segments = [data for k in range(3) for data in cut(np.ascontiguousarray(RGB[:, :, k]), TILE, deflate)]
    segments[9 + 4] = b""
    more = {42113: (2, "9")}
    made = page(SHAPE, segments, tile=TILE, samples=3, photometric=2, compression=8, planar=2, more=more)
    path = write_tiff(tmp_path / "a.tif", [made])
    wanted = RGB.copy()
    wanted[HOLE.slices][:, :, 1] = 9
    source = opened(path, allow_sparse=True)
    np.testing.assert_array_equal(whole(source), wanted)
    lacks = source.unstored()
    assert lacks is not None
    assert (lacks.missing, lacks.chunks, lacks.first) == (1, 27, HOLE)
    assert opened(path, channels=(0, 2)).unstored() is None
    ycbcr = np.moveaxis(to_ycbcr(RGB), 2, 0)
    segments = [
        data for plane in ycbcr for data in cut(np.ascontiguousarray(plane), TILE, lambda p: bare_jpeg(jpeg(p)))
    ]
    segments[4] = segments[9 + 4] = segments[18 + 4] = b""
    made = page(SHAPE, segments, tile=TILE, samples=3, photometric=6, compression=7, planar=2, more={530: (3, [1, 1])})
    source = opened(write_tiff(tmp_path / "b.tif", [made]), allow_sparse=True)
    assert not source.read(HOLE).any()
    lacks = source.unstored()
    assert lacks is not None
    assert (lacks.missing, lacks.chunks) == (3, 27)


def test_smaller_levels_have_the_same_nodata(tmp_path: Path) -> None:
    small = np.ascontiguousarray(RGB[::2, ::2])
    segments = cut(small, (32, 32), deflate)
    segments[0] = b""
    below = page(
        small.shape[:2], segments, tile=(32, 32), samples=3, photometric=2, compression=8, more={254: (4, [1])}
    )
    first = page(
        SHAPE, cut(RGB, TILE, deflate), tile=TILE, samples=3, photometric=2, compression=8, more={42113: (2, "255")}
    )
    source = opened(write_tiff(tmp_path / "a.tif", [first, below]), allow_sparse=True)
    assert len(source.levels) == 2
    assert (whole(source, 1)[:32, :32] == 255).all()
    assert source.unstored(0) is None
    assert source.unstored(1) is not None


def test_where_a_turned_hole_is(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", GREY, more={274: (3, [6])}, nodata="255")
    source = opened(path, allow_sparse=True)
    lacks = source.unstored()
    assert lacks is not None
    assert lacks.first is not None
    assert (source.read(lacks.first) == 255).all()
    assert lacks.first.shape == (80, 64)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [150, 40])
@pytest.mark.parametrize("bits", [8, 16, 1])
def test_uncompressed_strips_of_byte_count_0_are_stored(tmp_path: Path, order: str, rows: int, bits: int) -> None:
    values = GREY > 100 if bits == 1 else GREY.astype(f"{order}u{bits // 8}")
    raw = np.packbits(values, axis=1) if bits == 1 else values
    strips = [raw[y : y + rows].tobytes() for y in range(0, SHAPE[0], rows)]
    made = page(SHAPE, strips, bits=bits, more={278: (3, [rows])}, counts=[0] * len(strips))
    path = write_tiff(tmp_path / "a.tif", [made], order=order)
    found = open_tiff(SourceSpec(str(path)), mask=bits == 1).read(Region.of_shape(SHAPE))[:, :, 0]
    np.testing.assert_array_equal(found, values)
    if bits == 8 and rows == 150:
        np.testing.assert_array_equal(found, np.array(Image.open(path)))


def test_an_uncompressed_tile_of_byte_count_0_is_absent(tmp_path: Path) -> None:
    """As GDAL and tifffile have it, wherever its offset points."""
    segments = cut(GREY, TILE)
    counts = [0 if k == 4 else len(data) for k, data in enumerate(segments)]
    check_hole(write_tiff(tmp_path / "a.tif", [page(SHAPE, segments, tile=TILE, counts=counts)]), 0, GREY)


# --- LERC


def gdal_lerc(path: Path, pixels: Any, **how: Any) -> Any:
    bands = np.moveaxis(pixels, 2, 0)
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=len(bands), dtype=bands.dtype,
        tiled=True, blockxsize=64, blockysize=64, **{"compress": "LERC", "interleave": "pixel", **how},
    ) as file:  # fmt: skip
        file.write(bands)
    return by_gdal(path)


def lerc_pixels(kind: str) -> Any:
    rng = np.random.default_rng(0)
    alpha = {
        "opaque": np.full((*SHAPE, 1), 255), "clear": np.zeros((*SHAPE, 1)),
        "mask": 255 * (rng.random((*SHAPE, 1)) > 0.5), "soft": rng.integers(0, 256, (*SHAPE, 1)),
    }.get(kind)  # fmt: skip
    if alpha is not None:
        return np.concatenate([RGB, alpha.astype(np.uint8)], 2)
    bands = (RGB / 7).astype(np.float32)
    bands = bands[:, :, :1] if kind.startswith("grey") else bands
    if "one" in kind:
        bands[20:90, 30:190, -1] = np.nan
    elif "nan" in kind:
        bands[20:90] = np.nan
    return bands


@pytest.mark.parametrize("compress", ["LERC", "LERC_DEFLATE", "LERC_ZSTD"])
@pytest.mark.parametrize(
    "kind", ["opaque", "clear", "mask", "soft", "grey", "grey nan", "three", "three nan", "three, nan in one"]
)
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_lerc_as_gdal_reads_it(tmp_path: Path, kind: str, compress: str, interleave: str) -> None:
    pixels = lerc_pixels(kind)
    colours = {"photometric": "RGB", "ALPHA": "YES"} if pixels.shape[2] == 4 else {}
    path = tmp_path / "a.tif"
    try:
        wanted = gdal_lerc(path, pixels, compress=compress, interleave=interleave, **colours)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"this GDAL cannot write {compress}: {error}")
    source = opened(path)
    np.testing.assert_array_equal(whole(source), wanted)
    np.testing.assert_array_equal(source.read(Region(10, 20, 140, 200)), wanted[10:140, 20:200])


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside the checkout")
@pytest.mark.parametrize("name", ["lerc_nan_1band.tif", "lerc_nan_in_one_of_3.tif", "lerc_rgba_opaque.tif"])
def test_lerc_cases(name: str) -> None:
    np.testing.assert_array_equal(whole(opened(CASES / name)), by_gdal(CASES / name))


def test_masked_integers_are_0(tmp_path: Path) -> None:
    mask = np.zeros(TILE, bool)
    mask[10:40, 10:50] = True
    part = np.ascontiguousarray(RGB[: TILE[0], : TILE[1]])
    data = bytes(imagecodecs.lerc_encode(part, masks=mask))
    path = write_tiff(
        tmp_path / "a.tif", [page(TILE, [data], tile=TILE, samples=3, photometric=2, compression=34887,
                                  more={50674: (4, [4, 0])})],
    )  # fmt: skip
    np.testing.assert_array_equal(whole(opened(path)), np.where(mask[:, :, np.newaxis], part, 0))


def test_hostile_lerc() -> None:
    part = np.ascontiguousarray(RGB[:64, :64])
    blob = bytes(imagecodecs.lerc_encode(part))
    stored = (64, 64, 3)
    np.testing.assert_array_equal(Lerc(0, 1, False).decode(blob, stored, (64, 64)), part)
    for data, said in [
        (blob[:-20], "truncated LERC"),
        (b"CntZImage " + blob, "not a Lerc2 blob"),
        (blob + blob, "6 samples per pixel"),
        (blob[:14] + struct.pack("<2i", 9, 9) + blob[22:], "9 x 9"),
        (blob[:34] + struct.pack("<i", 0) + blob[38:], "sizes of 0"),
    ]:
        with pytest.raises(SegmentError, match=said):
            Lerc(0, 1, False).decode(data, stored, (64, 64))
    bomb = bytes(50 << 20)
    for wrapping, data in [(1, zlib.compress(bomb)), (2, zstandard.ZstdCompressor().compress(bomb))]:
        with pytest.raises(SegmentError, match="around LERC"):
            Lerc(wrapping, 1, False).decode(data, stored, (64, 64))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bomb)
    with pytest.raises(zstandard.ZstdError):
        Lerc(2, 1, False).decode(streamed, stored, (64, 64))
