"""Which pages are an image, and what a TIFF says of it: OME-XML, ImageJ, Aperio, and comments that no longer fit."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.look.info import describe
from tiledblend.sources import RasterSource, open_source
from tiledblend.sources.opening import forget_sources
from tiledblend.sources.tiff.metadata import imagej_facts, scanner_facts

HEIGHT, WIDTH = 96, 130
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([_X % 256, _Y % 256, (_X + _Y) % 256], -1).astype(np.uint8)
STACK = np.stack([_X * 7, _Y * 11, _X + _Y, _X * _Y]).astype(np.uint16)
NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def whole(source: RasterSource, level: int = 0) -> np.ndarray:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def stacked(source: RasterSource) -> np.ndarray:
    return np.moveaxis(whole(source), 2, 0)


def image(
    number: int,
    shape: tuple[int, int],
    size: float,
    names: Sequence[str],
    data: str,
    *,
    spp: int | None = 1,
    **more: Any,
) -> str:
    """An Image element. more: attributes of Pixels."""
    samples = "" if spp is None else f' SamplesPerPixel="{spp}"'
    channels = "".join(f'<Channel ID="Channel:{number}:{k}" Name="{n}"{samples}/>' for k, n in enumerate(names))
    attributes = {
        "SizeX": shape[1], "SizeY": shape[0], "SizeC": len(names) * (spp or 1), "SizeZ": 1, "SizeT": 1,
        "PhysicalSizeX": size, "PhysicalSizeY": 2 * size, "DimensionOrder": "XYCZT", "Type": "uint16",
    } | more  # fmt: skip
    text = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    pixels = f'<Pixels ID="Pixels:{number}" {text}>{channels}{data}</Pixels>'
    return f'<Image ID="Image:{number}" Name="im{number}">{pixels}</Image>'


def ome(*images: str, own: str = "") -> str:
    return f'<?xml version="1.0"?><OME xmlns="{NAMESPACE}"{own}>{"".join(images)}</OME>'


def write(path: Path, pages: Sequence[np.ndarray], xml: str, *, levels: int = 0, **options: Any) -> Path:
    """Each page by itself, the first with the XML; SubIFDs of every second pixel."""
    with tifffile.TiffWriter(path, ome=False) as tiff:
        for index, page in enumerate(pages):
            kind = "rgb" if page.ndim == 3 else "minisblack"
            description = xml.encode() if index == 0 else None
            tiff.write(
                page, photometric=kind, tile=(64, 64), metadata=None, description=description, subifds=levels, **options
            )
            for level in range(1, levels + 1):
                tiff.write(
                    page[:: 2**level, :: 2**level], photometric=kind, tile=(64, 64), metadata=None, subfiletype=1
                )
    return path


# --- OME-XML


def test_an_image_without_pixels_gives_its_size_to_no_other(tmp_path: Path) -> None:
    here = image(1, (HEIGHT, WIDTH), 0.25, ["DAPI", "CD8"], '<TiffData IFD="0" PlaneCount="2"/>')
    elsewhere = [
        image(0, (50, 40), 8.0, ["overview", "b"], "<MetadataOnly/>"),
        image(0, (50, 40), 8.0, ["label", "b"], '<TiffData IFD="7" PlaneCount="1"/>'),
        image(0, (50, 40), 8.0, ["label", "b"], '<TiffData IFD="0" PlaneCount="1"/>'),  # page 0 is of another size
        image(
            0, (50, 40), 8.0, ["label", "b"], '<TiffData IFD="0"><UUID FileName="no.tif">urn:uuid:1</UUID></TiffData>'
        ),
        image(0, (HEIGHT, WIDTH), 8.0, ["x", "y"], "<BinData/>"),
        '<Image ID="Image:0"/>',
    ]
    for first in elsewhere:
        for order in ((first, here), (here, first)):
            path = write(tmp_path / "a.ome.tif", STACK[:2], ome(*order))
            source = open_source(path)
            assert source.pixel_size_um == (0.5, 0.25)
            assert source.info.channel_names == ("DAPI", "CD8")
            np.testing.assert_array_equal(stacked(source), STACK[:2])
            assert [entry["name"] for entry in describe(path)] == ["im1"]


def test_images_of_one_file_keep_their_own_facts(tmp_path: Path) -> None:
    images = [image(k, (HEIGHT, WIDTH), 0.25 + k, [f"c{k}"], f'<TiffData IFD="{k}"/>') for k in range(3)]
    path = write(tmp_path / "a.ome.tif", STACK[:3], ome(*images), levels=1)
    for k in range(3):
        source = open_source(path, series=k)
        assert source.pixel_size_um == (0.5 + 2 * k, 0.25 + k)
        assert source.info.channel_names == (f"c{k}",)
        np.testing.assert_array_equal(stacked(source)[0], STACK[k])
        np.testing.assert_array_equal(whole(source, 1)[:, :, 0], STACK[k][::2, ::2])


def test_a_set_of_files_complete_in_each(tmp_path: Path) -> None:
    ids = [f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, str(k))}" for k in range(2)]

    def data(k: int) -> str:
        return "".join(
            f'<TiffData FirstC="{c}" IFD="{c}"><UUID FileName="pos{k}.ome.tif">{ids[k]}</UUID></TiffData>'
            for c in range(3)
        )

    images = [image(k, (HEIGHT, WIDTH), 0.3 + k, [f"c{c}p{k}" for c in range(3)], data(k)) for k in range(2)]
    for k, name in ((0, "pos0.ome.tif"), (1, "pos1.ome.tif"), (1, "renamed.tif")):
        path = write(tmp_path / name, STACK[k : k + 3], ome(*images, own=f' UUID="{ids[k]}"'))
        source = open_source(path)
        assert source.info.channel_names == tuple(f"c{c}p{k}" for c in range(3))
        assert source.pixel_size_um == (0.6 + 2 * k, 0.3 + k)
        np.testing.assert_array_equal(stacked(source), STACK[k : k + 3])


@pytest.mark.parametrize("own", [True, False])
def test_one_channel_of_a_set_in_each_file(tmp_path: Path, own: bool) -> None:
    """As Xenium writes them: every file has the XML of all, and its one channel."""
    names = ["DAPI", "ATP1A1", "18S", "vimentin"]
    data = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="f{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(4)
    )
    for c in range(4):
        xml = ome(image(0, (HEIGHT, WIDTH), 0.2125, names, data), own=f' UUID="urn:uuid:{c}"' if own else "")
        source = open_source(write(tmp_path / f"f{c}.ome.tif", [STACK[c]], xml, levels=1))
        assert source.info.channel_names == (names[c],)
        assert source.pixel_size_um == (0.425, 0.2125)
        assert [level.shape for level in source.levels] == [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)]
        np.testing.assert_array_equal(stacked(source)[0], STACK[c])
        assert f"of 4 planes along c only c={c} is in this file" in source.info.notes
        assert any("other planes are in f" in note for note in source.info.notes)


@pytest.mark.parametrize("companion", [True, False])
def test_a_set_whose_xml_is_in_one_file(tmp_path: Path, companion: bool) -> None:
    """The others only name it (BinaryOnly): a companion, or the first file of the set."""
    data = "".join(
        f'<TiffData FirstC="{c}" IFD="0"><UUID FileName="f{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>' for c in range(3)
    )
    full = ome(image(0, (HEIGHT, WIDTH), 0.5, ["a", "b", "c"], data), own=' UUID="urn:uuid:0"')
    home = "set.companion.ome" if companion else "f0.ome.tif"
    if companion:
        (tmp_path / home).write_text(full)
    for c in range(3):
        only = ome(f'<BinaryOnly MetadataFile="{home}" UUID="urn:uuid:9"/>', own=f' UUID="urn:uuid:{c}"')
        write(tmp_path / f"f{c}.ome.tif", [STACK[c]], only if companion or c else full)
    for c in range(3):
        source = open_source(tmp_path / f"f{c}.ome.tif")
        assert (source.info.channel_names, source.pixel_size_um) == (("abc"[c],), (1.0, 0.5))
        np.testing.assert_array_equal(stacked(source)[0], STACK[c])
    (tmp_path / home).unlink()
    forget_sources()
    source = open_source(tmp_path / "f2.ome.tif")
    assert source.pixel_size_um is None
    assert any(f"in {home}, which is not beside it" in note for note in source.info.notes)
    np.testing.assert_array_equal(stacked(source)[0], STACK[2])


def test_one_place_along_z_of_a_set_is_an_image(tmp_path: Path) -> None:
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="2"><UUID FileName="z{z}.tif">urn:uuid:{z}</UUID></TiffData>'
        for z in range(3)
    )
    xml = ome(image(0, (HEIGHT, WIDTH), 0.5, ["a", "b"], data, SizeZ=3), own=' UUID="urn:uuid:1"')
    source = open_source(write(tmp_path / "z1.tif", STACK[:2], xml))
    np.testing.assert_array_equal(stacked(source), STACK[:2])
    assert source.info.channel_names == ("a", "b")


def test_micro_managers_file_has_its_images_names_and_sizes(tmp_path: Path) -> None:
    """One of two positions. By its tag tifffile takes it for a part of Micro-Manager's own index, which is not here."""

    def data(k: int) -> str:
        uuid = f'<UUID FileName="Pos{k}.ome.tif">urn:uuid:{k}</UUID>'
        return "".join(f'<TiffData FirstC="{c}" IFD="{c}">{uuid}</TiffData>' for c in (0, 1))

    xml = ome(*(image(k, (HEIGHT, WIDTH), 0.3 + k, ["a", "b"], data(k)) for k in (0, 1)), own=' UUID="urn:uuid:1"')
    said = b'{"ChannelIndex": 0, "FrameIndex": 0, "SliceIndex": 0, "PositionIndex": 1}'
    path = write(tmp_path / "Pos1.ome.tif", STACK[:2], xml, extratags=[(51123, "s", len(said), said, True)])
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_micromanager
    source = open_source(path)
    assert (source.info.channel_names, source.pixel_size_um) == (("a", "b"), (2.6, 1.3))
    np.testing.assert_array_equal(stacked(source), STACK[:2])


