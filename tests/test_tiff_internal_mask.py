"""GDAL's internal mask pages as alpha, against GDAL's own reading of them (rasterio), at every level."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_tiff import cut, page, smooth, write_tiff

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import open_source
from tiledblend.sources.base import Alpha, SourceSpec
from tiledblend.sources.tiff.source import TiffSource, open_tiff

rasterio = pytest.importorskip("rasterio")
copy = pytest.importorskip("rasterio.shutil").copy
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

SHAPE = (300, 420)


def pixels(dtype: str, bands: int) -> Any:
    values = np.concatenate([smooth(SHAPE, seed) for seed in range(3)], 2)[:, :, :bands]
    return values.astype(dtype) * (200 if dtype == "uint16" else 1)


def shown() -> Any:
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:250, 33:400] = 255
    mask[101:150, 101:171] = 0
    return mask


def write(path: Path, values: Any, *, driver: str, **how: Any) -> Path:
    """A GTiff with an internal mask and two overviews, or a COG of it."""
    plain = path.with_name("plain.tif") if driver == "COG" else path
    bands = np.moveaxis(values, 2, 0)
    first = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"} | (
        how if driver != "COG" else {}
    )
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(
            plain, "w", driver="GTiff", height=SHAPE[0], width=SHAPE[1], count=len(bands), dtype=bands.dtype, **first
        ) as file:
            file.write(bands)
            file.write_mask(shown())
        with rasterio.open(plain, "r+") as file:
            file.build_overviews([2, 4], rasterio.enums.Resampling.average)
        if driver == "COG":
            copy(plain, path, driver="COG", blocksize=128, overview_resampling="average", **how)
    return path


def by_gdal(path: Path, level: int) -> Any:
    options = {} if level == 0 else {"overview_level": level - 1}
    with rasterio.open(path, **options) as file:
        return np.moveaxis(np.concatenate([file.read(), file.dataset_mask()[np.newaxis].astype(file.dtypes[0])]), 0, 2)


def opened(path: Path, **spec: Any) -> TiffSource:
    return open_tiff(SourceSpec(str(path), **spec))


@pytest.mark.parametrize(("driver", "how"), [
    ("COG", {"compress": "deflate"}), ("COG", {"compress": "JPEG"}), ("GTiff", {}), ("GTiff", {"interleave": "band"}),
    ("GTiff", {"tiled": False, "blockysize": 16}),
])  # fmt: skip
@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 3), ("uint8", 1), ("uint16", 3), ("float32", 1), ("uint8", 5)])
def test_the_mask_is_the_alpha_at_every_level(
    tmp_path: Path, driver: str, how: dict[str, Any], dtype: str, bands: int
) -> None:
    if how.get("compress") == "JPEG" and (dtype, bands) != ("uint8", 3):
        pytest.skip("JPEG of three colours only")
    colours = {"photometric": "RGB"} if bands == 3 and driver == "GTiff" else {}
    path = write(tmp_path / "a.tif", pixels(dtype, bands), driver=driver, **how, **colours)
    source = opened(path)
    assert (source.channels, source.alpha) == (bands + 1, Alpha.STRAIGHT)
    assert any("is the mask of its pixels: it is the alpha channel, at every level" in n for n in source.info.notes)
    assert len(source.levels) >= 2
    full = 1 if dtype == "float32" else np.iinfo(dtype).max
    for level, stored in enumerate(source.levels):
        wanted = by_gdal(path, level)
        wanted[:, :, -1] = np.where(wanted[:, :, -1] != 0, full, 0)
        found = source.read(Region.of_shape(stored.shape), level)
        off = np.abs(found.astype(float) - wanted)
        assert off.mean() < 1 if how.get("compress") == "JPEG" else not off.any()  # decoders of JPEG differ
        np.testing.assert_array_equal(found[..., -1], wanted[..., -1])
        region = Region(3, 5, stored.shape[0] - 2, stored.shape[1] - 7)
        np.testing.assert_array_equal(source.read(region, level), found[region.slices])


def test_channels_and_levels_with_a_mask(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels("uint8", 3), driver="COG", compress="deflate")
    everything = by_gdal(path, 0)
    for channels, alpha in [
        ((0, 1, 2), Alpha.NONE),
        ((3,), Alpha.NONE),
        ((1, 3), Alpha.STRAIGHT),
        ((3, 0), Alpha.NONE),
    ]:
        source = opened(path, channels=channels)
        assert source.alpha is alpha
        assert source.is_rgb is (channels == (0, 1, 2))
        found = source.read(Region.of_shape(SHAPE))
        np.testing.assert_array_equal(found, everything[:, :, list(channels)])
        assert source.uniform(Region(0, 0, 10, 10)) is None or channels != (3,)
    smaller = opened(path, level=1)
    np.testing.assert_array_equal(smaller.read(Region.of_shape(smaller.shape)), by_gdal(path, 1))
    again = pickle.loads(pickle.dumps(smaller))
    np.testing.assert_array_equal(again.read(Region.of_shape(again.shape)), by_gdal(path, 1))
    assert opened(path).fingerprint()["structure"] != opened(path, channels=(0, 1, 2)).fingerprint()["structure"]
    with pytest.raises(BadInputError, match="has no channel 4; it has 4"):
        opened(path, channels=(4,))
    assert open_source(str(path), mask=True).channels == 3


def deflate(part: Any) -> bytes:
    return zlib.compress(part.tobytes())


def bits(mask: Any) -> bytes:
    return zlib.compress(np.packbits(mask > 0, axis=1).tobytes())


def own_file(path: Path, *, mask_of_level: bool = True, turned: int = 1, alpha: bool = False) -> tuple[Any, Any]:
    rgb, mask = smooth((128, 192)), shown()[:128, :192]
    values = np.concatenate([rgb, mask[..., np.newaxis]], 2) if alpha else rgb
    more = {274: (3, [turned])} | ({338: (3, [2])} if alpha else {})
    tile, small = (64, 64), (64, 64)

    def image(of: Any, kind: int) -> Any:
        return page(
            of.shape[:2], cut(np.ascontiguousarray(of), tile, deflate), tile=tile, samples=of.shape[2], photometric=2,
            compression=8, more={**more, 254: (4, [kind])},
        )  # fmt: skip

    def mask_page(of: Any, kind: int) -> Any:
        return page(
            of.shape, cut(np.ascontiguousarray(of), small, bits), tile=small, bits=1, photometric=4, compression=8,
            more={274: (3, [turned]), 254: (4, [kind])},
        )  # fmt: skip

    pages = [image(values, 0), mask_page(mask, 4), image(values[::2, ::2], 1)]
    write_tiff(path, [*pages, mask_page(mask[::2, ::2], 5)] if mask_of_level else pages)
    return rgb, mask


def test_a_level_without_a_mask_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    own_file(path, mask_of_level=False)
    source = opened(path)
    assert len(source.levels) == 1
    assert any("pyramid ends at level 0: the next is not used: it has no mask page" in n for n in source.info.notes)
    own_file(path)
    assert len(opened(path).levels) == 2


def test_an_alpha_channel_of_its_own_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    rgb, mask = own_file(path, alpha=True)
    source = opened(path)
    assert (source.channels, source.alpha) == (4, Alpha.STRAIGHT)
    assert any("a mask page is not used" in note for note in source.info.notes)
    np.testing.assert_array_equal(source.read(Region.of_shape(source.shape)), np.dstack([rgb, mask]))


def test_a_turned_mask(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    rgb, mask = own_file(path, turned=6)
    source = opened(path)
    np.testing.assert_array_equal(source.read(Region.of_shape(source.shape)), np.rot90(np.dstack([rgb, mask]), -1))
