"""OME-TIFF of a result: other readers see the same pixels at every level; a broken one never has the name."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr
from conftest import ROOT, Command

import tiledblend as tb
from tiledblend.bytes import objects
from tiledblend.containers.commit import clean
from tiledblend.containers.ometiff import joining
from tiledblend.containers.ometiff import place as places
from tiledblend.containers.ometiff.layout import TiffLayout
from tiledblend.containers.ometiff.options import TiffOptions
from tiledblend.containers.ometiff.pages import TileTables
from tiledblend.containers.ometiff.part import PLACE
from tiledblend.containers.ometiff.place import SUFFIX
from tiledblend.containers.ometiff.xml import OME
from tiledblend.errors import BadInputError, InterruptedRun, RefusedError, StorageError, UsageError
from tiledblend.geometry import Region
from tiledblend.look.lines import amount
from tiledblend.run.driver import Running, write
from tiledblend.run.ometiff import export_ometiff
from tiledblend.run.report import ProgressEvent
from tiledblend.sources import Alpha, RasterSource, open_source

OUTPUT = tb.OutputSpec(chunk=64, shard=128)
COLORS = ("FF0000", "00FF00", "0000FF", "FFFF00", "00FFFF", "FF00FF", "FFFFFF")
NAMES = ("DAPI", "CD3 ε", "<CD8>", "Ki-67 & co", "PanCK", "", "AF")
EXACT = ("deflate", "zstd", "jpeg2000", "none")
TILE = TiffOptions(tile=64)


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
    options = TiffOptions(compression, tile=64)
    if (kind, compression) == ("float32", "jpeg2000"):
        with pytest.raises(UsageError, match="jpeg2000 holds uint8 and uint16, not float32"):
            export_ometiff(source, path, options)
        return
    done = export_ometiff(source.spec.path, path, options)
    assert (done.levels, done.bytes_written) == (len(source.levels), path.stat().st_size)
    assert len(source.levels) == 4
    levels = in_tiff(path)
    assert len(levels) == len(source.levels)
    for level, pixels in enumerate(levels):
        np.testing.assert_array_equal(pixels, level_pixels(source, level))
    assert [found.name for found in tmp_path.glob("out.ome.tif*")] == ["out.ome.tif"]


@pytest.mark.parametrize("kind", ["rgb", "uint8", "uint16", "fluorescence"])
def test_libvips_reads_the_same(tmp_path: Path, kind: str) -> None:
    pyvips = pytest.importorskip("pyvips", reason="pyvips is not installed")
    source = stored(tmp_path, kind)
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TILE)
    for level in range(len(source.levels)):
        expected = level_pixels(source, level)
        options = {"subifd": level - 1} if level else {}
        pages = 1 if kind == "rgb" else source.channels
        for page in range(pages):
            seen = pyvips.Image.new_from_file(str(path), page=page, fail_on="warning", **options).numpy()
            channel = expected if kind == "rgb" else expected[:, :, page]
            np.testing.assert_array_equal(seen.reshape(channel.shape), channel)
    if kind == "fluorescence":
        # all pages are planes: no smaller level is taken for one
        assert pyvips.Image.new_from_file(str(path), n=-1).height == 7 * source.shape[0]


@pytest.mark.parametrize("compression", ["deflate", "zstd", "none"])
@pytest.mark.parametrize("kind", ["rgb", "uint8"])
def test_openslide_reads_every_level(tmp_path: Path, kind: str, compression: Any) -> None:
    openslide = pytest.importorskip("openslide", reason="openslide is not installed")
    source = stored(tmp_path, kind)
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TiffOptions(compression, tile=64))
    with openslide.OpenSlide(str(path)) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert slide.level_dimensions == tuple(level.shape[::-1] for level in source.levels)
        for level, size in enumerate(slide.level_dimensions):
            seen = np.asarray(slide.read_region((0, 0), level, size))[:, :, : source.channels]
            np.testing.assert_array_equal(seen, level_pixels(source, level))


def test_the_main_chain_and_the_subifds_are_other_directories_of_the_same_tiles(tmp_path: Path) -> None:
    """The specification: directories of SubIFDs must not be in the main chain."""
    path = tmp_path / "out.ome.tif"
    export_ometiff(stored(tmp_path, "rgb"), path, TILE)
    with tifffile.TiffFile(path) as tiff:
        first, *reduced = tiff.pages
        below = first.pages
        assert len(reduced) == len(below) == 3
        assert not {page.offset for page in tiff.pages} & set(first.subifds)
        for one, other in zip(reduced, below, strict=True):
            assert one.is_reduced
            assert other.is_reduced
            assert one.dataoffsets == other.dataoffsets


@pytest.mark.parametrize(("quality", "subsampling"), [(95, (2, 1)), (85, (2, 2))])
@pytest.mark.parametrize("kind", ["rgb", "uint8"])
def test_jpeg_is_near(tmp_path: Path, kind: str, quality: int, subsampling: tuple[int, int]) -> None:
    source = stored(tmp_path, kind, (200, 215))
    flat = tmp_path / "flat.ome.tif"
    export_ometiff(source, flat, TiffOptions("jpeg", quality, tile=64))
    levels = in_tiff(flat)
    for level, pixels in enumerate(levels):
        off = np.abs(pixels.astype(int) - level_pixels(source, level))
        assert off.mean() < 5
    with tifffile.TiffFile(flat) as tiff:
        page = tiff.pages[0]
        assert page.compression == tifffile.COMPRESSION.JPEG
        assert page.photometric == (tifffile.PHOTOMETRIC.YCBCR if kind == "rgb" else tifffile.PHOTOMETRIC.MINISBLACK)
        if kind == "rgb":
            assert page.subsampling == subsampling
    openslide = pytest.importorskip("openslide", reason="openslide is not installed")
    with openslide.OpenSlide(str(flat)) as slide:
        for level, size in enumerate(slide.level_dimensions):
            seen = np.asarray(slide.read_region((0, 0), level, size))[:, :, : source.channels].astype(int)
            assert np.abs(seen - levels[level]).max() <= 1


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


@pytest.mark.parametrize("kind", ["rgb", "rgba", "fluorescence", "float32"])
def test_the_schema_of_ome_holds(tmp_path: Path, kind: str) -> None:
    ome_types = pytest.importorskip("ome_types", reason="ome-types is not installed")
    xmlschema = pytest.importorskip("xmlschema", reason="xmlschema is not installed")
    path = tmp_path / "out.ome.tif"
    export_ometiff(stored(tmp_path, kind), path, TILE)
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].tags["ImageDescription"].value
    xmlschema.validate(text, str(Path(ome_types.__file__).with_name("ome-2016-06.xsd")))
    pixels = ome_types.from_xml(text).images[0].pixels
    assert (pixels.physical_size_x, pixels.physical_size_y) == (0.25, 0.5)
    assert pixels.physical_size_x_unit.value == "µm"
    if kind == "fluorescence":
        assert [channel.color.as_rgb_tuple(alpha=False) for channel in pixels.channels[:2]] == [
            (255, 0, 0),
            (0, 255, 0),
        ]


def test_ome_xml(tmp_path: Path) -> None:
    source = stored(tmp_path, "fluorescence")
    path = tmp_path / "out.ome.tif"
    export_ometiff(source, path, TiffOptions("none", tile=64))
    with tifffile.TiffFile(path) as tiff:
        text = tiff.pages[0].tags["ImageDescription"].value
        assert len(tiff.pages) == 7
        assert all(len(page.subifds) == len(source.levels) - 1 for page in tiff.pages)
        assert tiff.pages[0].get_resolution("micrometer") == pytest.approx((4, 2))
    # Bio-Formats damages references to characters before it parses
    assert "&#" not in text
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


def test_nothing_of_folder_scanner_or_patient_is_carried(tmp_path: Path, command: Command) -> None:
    slide = tmp_path / "slide.svs"
    pixels = np.random.default_rng(0).integers(0, 255, (300, 280, 3), np.uint8)
    described = "Aperio Image Library v12.0.15|AppMag = 40|MPP = 0.2500|Patient = DOE^JANE|ScanScope ID = CPAPERIO"
    with tifffile.TiffWriter(slide) as tiff:
        tiff.write(pixels, tile=(128, 128), photometric="rgb", description=described, metadata=None)
        tiff.write(pixels[:90, :90], photometric="rgb", description="Aperio\r\nlabel DOE^JANE", metadata=None)
        tiff.write(pixels[:80, :90], photometric="rgb", description="Aperio\r\nmacro DOE^JANE", metadata=None)
    assert command("blend", "slide.svs", "-o", "out.ome.zarr", "--chunk", 64, "--shard", 128).code == 0
    assert command("blend", "slide.svs", "-o", "out.ome.tif", "--chunk", 64, "--shard", 128).code == 0
    assert command("export", "slide.svs", "direct.ome.tif", "--tile", 64).code == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != slide]
    assert len(written) > 5
    for path in written:
        assert b"DOE" not in path.read_bytes()
        assert b"CPAPERIO" not in path.read_bytes()
    for path in (tmp_path / "out.ome.tif", tmp_path / "direct.ome.tif"):
        assert str(tmp_path).encode() not in path.read_bytes()
        with tifffile.TiffFile(path) as tiff:
            assert len(tiff.series) == 1
            np.testing.assert_array_equal(tiff.series[0].asarray(), pixels)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    events: list[ProgressEvent] = []
    export_ometiff(source, tmp_path / "out.ome.tif", TILE, running=Running(progress=events.append))
    last = events[-1]
    assert last.done_tiles == last.tiles == len(events)
    assert last.done_pixels == last.pixels == source.shape[0] * source.shape[1]


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(640, 1000), (65, 31), (1025, 257)])
def test_every_tile_of_the_file_is_in_one_part(planes: int, height: int, width: int) -> None:
    """Where the directories find it, by brute force."""
    grid = OUTPUT.grid((height, width))
    layout = TiffLayout.of_grid(grid, planes, "uint16", TILE, is_rgb=False, alpha=Alpha.NONE)
    tables = TileTables(layout)
    start, expected = 16, {}
    for tile in layout.tiles():
        places = np.zeros(layout.entries(tile), PLACE)
        at = entry = 0
        for level in layout.tile_levels(tile):
            region = grid.tile_region(tile, level)
            for plane in range(planes):
                for y in range(region.y0, region.y1, 64):
                    for x in range(region.x0, region.x1, 64):
                        places[entry] = at, 1 + (at % 7), False
                        expected[level, plane, y // 64, x // 64] = start + at
                        at += 1 + (at % 7)
                        entry += 1
        tables.add(tile, places, start)
        start += at
    for level, shape in enumerate(layout.shapes):
        rows, columns = -(-shape[0] // 64), -(-shape[1] // 64)
        for plane in range(planes):
            wanted = [expected.pop((level, plane, row, column)) for row in range(rows) for column in range(columns)]
            assert tables.offsets[level][plane].tolist() == wanted
    assert not expected


@pytest.mark.parametrize("name", ["out.ome.tif", "out.png"])
def test_existing_outputs_stay(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises((RefusedError, UsageError)):
        export_ometiff(stored(tmp_path, "rgb"), path)
    assert path.read_text() == "mine"
    assert [found.name for found in tmp_path.glob("out*")] == [name]


def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    path = tmp_path / "out.ome.tif"

    def race(event: ProgressEvent) -> None:
        path.write_text("theirs")

    with pytest.raises(RefusedError, match="exists"):
        export_ometiff(source, path, running=Running(progress=race))
    assert path.read_text() == "theirs"
    path.rename(tmp_path / "theirs")
    # all tiles are there: only the name was missing
    done = export_ometiff(source, path, resume=True)
    assert done.resumed_blocks == done.blocks
    np.testing.assert_array_equal(in_tiff(path)[0], level_pixels(source, 0))


class Breaking(RasterSource):
    """A source that fails at its last rows."""

    def __init__(self, source: RasterSource) -> None:
        self.__dict__.update(vars(source))
        self._inner = source

    def _read(self, region: Region, level: int) -> Any:
        if region.y1 == self.shape[0]:
            raise ValueError("torn")
        return self._inner.read(region, level)

    def fingerprint(self) -> dict[str, Any]:
        return self._inner.fingerprint()


def test_a_source_that_breaks_leaves_what_can_be_resumed(tmp_path: Path) -> None:
    source, path, options = stored(tmp_path, "rgb"), tmp_path / "out.ome.tif", TiffOptions(tile=32)
    with pytest.raises(BadInputError, match="torn"):
        export_ometiff(Breaking(source), path, TILE)
    # Before the first tile: there is nothing to go on with.
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(BadInputError, match="torn"):
        export_ometiff(Breaking(source), path, options, running=Running(tb.ClusterOptions(threads_per_worker=1)))
    assert not path.exists()
    with pytest.raises(RefusedError, match=r"unfinished run .* --resume .* clean"):
        export_ometiff(source, path, options)
    with pytest.raises(RefusedError, match=r"another job: layout.options.compression was \"deflate\", is now \"zstd\""):
        export_ometiff(source, path, TiffOptions("zstd", tile=32), resume=True)
    assert export_ometiff(source, path, options, resume=True).resumed_blocks == 1
    np.testing.assert_array_equal(in_tiff(path)[0], level_pixels(source, 0))


def test_an_output_in_its_input_is_refused(tmp_path: Path) -> None:
    source = stored(tmp_path, "rgb")
    with pytest.raises(RefusedError, match="lies inside the input"):
        export_ometiff(source, Path(source.spec.path) / "x.ome.tif")
    assert not list(Path(source.spec.path).glob("x*"))


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"jpeg holds uint8 without alpha, not uint16; use --compression deflate"):
        export_ometiff(stored(tmp_path, "fluorescence"), tmp_path / "a.ome.tif", TiffOptions("jpeg"))
    with pytest.raises(UsageError, match="jpeg holds uint8 without alpha, not uint8 with alpha"):
        export_ometiff(stored(tmp_path, "rgba"), tmp_path / "a.ome.tif", TiffOptions("jpeg"))
    rgb = stored(tmp_path, "rgb")
    for name in ("a.ome.zarr", "a.tif", "s3://bucket/a.ome.tif"):
        with pytest.raises(UsageError, match=r"named \.ome\.tif|on this machine"):
            export_ometiff(rgb, name if "://" in name else tmp_path / name)
    with pytest.raises(StorageError, match="does not exist"):
        export_ometiff(rgb, tmp_path / "none" / "a.ome.tif")
    for wrong in ({"tile": 100}, {"quality": 0}, {"compression": "lzw"}):
        with pytest.raises(UsageError):
            TiffOptions(**wrong)
    for text in ("jpeg:0", "jpeg:x", "zstd:3", "lzw", "", "jpeg:90:90"):
        with pytest.raises(UsageError):
            TiffOptions.parse(text)


# --- interruption


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[RasterSource, bytes]:
    """A result of many blocks, and its OME-TIFF written in one go."""
    folder = tmp_path_factory.mktemp("large")
    source = stored(folder, "rgb", (640, 1000))
    whole = folder / "out.ome.tif"
    export_ometiff(source, whole, TiffOptions(tile=32))
    return source, whole.read_bytes()


def stopped(source: RasterSource, path: Path, blocks: int) -> Path:
    """The parts of an export that was interrupted after some of them."""
    stop = threading.Event()

    def tell(event: ProgressEvent) -> None:
        if event.done_tiles == blocks:
            stop.set()

    with pytest.raises(InterruptedRun, match="--resume"):
        export_ometiff(source, path, TiffOptions(tile=32), running=Running(progress=tell, stop=stop))
    return path.with_name(path.name + SUFFIX)


def test_a_resumed_file_is_that_of_one_go(tmp_path: Path, large: tuple[RasterSource, bytes]) -> None:
    source, whole = large
    path = tmp_path / "out.ome.tif"
    folder = stopped(source, path, 5)
    assert not path.exists()
    assert len(list(folder.rglob("*.part"))) >= 5
    done = export_ometiff(source, path, TiffOptions(tile=32), resume=True)
    assert 5 <= done.resumed_blocks < done.blocks
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_file_is_the_same_for_every_number_of_workers(tmp_path: Path, large: tuple[RasterSource, bytes]) -> None:
    source, whole = large
    for name, cluster in (("a", tb.ClusterOptions(threads_per_worker=1)), ("b", tb.ClusterOptions(workers=2))):
        path = tmp_path / f"{name}.ome.tif"
        export_ometiff(source, path, TiffOptions(tile=32), running=Running(cluster))
        assert tiles_of(path.read_bytes()) == tiles_of(whole)  # behind them, the OME-XML has the file's name


def tiles_of(data: bytes) -> bytes:
    """The tiles of a file, as far as the end of the last one."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        pages = [tiff.pages[0], *tiff.pages[0].pages]
        return data[16 : max(max(page.dataoffsets) for page in pages)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def last_receipts(folder: Path) -> Path:
    ledger = folder.with_name(folder.name.removesuffix(SUFFIX) + ".ledger")
    return max(ledger.glob("receipts.*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "0/0/0.part", 3000),
        lambda folder: flip(folder / "0/0/1.pixels", 2),
        lambda folder: flip(last_receipts(folder), 300),
        lambda folder: os.truncate(folder / "0/0/0.part", 2000),
        lambda folder: os.truncate(last_receipts(folder), 500),
        lambda folder: last_receipts(folder).unlink(),
        lambda folder: (folder / "0/0/0.part").unlink(),
        lambda folder: (folder / "0/0/0.pixels").unlink(),
    ],
    ids=["part", "pixels", "receipts flipped", "short", "receipts torn", "no receipts", "no part", "no pixels"],
)
def test_what_does_not_match_its_receipt_is_made_again(
    tmp_path: Path, large: tuple[RasterSource, bytes], damage: Any
) -> None:
    source, whole = large
    path = tmp_path / "out.ome.tif"
    damage(stopped(source, path, 8))
    export_ometiff(source, path, TiffOptions(tile=32), resume=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("dies_at", [0, 1, 2, 3, 5, 8, 13, 20, 21, 22])
def test_an_interrupted_join_goes_on(
    tmp_path: Path,
    large: tuple[RasterSource, bytes],
    monkeypatch: pytest.MonkeyPatch,
    dies_at: int,
    in_kernel: bool,
) -> None:
    """After each of its copies, syncs and removals; with a part that went bad where it was copied to."""
    source, whole = large
    path, left = tmp_path / "out.ome.tif", [dies_at]
    monkeypatch.setattr(joining, "_FEWEST_BYTES", 1)

    def dying(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*args, **named)

        return call

    if not in_kernel:
        monkeypatch.setattr(joining, "_in_kernel", lambda *_: 0)
    with monkeypatch.context() as patched:
        for name in ("copy_range", "_let_go", "reveal"):
            patched.setattr(joining, name, dying(getattr(joining, name)))
        patched.setattr(places, "reveal", dying(places.reveal))
        patched.setattr(places, "publish", dying(places.publish))
        with pytest.raises(KeyboardInterrupt):
            export_ometiff(source, path, TiffOptions(tile=32))
    assert not path.exists()
    folder = path.with_name(path.name + SUFFIX)
    joined = folder / joining.JOINED
    with pytest.raises((tifffile.TiffFileError, IndexError)), tifffile.TiffFile(joined) as tiff:
        tiff.pages[0]
    if joined.stat().st_size > 5000:
        flip(joined, 4000)
    done = export_ometiff(source, path, TiffOptions(tile=32), resume=True)
    assert path.read_bytes() == whole
    assert done.resumed_blocks >= done.blocks - 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_parts_and_file_are_never_there_twice(
    tmp_path: Path, large: tuple[RasterSource, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole = large
    path, most = tmp_path / "out.ome.tif", [0]
    monkeypatch.setattr(joining, "_FEWEST_BYTES", 1)
    real = joining._let_go

    def look(*args: Any) -> None:
        most[0] = max(most[0], sum(found.stat().st_size for found in tmp_path.rglob("*") if found.is_file()))
        real(*args)

    monkeypatch.setattr(joining, "_let_go", look)
    export_ometiff(source, path, TiffOptions(tile=32))
    assert len(whole) * 0.9 < most[0] < len(whole) * 1.3


def test_a_death_before_the_folder_is_removed(
    tmp_path: Path, large: tuple[RasterSource, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole = large
    path = tmp_path / "out.ome.tif"

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(places.TiffPlace, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            export_ometiff(source, path, TiffOptions(tile=32))
    assert path.read_bytes() == whole
    done = export_ometiff(source, path, TiffOptions(tile=32), resume=True)
    assert done.resumed_blocks == done.blocks
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_clean_removes_an_unfinished_export_and_nothing_else(
    tmp_path: Path, large: tuple[RasterSource, bytes], command: Command
) -> None:
    path = tmp_path / "out.ome.tif"
    folder = stopped(large[0], path, 5)
    (folder / "mine.txt").write_text("mine")
    done = clean(path)
    assert done.kept == ("mine.txt",)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    folder.rmdir()
    stopped(large[0], path, 5)
    assert command("clean", path).code == 0
    assert not list(tmp_path.iterdir())
    assert command("clean", path).code == 3


@pytest.mark.parametrize("writes", [2, 20, 200])
def test_a_full_disk_is_told_and_resumed(
    tmp_path: Path, large: tuple[RasterSource, bytes], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    source, whole = large
    path = tmp_path / "out.ome.tif"
    left, real = [writes], objects.write_fully

    def full(descriptor: int, parts: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            real(descriptor, [bytes(parts[0])[:11]])
            raise OSError(28, "No space left on device")
        real(descriptor, parts)

    monkeypatch.setattr(objects, "write_fully", full)
    with pytest.raises(StorageError, match=r"no space left; free some, then run again with --resume"):
        export_ometiff(source, path, TiffOptions(tile=32))
    monkeypatch.undo()
    export_ometiff(source, path, TiffOptions(tile=32), resume=True)
    assert path.read_bytes() == whole


@pytest.mark.faults
def test_killed_exports_resume(tmp_path: Path, large: tuple[RasterSource, bytes]) -> None:
    source, whole = large
    path = tmp_path / "out.ome.tif"
    command = [sys.executable, "-m", "tiledblend", "export", source.spec.path, str(path), "--tile", "32", "--resume"]
    for attempt in range(int(os.environ.get("TILEDBLEND_KILLS", "2"))):
        running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        folder = path.with_name(path.name + SUFFIX)
        while running.poll() is None and time.monotonic() < until:
            if len(list(folder.rglob("*.part"))) > 2 * (attempt + 1):
                break
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert path.exists() == (running.returncode == 0)
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == whole


# --- checksums


def test_verify_finds_every_flipped_byte_and_every_cut(
    tmp_path: Path, large: tuple[RasterSource, bytes], command: Command
) -> None:
    path = tmp_path / "out.ome.tif"
    path.write_bytes(large[1])
    assert command("verify", path).code == 0
    for at in (*np.random.default_rng(0).integers(0, len(large[1]), 6).tolist(), 9, len(large[1]) - 1):
        flip(path, at)
        ran = command("verify", path)
        assert (ran.code, "out.ome.tif" in ran.error) == (7, True)
        flip(path, at)
    assert command("verify", path).code == 0
    os.truncate(path, len(large[1]) - 5000)
    assert (command("verify", path, "--fast").code, command("verify", path).code) == (7, 7)
    assert (command("verify", "none.ome.tif").code, command("verify", path, "--against-inputs", 1).code) == (4, 7)
    tifffile.imwrite(tmp_path / "other.ome.tif", np.zeros((20, 20), np.uint8))
    assert command("verify", "other.ome.tif").code == 7


# --- the verbs


def unread(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or exchanged, and not when it is read."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def test_any_zarr_will_do(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (130, 90), dtype=np.uint8)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=pixels, chunks=(64, 64))
    export_ometiff(tmp_path / "a.zarr" / "0", tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(in_tiff(tmp_path / "a.ome.tif")[0][:, :, 0], pixels)


def test_export(tmp_path: Path, command: Command) -> None:
    source = stored(tmp_path, "rgb")
    out = tmp_path / "a.ome.tif"
    arguments = ["export", source.spec.path, str(out), "--compression", "zstd", "--tile", "64", "--json"]
    ran = command(*arguments)
    assert json.loads(ran.out)["levels"] == 4
    np.testing.assert_array_equal(in_tiff(out)[0], level_pixels(source, 0))
    assert command(*arguments).code == 3
    before = unread(out)
    assert json.loads(command(*arguments, "--resume").out)["bytes_written"] == before[1]
    assert unread(out) == before
    unlike = command("export", source.spec.path, str(out), "--resume")
    assert (unlike.code, "not this job's result" in unlike.error) == (3, True)
    assert command(*arguments[:-2], "63").code == 2
    assert command("export", source.spec.path, "b.ome.tif", "--compression", "jpeg:101").code == 2


def layers(folder: Path) -> list[str]:
    random = np.random.default_rng(1)
    for name in ("base", "overlay"):
        pixels = random.integers(0, 255, (310, 420, 3), np.uint8)
        tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(128, 128), photometric="rgb")
    tifffile.imwrite(folder / "mask.tif", np.tri(310, 420, dtype=np.uint8) * 255)
    return ["base.tif", "overlay.tif", "--mask", "mask.tif", "--feather", "5px", "--chunk", "64", "--shard", "128"]


def test_blend(tmp_path: Path, command: Command) -> None:
    arguments = layers(tmp_path)
    assert command("blend", *arguments, "-o", "out.ome.zarr").code == 0
    ran = command("blend", *arguments, "-o", "out.ome.tif", "--compression", "zstd", "--json")
    told = json.loads(ran.out)
    assert told["file"]["bytes_written"] == (tmp_path / "out.ome.tif").stat().st_size
    assert told["uri"] == told["file"]["uri"] == str(tmp_path / "out.ome.tif")
    source = open_source(tmp_path / "out.ome.zarr")
    for level, pixels in enumerate(in_tiff(tmp_path / "out.ome.tif")):
        np.testing.assert_array_equal(pixels, level_pixels(source, level))
    assert not list(tmp_path.glob("*.unfinished"))
    again = command("blend", *arguments, "-o", "out.ome.tif")
    assert (again.code, "exists" in again.error) == (3, True)


def test_a_finished_blend_is_complete_for_its_own_job_only(tmp_path: Path, command: Command) -> None:
    arguments, out = [*layers(tmp_path), "-o", "out.ome.tif"], tmp_path / "out.ome.tif"
    assert command("blend", *arguments).code == 0
    before = unread(out)
    for more in ("--resume", "--finish"):
        again = command("blend", *arguments, more)
        assert (again.code, again.out.count("complete already and right")) == (0, 1)
    assert json.loads(command("blend", *arguments, "--resume", "--json").out)["tiles"] == 0
    unlike = command("blend", *arguments, "--resume", "--deep-fingerprint")
    assert (unlike.code, "not this job's result" in unlike.error) == (3, True)
    for unlike in (["--feather", "6px"], ["--compression", "zstd"], ["--chunk", "32"]):
        ran = command("blend", *arguments, *unlike, "--resume")
        assert (ran.code, "not this job's result" in ran.error) == (3, True)
    assert command("blend", *arguments, "--part", "1/2").code == 3
    assert sorted(tmp_path.glob("out*")) == [out]
    assert unread(out) == before
    flip(out, 5000)
    damaged = command("blend", *arguments, "--resume")
    assert (damaged.code, "damaged" in damaged.error) == (7, True)
    tifffile.imwrite(out, np.zeros((310, 420), np.uint8))
    assert command("blend", *arguments, "--resume").code == 3


def test_plan_says_how_much_room_the_work_needs(tmp_path: Path, command: Command) -> None:
    arguments = [*layers(tmp_path), "-o", "out.ome.tif"]
    planned = json.loads(command("plan", *arguments, "--json").out)
    tiles = sum(-(-310 // f // 64) * -(-420 // f // 64) for f in (1, 2, 4, 8))
    # The file's tiles, and the pixels of level 1, which level 2 starts from.
    assert planned["work_bytes"] == tiles * 64 * 64 * 3 + 155 * 210 * 3
    told = command("plan", *arguments)
    room = f"room     up to {amount(planned['work_bytes'])} until it is done"
    assert room in told.out
    assert "work_bytes" not in json.loads(command("plan", *arguments[:-1], "out.ome.zarr", "--json").out)
    assert command("plan", *arguments, "--compression", "jpeg:0").code == 2


def test_from_python(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 255, (150, 210, 3), np.uint8)
    composite = tb.Composite([tb.Layer(tb.from_array(pixels, axes="yxc"))])
    path = tmp_path / "out.ome.tif"
    with pytest.raises(UsageError, match="blend_ometiff"):
        tb.write(composite, str(path))
    run, file = tb.blend_ometiff(tb.plan(composite, OUTPUT), path, "none")
    assert file is not None
    assert (run.uri, file.compression, file.levels) == (str(path), "none", run.levels)
    np.testing.assert_array_equal(in_tiff(path)[0], pixels)
    again = tmp_path / "again.ome.tif"
    tb.export_ometiff(path, again, tb.TiffOptions("none", tile=64))
    np.testing.assert_array_equal(in_tiff(again)[2], in_tiff(path)[2])


def test_blend_in_parts(tmp_path: Path, command: Command) -> None:
    arguments = [*layers(tmp_path), "-o", "out.ome.tif"]
    for part in ("1/2", "2/2"):
        assert command("blend", *arguments, "--part", part).code == 0
        assert not (tmp_path / "out.ome.tif").exists()
    assert command("blend", *arguments, "--finish").code == 0
    assert len(in_tiff(tmp_path / "out.ome.tif")) == 4
    assert not list(tmp_path.glob("*.unfinished"))


def test_blend_refuses(tmp_path: Path, command: Command) -> None:
    arguments = layers(tmp_path)
    for more, code, told in (
        (["-o", "out.ome.tif", "--compression", "lzw"], 2, "lzw"),
        (["-o", "out.ome.zarr", "--compression", "zstd"], 2, "--compression is for .ome.tif"),
        (["-o", "out.tif", "--compression", "zstd"], 2, "--compression is for .ome.tif"),
        (["-o", "s3://bucket/out.ome.tif"], 2, "on this machine"),
        (["-o", "none/out.ome.tif"], 5, "does not exist"),
        (["-o", "base.tif/out.ome.tif"], 3, "lies inside the input"),
    ):
        ran = command("blend", *arguments, *more)
        assert (ran.code, told in ran.error) == (code, True), ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.tif", "mask.tif", "overlay.tif"]


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_blend_resumes(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*layers(tmp_path), "-o", "out.ome.tif"]
    monkeypatch.setattr(places, "directories", interrupted)
    ran = command("blend", *arguments)
    assert (ran.code, ran.error.endswith("out.ome.tif: interrupted; continue with --resume")) == (75, True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("blend", *arguments).code == 3
    unlike = command("blend", *arguments, "--compression", "none", "--resume")
    assert (unlike.code, "another job" in unlike.error) == (3, True)
    done = json.loads(command("blend", *arguments, "--resume", "--json").out)
    assert done["file"]["resumed_blocks"] > 0
    assert command("blend", *layers(tmp_path), "-o", "whole.ome.tif").code == 0
    np.testing.assert_array_equal(in_tiff(tmp_path / "out.ome.tif")[0], in_tiff(tmp_path / "whole.ome.tif")[0])
    assert not list(tmp_path.glob("*.unfinished"))


def test_inputs_that_moved_are_known_by_their_content(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*layers(tmp_path), "-o", "out.ome.tif", "--deep-fingerprint"]
    monkeypatch.setattr(places, "directories", interrupted)
    assert command("blend", *arguments).code == 75
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    for name in ("base.tif", "overlay.tif", "mask.tif"):
        os.utime(tmp_path / name, (1, 1))
    done = json.loads(command("blend", *arguments, "--resume", "--json").out)
    assert done["file"]["resumed_blocks"] > 0
    os.utime(tmp_path / "base.tif", (2, 2))
    assert "complete already" in command("blend", *arguments, "--resume").out


def test_an_older_file_is_replaced_in_one_step(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, out = [*layers(tmp_path), "-o", "out.ome.tif"], tmp_path / "out.ome.tif"
    assert command("blend", *arguments).code == 0
    before = out.read_bytes()
    monkeypatch.setattr(places, "directories", interrupted)
    assert command("blend", *arguments, "--feather", "9px", "--replace").code == 75
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert out.read_bytes() == before
    assert command("blend", *arguments, "--feather", "9px", "--replace", "--resume").code == 0
    assert out.read_bytes() != before
    assert command("verify", out).code == 0
    tifffile.imwrite(out, np.zeros((310, 420), np.uint8))
    foreign = command("blend", *arguments, "--replace")
    assert (foreign.code, "no result of tiledblend" in foreign.error) == (3, True)
    assert sorted(found.name for found in tmp_path.glob("out*")) == ["out.ome.tif"]