@pytest.mark.parametrize("order", ["XYCZT", "XYZCT", "XYTCZ"])
def test_planes_are_where_the_xml_puts_them(tmp_path: Path, order: str) -> None:
    """Of 2 channels x 2 z; the first two planes are stored last."""
    data = '<TiffData IFD="2" PlaneCount="2"/>'
    first = {"XYCZT": 'FirstZ="1"', "XYZCT": 'FirstC="1"', "XYTCZ": 'FirstZ="1"'}[order]
    data += f'<TiffData IFD="0" PlaneCount="2" {first}/>'
    path = write(
        tmp_path / "a.ome.tif",
        STACK,
        ome(image(0, (HEIGHT, WIDTH), 1, ["a", "b"], data, SizeZ=2, DimensionOrder=order)),
    )
    stored = STACK[[2, 3, 0, 1]].reshape(2, 2, HEIGHT, WIDTH)
    by_z = stored if order != "XYZCT" else stored.swapaxes(0, 1)
    for z in range(2):
        np.testing.assert_array_equal(stacked(open_source(path, plane={"z": z})), by_z[z])
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), stored)


@pytest.mark.parametrize("spp", [3, None])
def test_rgb_whether_or_not_a_channel_says_its_samples(tmp_path: Path, spp: int | None) -> None:
    xml = ome(
        image(0, (HEIGHT, WIDTH), 0.5, ["rgb"], '<TiffData IFD="0" PlaneCount="1"/>', spp=spp, SizeC=3, Type="uint8")
    )
    source = open_source(write(tmp_path / "a.ome.tif", [RGB], xml))
    assert (source.is_rgb, source.pixel_size_um) == (True, (1.0, 0.5))
    np.testing.assert_array_equal(whole(source), RGB)


