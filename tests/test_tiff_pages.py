"""Pages of one image that are stored unlike each other, against the pixels that were written and Pillow's libtiff."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from own_tiff import Page, bare_jpeg, cut, jpeg, page, smooth, write_tiff
from PIL import Image

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import SourceSpec
from tiledblend.sources.tiff.source import TiffSource, list_series, open_tiff

SHAPE, TILE = (150, 203), (64, 80)
GREY = [np.ascontiguousarray(smooth(SHAPE, seed)[:, :, 0]) for seed in range(10)]


def opened(path: Path, **spec: Any) -> TiffSource:
    return open_tiff(SourceSpec(str(path), **spec))


def whole(source: TiffSource, level: int = 0) -> Any:
    return source.read(Region.of_shape(source.levels[level].shape), level)


def deflate(part: Any) -> bytes:
    return zlib.compress(part.tobytes())


def strips(pixels: Any, rows: int, encode: Callable[[Any], bytes]) -> list[bytes]:
    return [encode(pixels[y : y + rows]) for y in range(0, len(pixels), rows)]


def differences(part: Any) -> bytes:
    return zlib.compress(np.diff(part, axis=1, prepend=part[:, :1] * 0).astype(part.dtype).tobytes())


def packed(part: Any) -> bytes:
    return bytes(imagecodecs.packbits_encode(part))


def reversed_bits(part: Any) -> bytes:
    return bytes(imagecodecs.bitorder_encode(part.tobytes()))


def like(pixels: Any, below: Any = ()) -> Page:
    """A page as most are in these tests: deflated tiles."""
    return page(SHAPE, cut(pixels, TILE, deflate), tile=TILE, compression=8, below=below)


UNLIKE: dict[str, Callable[[Any], Page]] = {
    "predictor": lambda a: page(SHAPE, cut(a, TILE, differences), tile=TILE, compression=8, more={317: (3, [2])}),
    "uncompressed": lambda a: page(SHAPE, cut(a, TILE), tile=TILE),
    "LZW": lambda a: page(SHAPE, cut(a, TILE, imagecodecs.lzw_encode), tile=TILE, compression=5),
    "tile shape, same number": lambda a: page(SHAPE, cut(a, (80, 64), deflate)[:99], tile=(80, 64), compression=8),
    "tile shape": lambda a: page(SHAPE, cut(a, (32, 48), deflate), tile=(32, 48), compression=8),
    "strips": lambda a: page(SHAPE, strips(a, 37, deflate), compression=8, more={278: (3, [37])}),
    "one uncompressed strip": lambda a: page(SHAPE, [a.tobytes()], more={278: (3, [SHAPE[0]])}),
    "packed strips": lambda a: page(SHAPE, strips(a, 20, packed), compression=32773, more={278: (3, [20])}),
    "min is white": lambda a: page(SHAPE, cut(255 - a, TILE, deflate), tile=TILE, photometric=0, compression=8),
    "fill order": lambda a: page(SHAPE, cut(a, TILE, reversed_bits), tile=TILE, more={266: (3, [2])}),
    "JPEG": lambda a: page(SHAPE, cut(a, TILE, lambda p: bare_jpeg(jpeg(p, quality=100))), tile=TILE, compression=7),
    "PNG": lambda a: page(SHAPE, cut(a, TILE, imagecodecs.png_encode), tile=TILE, compression=34933),
    "JPEG 2000": lambda a: page(
        SHAPE, cut(a, TILE, lambda p: imagecodecs.jpeg2k_encode(p, level=0)), tile=TILE, compression=34712
    ),
    "LERC": lambda a: page(SHAPE, cut(a, TILE, imagecodecs.lerc_encode), tile=TILE, compression=34887),
}


def ome_xml(count: int, kind: str = "uint8", samples: int = 1) -> str:
    channels = "".join(
        f'<Channel ID="Channel:0:{k}" Name="c{k}" SamplesPerPixel="{samples}"/>' for k in range(count // samples)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{kind}" SizeX="{SHAPE[1]}" '
        f'SizeY="{SHAPE[0]}" SizeC="{count}" SizeZ="1" SizeT="1">{channels}<TiffData IFD="0" '
        f'PlaneCount="{count // samples}"/></Pixels></Image></OME>'
    )


def describe(first: Page, text: str) -> Page:
    first.tags[270] = (2, text)
    return first


def stack(path: Path, kind: str, pages: list[Page]) -> Path:
    texts = {
        "ome": ome_xml(len(pages)),
        "imagej": f"ImageJ=1.54f\nimages={len(pages)}\nchannels={len(pages)}\nhyperstack=true\nmode=grayscale\n",
    }
    if kind in texts:
        describe(pages[0], texts[kind])
    return write_tiff(path, pages)


def planes_of(path: Path, kind: str, count: int) -> list[Any]:
    """Each page as read: of channels at once, of plain stacks plane by plane."""
    if kind in ("ome", "imagej"):
        return list(np.moveaxis(whole(opened(path)), 2, 0))
    return [whole(opened(path, plane=(("i", k),)))[:, :, 0] for k in range(count)]


@pytest.mark.parametrize(
    ("kind", "where"), [("ome", 1), ("imagej", 3), ("four plain pages", 2), ("nine plain pages", 3)]
)
@pytest.mark.parametrize("name", UNLIKE)
def test_each_page_by_its_own_tags(tmp_path: Path, kind: str, name: str, where: int) -> None:
    count = 9 if kind.startswith("nine") else 4
    pages = [UNLIKE[name](GREY[k]) if k == where else like(GREY[k]) for k in range(count)]
    path = stack(tmp_path / "a.tif", kind, pages)
    found = planes_of(path, kind, count)
    for k in range(count):
        tolerance = 3 if name == "JPEG" and k == where else 0
        assert np.abs(found[k].astype(int) - GREY[k]).max() <= tolerance, k
    if kind == "ome":
        source = opened(path)
        assert any(f"stored unlike page 0, each is read by its own tags: page {where}" in n for n in source.info.notes)
        for region in (Region(3, 5, 149, 201), Region(149, 202, 150, 203), Region(64, 80, 128, 160)):
            np.testing.assert_array_equal(source.read(region), whole(source)[region.slices])


@pytest.mark.parametrize("name", UNLIKE)
def test_the_first_page_is_the_odd_one(tmp_path: Path, name: str) -> None:
    path = stack(tmp_path / "a.ome.tif", "ome", [UNLIKE[name](GREY[0]), *[like(GREY[k]) for k in (1, 2)]])
    found = planes_of(path, "ome", 3)
    for k in range(3):
        assert np.abs(found[k].astype(int) - GREY[k]).max() <= (3 if name == "JPEG" and k == 0 else 0), k


def test_all_unlike_each_other(tmp_path: Path) -> None:
    names = list(UNLIKE)[:10]
    path = stack(tmp_path / "a.ome.tif", "ome", [UNLIKE[name](GREY[k]) for k, name in enumerate(names)])
    source = opened(path)
    np.testing.assert_array_equal(whole(source), np.stack(GREY, 2))
    chosen = opened(path, channels=(7, 2))
    np.testing.assert_array_equal(whole(chosen), np.stack([GREY[7], GREY[2]], 2))
    assert source.fingerprint()["structure"] != chosen.fingerprint()["structure"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_bits_beside_each_other(tmp_path: Path, order: str) -> None:
    """12 bits packed and 16 as they are, both uint16; in both byte orders, big-endian rows among them."""
    values = [plane.astype(np.uint16) * 16 for plane in GREY[:3]]
    wide = page(SHAPE, [values[0].astype(f"{order}u2").tobytes()], bits=16, more={278: (3, [SHAPE[0]])})
    tight = page(
        SHAPE, [bytes(imagecodecs.packints_encode(row, 12)) for row in values[1]], bits=12, more={278: (3, [1])}
    )
    tiled = page(
        SHAPE, cut(values[2], TILE, lambda p: zlib.compress(p.astype(f"{order}u2").tobytes())), tile=TILE, bits=16,
        compression=8,
    )  # fmt: skip
    describe(wide, ome_xml(3, "uint16"))
    path = write_tiff(tmp_path / "a.ome.tif", [wide, tight, tiled], order=order, big=order == ">")
    np.testing.assert_array_equal(whole(opened(path)), np.stack(values, 2))


def test_planar_and_interleaved_colours(tmp_path: Path) -> None:
    rgb = [smooth(SHAPE, seed) for seed in range(3)]
    interleaved = page(SHAPE, cut(rgb[0], TILE, deflate), tile=TILE, samples=3, photometric=2, compression=8)
    planes = [np.ascontiguousarray(rgb[1][:, :, k]) for k in range(3)]
    planar = page(
        SHAPE, [data for plane in planes for data in cut(plane, TILE, deflate)], tile=TILE, samples=3, photometric=2,
        compression=8, planar=2,
    )  # fmt: skip
    ycbcr = page(
        SHAPE, cut(rgb[2], TILE, jpeg), tile=TILE, samples=3, photometric=6, compression=7, more={530: (3, [1, 1])}
    )
    for pages in ([interleaved, planar, ycbcr], [planar, interleaved, ycbcr]):
        describe(pages[0], ome_xml(9, samples=3))
        path = write_tiff(tmp_path / "a.ome.tif", pages)
        found = whole(opened(path))
        first = 0 if pages[0] is interleaved else 1
        wanted = np.concatenate([rgb[first], rgb[1 - first], rgb[2]], axis=2)
        assert np.abs(found.astype(int) - wanted)[:, :, :6].max() == 0
        assert np.abs(found.astype(int) - wanted).mean() < 1
        np.testing.assert_array_equal(whole(opened(path, channels=(4, 0))), found[:, :, [4, 0]])
        pages[0].tags.pop(270)


def test_jpegs_of_other_colours_under_the_same_tags(tmp_path: Path) -> None:
    """Photometric RGB: YCbCr where a page's streams are JFIF, RGB where they say nothing."""
    rgb = smooth(SHAPE)
    streams: list[Callable[[Any], bytes]] = [jpeg, lambda part: bare_jpeg(jpeg(part, keep_rgb=True))]
    for encoders in (streams, streams[::-1]):
        pages = [
            page(SHAPE, cut(rgb, TILE, encode), tile=TILE, samples=3, photometric=2, compression=7)
            for encode in encoders
        ]
        describe(pages[0], ome_xml(6, samples=3))
        found = whole(opened(write_tiff(tmp_path / "a.ome.tif", pages)))
        assert np.abs(found.astype(int) - np.concatenate([rgb, rgb], 2)).mean() < 1.5


