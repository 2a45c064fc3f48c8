"""OME-TIFF of a result: other readers see the same pixels at every level; a broken one never has the name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr

import tiledblend as tb
from tiledblend.errors import BadInputError, RefusedError, StorageError, UsageError
from tiledblend.geometry import Region
from tiledblend.ometiff import OME, TiffOptions, export_ometiff
from tiledblend.run import ProgressEvent, write
from tiledblend.sources import Alpha, RasterSource, open_source

OUTPUT = tb.OutputSpec(chunk=64, shard=128)
COLORS = ("FF0000", "00FF00", "0000FF", "FFFF00", "00FFFF", "FF00FF", "FFFFFF")
NAMES = ("DAPI", "CD3 ε", "<CD8>", "Ki-67 & co", "PanCK", "", "AF")
EXACT = ("deflate", "zstd", "none")


def stored(folder: Path, kind: str, shape: tuple[int, int] = (301, 215)) -> RasterSource:
    """A result made by a run without dask: smooth noise, so that JPEG has something to keep."""
    random = np.random.default_rng(4)
    steps = [np.linspace(0, 1, n) for n in shape]
    smooth = np.sin(6 * steps[0])[:, None] * np.cos(5 * steps[1])[None]
    canvas = None
    if kind in ("rgb", "rgba"):
        channels = len(kind)
        pixels = (
            128 + 90 * smooth[:, :, None] * np.linspace(0.5, 1, channels) + random.uniform(0, 8, (*shape, 1))
        ).astype(np.uint8)
        alpha = Alpha.STRAIGHT if kind == "rgba" else Alpha.NONE
        image = tb.from_array(pixels, axes="yxc", alpha=alpha, pixel_size_um=(0.5, 0.25))
    else:
        count, dtype = (7, np.uint16) if kind == "fluorescence" else (1, np.dtype(kind).type)
        full = 60000 if dtype is np.uint16 else 200
        planes = random.uniform(0, full, (count, *shape)).astype(dtype)
        image = tb.from_array(planes, axes="cyx", pixel_size_um=(0.5, 0.25))
        if count == 7:
            canvas = tb.Canvas(shape, pixel_size_um=(0.5, 0.25), channel_names=NAMES, channel_colors=COLORS)
    path = str(folder / f"{kind}.ome.zarr")
    composite = tb.Composite([tb.Layer(image)], canvas=canvas)
    write(composite, path, output=OUTPUT, part=(1, 1))
    write(composite, path, output=OUTPUT, finish=True)
    return open_source(path)


def level_pixels(source: RasterSource, level: int) -> Any:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def in_tiff(path: Path) -> list[Any]:
    """Every level of the one series as (y, x, c), by tifffile."""
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert tiff.is_bigtiff
        assert len(tiff.series) == 1
        axes = tiff.series[0].axes
        levels = [level.asarray() for level in tiff.series[0].levels]
    if axes == "CYX":
        return [np.moveaxis(level, 0, 2) for level in levels]
    return [level if axes == "YXS" else level[:, :, None] for level in levels]


@pytest.mark.parametrize("compression", EXACT)
@pytest.mark.parametrize("kind", ["rgb", "rgba", "fluorescence", "float32", "uint8"])
def test_tifffile_reads_every_level_bit_for_bit(tmp_path: Path, kind: str, compression: Any) -> None:
    source = stored(tmp_path, kind)
    path = tmp_path / "out.ome.tif"
    done = export_ometiff(source.spec.path, path, TiffOptions(compression, tile=64))
    assert (done.levels, done.bytes_written) == (len(source.levels), path.stat().st_size)
    assert len(source.levels) == 4
    levels = in_tiff(path)
    assert len(levels) == len(source.levels)
    for level, pixels in enumerate(levels):
        np.testing.assert_array_equal(pixels, level_pixels(source, level))


@pytest.mark.parametrize("kind", ["rgb", "uint8", "fluorescence"])
def test_libvips_and_openslide_read_the_same(tmp_path: Path, kind: str) -> None:
    pyvips = pytest.importorskip("pyvips", reason="pyvips is not installed")
    openslide = pytest.importorskip("openslide", reason="openslide is not installed")
    source = stored(tmp_path, kind)
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TiffOptions("deflate", tile=64))
    for level in range(len(source.levels)):
        expected = level_pixels(source, level)
        options = {"subifd": level - 1} if level else {}
        pages = 1 if kind == "rgb" else source.channels
        for page in range(pages):
            seen = pyvips.Image.new_from_file(str(path), page=page, **options).numpy()
            channel = expected if kind == "rgb" else expected[:, :, page]
            np.testing.assert_array_equal(seen.reshape(channel.shape), channel)
    if kind == "fluorescence":
        return
    with openslide.OpenSlide(str(path)) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        height, width = source.shape
        seen = np.asarray(slide.read_region((0, 0), 0, (width, height)))[:, :, : source.channels]
        np.testing.assert_array_equal(seen, level_pixels(source, 0))


@pytest.mark.parametrize("kind", ["rgb", "uint8"])
def test_jpeg_is_near(tmp_path: Path, kind: str) -> None:
    source = stored(tmp_path, kind, (200, 215))
    flat = tmp_path / "flat.ome.tif"
    export_ometiff(source, flat, TiffOptions("jpeg", quality=95, tile=64))
    for level, pixels in enumerate(in_tiff(flat)):
        off = np.abs(pixels.astype(int) - level_pixels(source, level))
        assert off.mean() < 4
    with tifffile.TiffFile(flat) as tiff:
        page = tiff.pages[0]
        assert page.compression == tifffile.COMPRESSION.JPEG
        assert page.photometric == (tifffile.PHOTOMETRIC.YCBCR if kind == "rgb" else tifffile.PHOTOMETRIC.MINISBLACK)
    openslide = pytest.importorskip("openslide", reason="openslide is not installed")
    with openslide.OpenSlide(str(flat)) as slide:
        seen = np.asarray(slide.read_region((0, 0), 0, (215, 200)))[:, :, : source.channels].astype(int)
    assert np.abs(seen - level_pixels(source, 0)).mean() < 4


def test_our_own_reader_takes_it_back(tmp_path: Path) -> None:
    source = stored(tmp_path, "fluorescence")
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TiffOptions("zstd", tile=64))
    again = open_source(path)
    assert (again.pixel_size_um, again.channels, again.dtype) == ((0.5, 0.25), 7, np.uint16)
    assert again.info.channel_names == NAMES or again.info.channel_names[:5] == NAMES[:5]
    assert again.info.channel_colors == COLORS
    assert [level.shape for level in again.levels] == [level.shape for level in source.levels]
    np.testing.assert_array_equal(level_pixels(again, 2), level_pixels(source, 2))


def test_ome_xml(tmp_path: Path) -> None:
    source = stored(tmp_path, "fluorescence")
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TiffOptions("none", tile=64))
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].description
        assert all(len(page.subifds) == len(source.levels) - 1 for page in tiff.pages)
        assert tiff.pages[0].get_resolution("micrometer") == pytest.approx((4, 2))
    assert text.isascii()
    root = ElementTree.fromstring(text)
    pixels = root.find(f"{{{OME}}}Image/{{{OME}}}Pixels")
    assert pixels is not None
    wanted = {
        "SizeC": "7",
        "SizeX": "215",
        "SizeY": "301",
        "Type": "uint16",
        "PhysicalSizeX": "0.25",
        "PhysicalSizeY": "0.5",
    }
    assert wanted.items() <= pixels.attrib.items()
    channels = pixels.findall(f"{{{OME}}}Channel")
    assert [c.get("Name", "") for c in channels] == list(NAMES)
    assert [int(c.get("Color", "0")) & 0xFFFFFFFF for c in channels] == [int(c, 16) << 8 | 255 for c in COLORS]
    data = pixels.findall(f"{{{OME}}}TiffData")
    assert [(d.get("IFD"), d.get("FirstC"), d.get("PlaneCount")) for d in data] == [
        (str(i), str(i), "1") for i in range(7)
    ]


def test_nothing_of_the_folder_or_scanner_is_carried(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path)
    assert str(tmp_path).encode() not in path.read_bytes()


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    events: list[ProgressEvent] = []
    export_ometiff(source, tmp_path / "out.ome.tif", TiffOptions(tile=64), progress=events.append)
    last = events[-1]
    assert last.done_tiles == last.tiles == len(events)
    assert last.done_pixels == last.pixels == sum(h * w for h, w in (level.shape for level in source.levels))


@pytest.mark.parametrize("name", ["out.ome.tif", "out.png"])
def test_existing_outputs_stay(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises((RefusedError, UsageError)):
        export_ometiff(stored(tmp_path, "rgb"), path)
    assert path.read_text() == "mine"


def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    path = tmp_path / "out.ome.tif"

    def race(event: ProgressEvent) -> None:
        path.write_text("theirs")

    with pytest.raises(RefusedError, match="exists"):
        export_ometiff(source, path, progress=race)
    assert path.read_text() == "theirs"
    assert sorted(p.name for p in tmp_path.glob(".*tmp*")) == []


class Breaking(RasterSource):
    """A source that fails at its last rows."""

    def __init__(self, source: RasterSource, error: BaseException) -> None:
        self.__dict__.update(vars(source))
        self._inner, self._error = source, error

    def _read(self, region: Region, level: int) -> Any:
        if region.y1 == self.shape[0]:
            raise self._error
        return self._inner.read(region, level)

    def fingerprint(self) -> dict[str, Any]:
        return self._inner.fingerprint()


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("torn"), BadInputError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_broken_export_leaves_nothing(tmp_path: Path, error: BaseException, told: type[BaseException]) -> None:
    source = Breaking(stored(tmp_path, "rgb"), error)
    with pytest.raises(told):
        export_ometiff(source, tmp_path / "out.ome.tif", TiffOptions(tile=64))
    assert [p.name for p in tmp_path.iterdir() if "tif" in p.name] == []


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jpeg holds uint8 without alpha, not uint16"):
        export_ometiff(stored(tmp_path, "fluorescence"), tmp_path / "a.ome.tif", TiffOptions("jpeg"))
    rgb = stored(tmp_path, "rgb")
    with pytest.raises(UsageError, match=r"named \.ome\.tif"):
        export_ometiff(rgb, tmp_path / "a.ome.zarr")
    with pytest.raises(StorageError, match="does not exist"):
        export_ometiff(rgb, tmp_path / "none" / "a.ome.tif")
    for wrong in ({"tile": 100}, {"quality": 0}, {"compression": "lzw"}, {"threads": 0}):
        with pytest.raises(UsageError):
            TiffOptions(**wrong)


def test_any_zarr_will_do(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (130, 90), dtype=np.uint8)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=pixels, chunks=(64, 64))
    export_ometiff(tmp_path / "a.zarr" / "0", tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(in_tiff(tmp_path / "a.ome.tif")[0][:, :, 0], pixels)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiledblend.cli import run_command

    source = stored(tmp_path, "rgb")
    out = tmp_path / "a.ome.tif"
    command = ["export", source.spec.path, str(out), "--compression", "zstd", "--tile", "64", "--json"]
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == 4
    np.testing.assert_array_equal(in_tiff(out)[0], level_pixels(source, 0))
    assert run_command(command) == 3
    assert run_command([*command[:-2], "63"]) == 2