@pytest.mark.parametrize(
    "xml",
    [
        ome(image(0, (48, 65), 0.5, ["a"], '<TiffData IFD="0"/>')),  # of before it was enlarged
        ome('<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:1"/>'),
        ome(image(0, (HEIGHT, WIDTH), 0.5, ["a"], '<TiffData IFD="0"/>', SizeZ="many")),
        ome(image(0, (HEIGHT, WIDTH), 0.5, ["a"], '<TiffData IFD="-1"/>')),
        ome(image(0, (HEIGHT, WIDTH), 0.5, ["a"], '<TiffData IFD="0"/>', SizeZ=10**9)),
        "<OME><Image></OME>",
        ome(),
    ],
)
def test_xml_that_does_not_fit_leaves_the_pages_as_they_are(tmp_path: Path, xml: str) -> None:
    path = write(
        tmp_path / "a.ome.tif", STACK[:1], xml, levels=1, resolution=(20000, 10000), resolutionunit="centimeter"
    )
    source = open_source(path)
    np.testing.assert_array_equal(stacked(source)[0], STACK[0])
    assert [level.shape for level in source.levels] == [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)]
    assert source.pixel_size_um == (1.0, 0.5)
    assert any("OME-XML description does not fit its pages" in note for note in source.info.notes)


def test_planes_that_are_missing_are_named(tmp_path: Path) -> None:
    xml = ome(image(0, (HEIGHT, WIDTH), 1, ["a"], '<TiffData IFD="0"/><TiffData IFD="9" FirstZ="1"/>', SizeZ=2))
    path = write(tmp_path / "a.ome.tif", STACK[:1], xml)
    np.testing.assert_array_equal(stacked(open_source(path, plane={"z": 0}))[0], STACK[0])
    with pytest.raises(BadInputError, match="plane 1 is not in this file"):
        open_source(path, plane={"z": 1})