def test_colour_maps_of_their_own(tmp_path: Path) -> None:
    index = GREY[0] // 64
    maps = [[k * 257 for k in (10, 20, 30, 40) + (0,) * 252 for _ in range(1)] * 3, [k * 257 for k in range(256)] * 3]
    pages = [
        page(SHAPE, cut(index, TILE, deflate), tile=TILE, photometric=3, compression=8, more={320: (3, colours)})
        for colours in maps
    ]
    describe(pages[0], ome_xml(2))
    found = whole(opened(write_tiff(tmp_path / "a.ome.tif", pages)))
    tens = np.array([10, 20, 30, 40], np.uint8)[index]
    np.testing.assert_array_equal(found, np.stack([tens] * 3 + [index] * 3, 2))


REFUSED: dict[str, tuple[Callable[[Any], Page], str]] = {
    "16 bits": (
        lambda a: page(SHAPE, cut(a.astype("<u2"), TILE, deflate), tile=TILE, bits=16, compression=8),
        "BitsPerSample 16 where page 0 has 8",
    ),
    "signed": (
        lambda a: page(SHAPE, cut(a, TILE, deflate), tile=TILE, compression=8, more={339: (3, [2])}),
        "SampleFormat INT where page 0 has 1",
    ),
    "colours": (
        lambda a: page(
            SHAPE, cut(np.stack([a] * 3, 2), TILE, deflate), tile=TILE, samples=3, photometric=2, compression=8
        ),
        "SamplesPerPixel 3 where page 0 has 1",
    ),
    "height": (
        lambda a: page((140, 203), cut(a[:140], TILE, deflate), tile=TILE, compression=8),
        "ImageLength 140 where page 0 has 150",
    ),
    "orientation": (
        lambda a: page(SHAPE, cut(a, TILE, deflate), tile=TILE, compression=8, more={274: (3, [3])}),
        "Orientation 3 where page 0 has 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_one_image_is_refused_by_page_and_tag(tmp_path: Path, name: str) -> None:
    make, said = REFUSED[name]
    path = stack(tmp_path / "a.ome.tif", "ome", [like(GREY[0]), like(GREY[1]), make(GREY[2])])
    with pytest.raises(BadInputError, match="page 2") as caught:
        opened(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list_series(str(path))[0].problem == str(caught.value).replace(str(path), f"{path} (series 0)")


def test_a_plane_of_a_stack_may_be_of_its_own_kind(tmp_path: Path) -> None:
    """Selected alone it is one image, whatever the others are."""
    deep = (GREY[2].astype(np.uint16) * 200).astype("<u2")
    pages = [like(GREY[k]) for k in range(4)]
    pages[2] = page(SHAPE, cut(deep, TILE, deflate), tile=TILE, bits=16, compression=8)
    path = write_tiff(tmp_path / "a.tif", pages)
    np.testing.assert_array_equal(whole(opened(path, plane=(("i", 2),)))[:, :, 0], deep)
    np.testing.assert_array_equal(whole(opened(path, plane=(("i", 3),)))[:, :, 0], GREY[3])


def imagej_file(path: Path, odd: dict[int, tuple[int, Any]], planes: list[Any], gap: int = 0) -> Path:
    """As ImageJ writes stacks: the first directory, all planes in one piece, then the others' directories.

    odd: tags of plane 2 beside the others'. gap: bytes between the planes.
    """
    text = f"ImageJ=1.54f\nimages={len(planes)}\nslices={len(planes)}\n"
    row = {278: (3, [SHAPE[0]])}
    made = [page(SHAPE, [plane.tobytes() + b"\0" * gap], more=row) for plane in planes]
    describe(made[0], text)
    made[2].tags |= odd
    return write_tiff(path, made, data_first=True)


@pytest.mark.parametrize("gap", [0, 64])
def test_an_imagej_stack_with_a_directory_for_each_plane(tmp_path: Path, gap: int) -> None:
    planes = GREY[:4]
    path = imagej_file(tmp_path / "a.tif", {}, planes, gap)
    for k in range(4):
        np.testing.assert_array_equal(whole(opened(path, plane=(("z", k),)))[:, :, 0], planes[k])
    path = imagej_file(tmp_path / "b.tif", {262: (3, [0])}, planes, gap)
    for k in range(4):
        wanted = 255 - planes[k] if k == 2 else planes[k]
        np.testing.assert_array_equal(whole(opened(path, plane=(("z", k),)))[:, :, 0], wanted)


def test_a_plane_is_turned_by_its_own_orientation(tmp_path: Path) -> None:
    pages = [like(GREY[k]) for k in range(9)]
    pages[3].tags[274] = (3, [6])
    path = write_tiff(tmp_path / "a.tif", pages)
    turned = opened(path, plane=(("i", 3),))
    np.testing.assert_array_equal(whole(turned)[:, :, 0], np.rot90(GREY[3], -1))
    assert "orientation 6 is applied" in turned.info.notes
    np.testing.assert_array_equal(whole(opened(path, plane=(("i", 4),)))[:, :, 0], GREY[4])


@pytest.mark.parametrize("name", UNLIKE)
def test_levels_in_subifds(tmp_path: Path, name: str) -> None:
    """Page 1's smaller level is stored in another way than page 0's."""
    small = [plane[::2, ::2] for plane in GREY[:2]]
    sides = small[0].shape

    def below(pixels: Any, unlike: bool) -> list[Page]:
        if not unlike:
            return [page(sides, cut(pixels, TILE, deflate), tile=TILE, compression=8, more={254: (4, [1])})]
        padded = np.zeros(SHAPE, np.uint8)
        padded[: sides[0], : sides[1]] = pixels
        made = UNLIKE[name](padded)
        if 322 not in made.tags:  # strips as wide as the level
            rows = made.tags[278][1][0]
            encode = {8: deflate, 1: np.ndarray.tobytes, 32773: packed}[made.tags[259][1][0]]
            made.segments = strips(np.ascontiguousarray(pixels), rows, encode)
        else:
            height, width = made.tags[323][1][0], made.tags[322][1][0]
            columns = -(-SHAPE[1] // width)
            kept = range(-(-sides[0] // height)), range(-(-sides[1] // width))
            made.segments = [made.segments[row * columns + column] for row in kept[0] for column in kept[1]]
        made.tags |= {256: (4, [sides[1]]), 257: (4, [sides[0]]), 254: (4, [1])}
        return [made]

    pages = [like(GREY[k], below(np.ascontiguousarray(small[k]), k == 1)) for k in range(2)]
    path = stack(tmp_path / "a.ome.tif", "ome", pages)
    source = opened(path)
    assert len(source.levels) == 2
    np.testing.assert_array_equal(whole(source), np.stack(GREY[:2], 2))
    tolerance = 3 if name == "JPEG" else 0
    assert np.abs(whole(source, 1).astype(int) - np.stack(small, 2)).max() <= tolerance


def test_pages_that_tifffile_skips(tmp_path: Path) -> None:
    """It writes a stack in one piece and says so in its first page: a later page that says otherwise is believed."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack(GREY[:9]), photometric="minisblack", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(whole(opened(path, plane=(("z", 5),)))[:, :, 0], GREY[5])
    with tifffile.TiffFile(path) as file:
        tag = file.pages[5].aspage().tags[262]
        where = tag.valueoffset
    with open(path, "r+b") as raw:
        raw.seek(where)
        raw.write(b"\0\0")  # min-is-white
    np.testing.assert_array_equal(whole(opened(path, plane=(("z", 5),)))[:, :, 0], 255 - GREY[5])
    np.testing.assert_array_equal(whole(opened(path, plane=(("z", 6),)))[:, :, 0], GREY[6])
    with Image.open(path) as picture:
        picture.seek(5)
        np.testing.assert_array_equal(np.array(picture), 255 - GREY[5])