def test_a_pyramid_that_was_put_behind_the_planes_of_ome(tmp_path: Path) -> None:
    """As `vips tiffsave --pyramid` leaves it: the comment of three channels, one of them, and its smaller levels."""
    path = tmp_path / "a.tif"
    xml = ome(image(0, (HEIGHT, WIDTH), 0.5, ["a", "b", "c"], '<TiffData IFD="0" PlaneCount="3"/>'))
    with tifffile.TiffWriter(path, ome=False) as tiff:
        for level in range(3):
            pixels = STACK[0][:: 2**level, :: 2**level]
            tiff.write(pixels, tile=(64, 64), subfiletype=int(level > 0), metadata=None, description=xml.encode())
    source = open_source(path)
    assert source.info.channel_names == ("a",)
    assert [level.shape for level in source.levels] == [(96, 130), (48, 65), (24, 33)]
    np.testing.assert_array_equal(whole(source, 2)[:, :, 0], STACK[0][::4, ::4])


# --- ImageJ, and comments of others that stayed behind


def pyramid(path: Path, base: np.ndarray, description: str, *, below: bool = False, **options: Any) -> Path:
    """Levels of every second pixel with the same comment, behind one another or as SubIFDs."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            pixels = base[:: 2**level, :: 2**level]
            more = {"subifds": 2} if below and level == 0 else {"subfiletype": int(level > 0)}
            kind = "rgb" if base.ndim == 3 else "minisblack"
            tiff.write(
                pixels, photometric=kind, tile=(64, 64), compression="deflate", metadata=None,
                description=description, **more, **options,
            )  # fmt: skip
    return path


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize(
    "comment",
    [
        "ImageJ=1.54f\nunit=micron\nmin=0.0\nmax=255.0\n",
        "ImageJ=\nhyperstack=true\nimages=3\nchannels=3\nslices=1\nframes=1",
        "ImageJ=1.53\nimages=40\nslices=40\n",
        '{"shape": [4, 50, 70]}',
        '{"shape": [192, 260, 3], "axes": "YXS"}',
    ],
)
@pytest.mark.parametrize("base", [RGB, RGB[:, :, 0]], ids=["rgb", "grey"])
def test_a_comment_that_stayed_behind_hides_no_page(
    tmp_path: Path, base: np.ndarray, comment: str, below: bool
) -> None:
    path = pyramid(tmp_path / "a.tif", base, comment, below=below)
    source = open_source(path)
    assert [level.shape for level in source.levels] == [(96, 130), (48, 65), (24, 33)]
    for level in range(3):
        np.testing.assert_array_equal(whole(source, level).squeeze(), base[:: 2**level, :: 2**level])


def test_what_an_imagej_comment_says_of_units(tmp_path: Path) -> None:
    tag = {"inch": 2, "cm": 3, "none": 1, "absent": None}
    micro = "ImageJ=1.54f\nunit=micron\n"
    cases: list[tuple[str, str, float, float | None]] = [
        ("ImageJ=\nimages=1\n", "cm", 20000, 0.5),  # Bio-Formats
        ("ImageJ=\nimages=1\n", "inch", 50800, 0.5),
        ("ImageJ=\nimages=1\n", "none", 20000, None),
        ("ImageJ=\nimages=1\n", "absent", 20000, None),
        (micro, "none", 2, 0.5),  # ImageJ itself
        (micro, "absent", 2, 0.5),
        (micro, "cm", 20000, 0.5),  # the tags say what they count
        (micro, "inch", 50800, 0.5),
        (micro, "inch", 101.6, None),  # libvips: 4 per "millimetre"
        ("ImageJ=1.54f\nunit=\\u00B5m\n", "none", 2, 0.5),
        ("ImageJ=1.54f\nunit=um\n", "none", 2, 0.5),
        ("ImageJ=1.54f\nunit=nm\n", "none", 0.002, 0.5),
        ("ImageJ=1.54f\nunit=pixel\n", "none", 2, None),
        ("ImageJ=1.54f\nunit=inch\n", "inch", 300, None),
        ("ImageJ=1.54f\nunit=inch\n", "inch", 50800, 0.5),
        ("ImageJ=1.54f\nunit=cm\n", "none", 20000, 0.5),
    ]
    for comment, unit, value, size in cases:
        resolution = (int(value * 1000), 1000)
        found = imagej_facts(comment, {}, tag[unit], resolution, resolution, 1).pixel_size_um
        assert found == (None if size is None else pytest.approx((size, size))), (comment, unit, value)
        if unit == "absent":
            continue
        name = {"cm": "CENTIMETER", "inch": "INCH", "none": "NONE"}[unit]
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, RGB, description=comment, metadata=None, resolution=(value, value), resolutionunit=name)
        assert open_source(path).pixel_size_um == (None if size is None else pytest.approx((size, size), rel=1e-3))
        if size is not None and unit in ("cm", "inch"):
            tifffile.imwrite(
                path, RGB, description=comment, metadata=None, resolution=(value, value), resolutionunit=name,
                tile=(64, 64), photometric="rgb",
            )  # fmt: skip
            with openslide.OpenSlide(path) as slide:
                assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(size, rel=1e-3)


def test_a_pixel_size_that_cannot_be_believed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    comment = "ImageJ=1.54f\nunit=micron\n"
    tifffile.imwrite(path, RGB, description=comment, metadata=None, resolution=(101.6, 101.6), resolutionunit="INCH")
    assert any("counts in micron" in note for note in open_source(path).info.notes)


# --- Aperio


@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ("MPP = 0.4990", 0.499), ("MPP = 0,4990", 0.499), ("MPP = 1,0020", 1.002), ("MPP=0,25", 0.25),
        ("MPP = 0\u066b25", 0.25), ("MPP = .25", 0.25), ("MPP = 4,99e-1", 0.499), ("MPP = 2.5E-1", 0.25),
        ("MPP = 1.000,5", None), ("MPP = nothing", None), ("MPP = 0", None), ("MPP = -1", None), ("MPP = ", None),
    ],
)  # fmt: skip
def test_decimal_commas(stated: str, size: float | None) -> None:
    facts = scanner_facts(f"Aperio Image Library v12\r\n1x1|AppMag = 20,0|{stated}|Left = 1")
    assert facts.pixel_size_um == (None if size is None else (size, size))
    assert facts.magnification == 20.0


def svs(path: Path, *, thumbnail: bool, flagged: bool, named: bool = True, thumbnail_tiled: bool = False) -> Path:
    said = "Aperio Image Library v12.0.15\r\n130x96 [0,0 130x96] (64x64) JPEG/RGB Q=95|AppMag = 20|MPP = 0.4990"
    beside = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, step in enumerate((1, 2, 4)):
            kind = int(flagged and level > 0)
            tiff.write(RGB[::step, ::step], tile=(16, 16), description=said, subfiletype=kind, **beside)
            if thumbnail and level == 0:
                tile = {"tile": (16, 16)} if thumbnail_tiled else {}
                tiff.write(RGB[:70, :100], description=said if named else None, **beside, **tile)
        tiff.write(RGB[:30, :20], description="Aperio v12\r\nlabel 20x30" if named else None, subfiletype=1, **beside)
        tiff.write(RGB[:20, :40], description="Aperio v12\r\nmacro 40x20" if named else None, subfiletype=9, **beside)
    return path


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_aperio_keeps_its_pyramid(tmp_path: Path, thumbnail: bool, flagged: bool, named: bool) -> None:
    path = svs(tmp_path / "a.svs", thumbnail=thumbnail, flagged=flagged, named=named)
    source = open_source(path)
    with openslide.OpenSlide(path) as slide:
        assert [level.shape[::-1] for level in source.levels] == list(slide.level_dimensions)
        beside = sorted(name.title() for name in slide.associated_images)
    for level, step in enumerate((1, 2, 4)):
        np.testing.assert_array_equal(whole(source, level), RGB[::step, ::step])
    assert source.pixel_size_um == (0.499, 0.499)
    entries = describe(path)
    assert sorted(entry["name"] for entry in entries[1:]) == beside
    assert [entry["layer"] for entry in entries] == [True, *[False] * len(beside)]


def test_a_tiled_thumbnail_is_no_level(tmp_path: Path) -> None:
    path = svs(tmp_path / "a.svs", thumbnail=True, flagged=False, thumbnail_tiled=True)
    assert [level.shape for level in open_source(path).levels] == [(96, 130), (48, 65), (24, 33)]


def test_focal_planes_of_aperio(tmp_path: Path) -> None:
    said = "Aperio Image Library v12\r\n|MPP = 0.5"
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as tiff:
        for page in (RGB, RGB[:70, :100], 255 - RGB, RGB[::2, ::2], 255 - RGB[::2, ::2]):
            tile = {} if page.shape == (70, 100, 3) else {"tile": (16, 16)}
            tiff.write(page, photometric="rgb", metadata=None, description=said, **tile)
    source = open_source(path, plane={"z": 1})
    np.testing.assert_array_equal(whole(source), 255 - RGB)
    np.testing.assert_array_equal(whole(source, 1), 255 - RGB[::2, ::2])
