"""Colours of TIFF pages by what tags and streams say together, against OpenSlide, libtiff and arithmetic."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import j2k
import numpy as np
import pytest
from own_tiff import bare_jpeg, cut, jpeg, page, smooth, to_ycbcr, write_tiff
from PIL import Image

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources.base import Alpha, SourceSpec
from tiledblend.sources.tiff.jpeg2000 import Jpeg2000, codestream
from tiledblend.sources.tiff.segments import SegmentError
from tiledblend.sources.tiff.source import TiffSource, open_tiff

SHAPE, TILE = (200, 330), (96, 112)
CASES = Path(__file__).parents[2] / "shared" / "cases" / "tiff"
APERIO = "Aperio Image Library v10.0.50\r\n330x200 [0,0 330x200] (96x112) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.4990"
PICTURE = smooth(SHAPE)


def opened(path: Path, **spec: Any) -> TiffSource:
    return open_tiff(SourceSpec(str(path), **spec))


def pixels(path: Path, **spec: Any) -> Any:
    source = opened(path, **spec)
    return source.read(Region.of_shape(source.levels[0].shape))


def mean_error(found: Any, wanted: Any) -> float:
    return float(np.abs(found.astype(float) - wanted).mean())


def openslide_pixels(path: Path) -> Any:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(str(path)) as slide:
        return np.array(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


# --- JPEG 2000


def jpeg2000_file(
    tmp_path: Path, step: tuple[int, int], code: int, photometric: int, *, says_subsampling: bool = False
) -> Path:
    def encode(part: Any) -> bytes:
        planes = j2k.subsample(to_ycbcr(part), step)
        return j2k.encode(planes, [(1, 1), step, step], tmp_path / "tile.j2k")

    more: dict[int, tuple[int, Any]] = {270: (2, APERIO)}
    if says_subsampling:
        more[530] = (3, [step[1], step[0]])
    made = page(
        SHAPE, cut(PICTURE, TILE, encode), tile=TILE, samples=3, photometric=photometric, compression=code, more=more
    )
    return write_tiff(tmp_path / "a.svs", [made])


@pytest.mark.parametrize("step", [(1, 1), (1, 2), (2, 2), (2, 1), (1, 4), (4, 4)], ids=str)
@pytest.mark.parametrize("photometric", [2, 6])
@pytest.mark.parametrize("says_subsampling", [False, True])
def test_aperio_chroma_is_told_by_the_codestream(
    tmp_path: Path, step: tuple[int, int], photometric: int, says_subsampling: bool
) -> None:
    path = jpeg2000_file(tmp_path, step, 33003, photometric, says_subsampling=says_subsampling)
    found = pixels(path)
    # OpenSlide converts in fixed point; both repeat the chrominance.
    assert np.abs(found.astype(int) - openslide_pixels(path)).max() <= 3
    assert mean_error(found, PICTURE) < 2


@pytest.mark.parametrize("step", [(1, 2), (2, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("code", [33004, 33005, 34712])
@pytest.mark.parametrize("photometric", [2, 6])
def test_subsampled_chroma_is_ycbcr_under_every_code(
    tmp_path: Path, step: tuple[int, int], code: int, photometric: int
) -> None:
    assert mean_error(pixels(jpeg2000_file(tmp_path, step, code, photometric)), PICTURE) < 1.5


@pytest.mark.parametrize(
    ("code", "photometric", "transform", "space", "is_ycbcr"),
    [
        (33003, 2, False, None, True),  # Aperio's two codes decide, as in OpenSlide
        (33003, 2, True, None, True),
        (33005, 6, False, None, False),
        (34712, 6, False, None, True),
        (34712, 6, True, None, False),  # the decoder undoes the transform that the tag tells of
        (34712, 2, False, None, False),
        (34712, 2, False, 3, True),  # its own box says sYCC
        (34712, 2, False, 1, False),
    ],
)
def test_full_chroma_is_told_by_code_tag_transform_and_box(
    tmp_path: Path, code: int, photometric: int, transform: bool, space: int | None, is_ycbcr: bool
) -> None:
    stored = to_ycbcr(PICTURE[:96, :112]) if is_ycbcr else np.ascontiguousarray(PICTURE[:96, :112])
    if transform or space is None:
        data = imagecodecs.jpeg2k_encode(stored, level=0, codecformat="J2K", mct=transform)
    else:
        planes = [np.ascontiguousarray(stored[:, :, k]) for k in range(3)]
        data = j2k.encode(planes, [(1, 1)] * 3, tmp_path / "tile.jp2", space=space)
    assert codestream(data).is_transformed is transform
    made = page((96, 112), [data], tile=(96, 112), samples=3, photometric=photometric, compression=code)
    path = write_tiff(tmp_path / "a.svs", [made])
    found = pixels(path)
    assert np.abs(found.astype(int) - PICTURE[:96, :112]).max() <= (2 if is_ycbcr else 0)


def test_16_bit_ycbcr(tmp_path: Path) -> None:
    rgb = PICTURE[:64, :64].astype(np.uint16) * 257
    r, g, b = np.moveaxis(rgb.astype(float), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    ycbcr = np.stack([y, 32768 + (b - y) / 1.772, 32768 + (r - y) / 1.402], 2).round().clip(0, 65535).astype(np.uint16)
    data = imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="J2K", mct=False)
    made = page((64, 64), [data], tile=(64, 64), samples=3, bits=16, photometric=6, compression=34712)
    assert np.abs(pixels(write_tiff(tmp_path / "a.tif", [made])).astype(int) - rgb).max() <= 2


def test_subsampled_with_alpha(tmp_path: Path) -> None:
    alpha = np.arange(96 * 112, dtype=np.uint32).reshape(96, 112).astype(np.uint8)
    planes = [*j2k.subsample(to_ycbcr(PICTURE[:96, :112]), (1, 2)), alpha]
    data = j2k.encode(planes, [(1, 1), (1, 2), (1, 2), (1, 1)], tmp_path / "tile.j2k")
    more = {338: (3, [2])}
    made = page((96, 112), [data], tile=(96, 112), samples=4, photometric=2, compression=34712, more=more)
    found = pixels(write_tiff(tmp_path / "a.tif", [made]))
    np.testing.assert_array_equal(found[:, :, 3], alpha)
    assert mean_error(found[:, :, :3], PICTURE[:96, :112]) < 1.5


def test_steps_that_no_decoder_gets_right_are_refused(tmp_path: Path) -> None:
    odd = np.ascontiguousarray(PICTURE[:95, :111])
    for step in ((2, 1), (4, 4)):
        planes = j2k.subsample(to_ycbcr(odd), step)
        data = j2k.encode(planes, [(1, 1), step, step], tmp_path / "tile.j2k")
        with pytest.raises(SegmentError, match="subsampled by"):
            Jpeg2000(34712, False, True).decode(data, (95, 111, 3), (95, 111))
    planes = j2k.subsample(to_ycbcr(odd), (2, 2))
    data = j2k.encode(planes, [(1, 1), (2, 2), (2, 2)], tmp_path / "tile.j2k")
    assert mean_error(Jpeg2000(34712, False, True).decode(data, (95, 111, 3), (95, 111)), odd) < 1.5


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside the checkout")
@pytest.mark.parametrize("name", ["fault1_yuv422p.svs", "fault1_yuv444p.svs"])
def test_slides_as_ffmpeg_makes_their_tiles(name: str) -> None:
    found = pixels(CASES / name)
    assert np.abs(found.astype(int) - openslide_pixels(CASES / name)).max() <= 3


# --- JPEG

ADOBE = {n: b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([n]) for n in (0, 1, 2)}
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


def ycbcr_jpeg(part: Any) -> bytes:
    return jpeg(part)


def rgb_jpeg(part: Any) -> bytes:
    return jpeg(part, keep_rgb=True)


YCBCR_STREAMS = {
    "JFIF": jpeg,
    "bare": lambda part: bare_jpeg(jpeg(part)),
    "ids 0, 1, 2": lambda part: bare_jpeg(jpeg(part), (0, 1, 2)),
    "ids R, G, B": lambda part: bare_jpeg(jpeg(part), (82, 71, 66)),
    "Adobe 0": lambda part: bare_jpeg(jpeg(part), before=ADOBE[0]),
    "Adobe 0, ids R, G, B": lambda part: bare_jpeg(jpeg(part), (82, 71, 66), ADOBE[0]),
    "JFIF, Adobe 0": lambda part: bare_jpeg(jpeg(part), before=JFIF + ADOBE[0]),
    "Adobe 1": lambda part: bare_jpeg(jpeg(part), before=ADOBE[1]),
    "progressive, Adobe 0": lambda part: bare_jpeg(jpeg(part, progressive=True), before=ADOBE[0]),
    "4:2:0, Adobe 0": lambda part: bare_jpeg(jpeg(part, subsampling=2), before=ADOBE[0]),
}
RGB_STREAMS = {
    "bare": lambda part: bare_jpeg(rgb_jpeg(part)),
    "ids 1, 2, 3": lambda part: bare_jpeg(rgb_jpeg(part), (1, 2, 3)),
    "Adobe 0": rgb_jpeg,
    "Adobe 1": lambda part: bare_jpeg(rgb_jpeg(part), (1, 2, 3), ADOBE[1]),
}


def jpeg_file(tmp_path: Path, encode: Any, photometric: int, tile: tuple[int, int] = (96, 112), **more: Any) -> Path:
    tags: dict[int, tuple[int, Any]] = {530: (3, [1, 1]), **more} if photometric == 6 else dict(more)
    made = page(
        SHAPE, cut(PICTURE, tile, encode), tile=tile, samples=3, photometric=photometric, compression=7, more=tags
    )
    return write_tiff(tmp_path / "a.tif", [made])


@pytest.mark.parametrize("stream", YCBCR_STREAMS)
def test_photometric_ycbcr_holds_whatever_the_stream_calls_its_components(tmp_path: Path, stream: str) -> None:
    path = jpeg_file(tmp_path, YCBCR_STREAMS[stream], 6)
    found = pixels(path)
    np.testing.assert_array_equal(found, openslide_pixels(path))
    if not stream.startswith("4:2:0"):
        np.testing.assert_array_equal(found, np.array(Image.open(path).convert("RGB")))
    assert mean_error(found, PICTURE) < 1.5


@pytest.mark.parametrize("stream", RGB_STREAMS)
def test_photometric_rgb_holds_without_jfif(tmp_path: Path, stream: str) -> None:
    path = jpeg_file(tmp_path, RGB_STREAMS[stream], 2)
    found = pixels(path)
    np.testing.assert_array_equal(found, openslide_pixels(path))
    assert mean_error(found, PICTURE) < 1.5


def test_jfif_beside_photometric_rgb_is_ycbcr(tmp_path: Path) -> None:
    assert mean_error(pixels(jpeg_file(tmp_path, jpeg, 2)), PICTURE) < 1.5


@pytest.mark.parametrize("before", [b"", ADOBE[0], JFIF])
def test_tables_of_their_own_may_hold_colour_segments(tmp_path: Path, before: bytes) -> None:
    """Abbreviated streams: quantization and Huffman tables in JPEGTables, with what a writer put before them."""
    whole = bare_jpeg(jpeg(PICTURE[:96, :112]))
    tables, rest, at = b"", b"", 2
    while whole[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
        if whole[at + 1] in (0xDB, 0xC4):
            tables += whole[at:end]
        else:
            rest += whole[at:end]
        at = end
    stream = b"\xff\xd8" + rest + whole[at:]
    more = {347: (7, b"\xff\xd8" + before + tables + b"\xff\xd9"), 530: (3, [1, 1])}
    made = page((96, 112), [stream], tile=(96, 112), samples=3, photometric=6, compression=7, more=more)
    path = write_tiff(tmp_path / "a.tif", [made])
    assert mean_error(pixels(path), PICTURE[:96, :112]) < 1.5
    np.testing.assert_array_equal(pixels(path), openslide_pixels(path))


@pytest.mark.parametrize("ids", [(1, 2, 3), (82, 71, 66)])
def test_12_bit_ycbcr(tmp_path: Path, ids: tuple[int, int, int]) -> None:
    deep = PICTURE[:96, :112].astype(np.uint16) * 16
    data = bare_jpeg(bytes(imagecodecs.jpeg8_encode(deep, level=98, bitspersample=12)), ids)
    more = {530: (3, [1, 1])}
    made = page((96, 112), [data], tile=(96, 112), samples=3, bits=12, photometric=6, compression=7, more=more)
    assert mean_error(pixels(write_tiff(tmp_path / "a.tif", [made])), deep) < 16


def test_ycbcr_jpeg_with_extra_samples_is_refused(tmp_path: Path) -> None:
    """libtiff refuses it too: no JPEG decoder knows what four such components are."""
    four = np.ascontiguousarray(np.dstack([to_ycbcr(PICTURE), PICTURE[:, :, 0]]))
    encode = lambda part: bytes(imagecodecs.jpeg8_encode(part, colorspace="CMYK", outcolorspace="CMYK"))  # noqa: E731
    more = {338: (3, [2]), 530: (3, [1, 1])}
    made = page(SHAPE, cut(four, TILE, encode), tile=TILE, samples=4, photometric=6, compression=7, more=more)
    with pytest.raises(BadInputError, match="YCbCr JPEG with extra samples is not read"):
        opened(write_tiff(tmp_path / "a.tif", [made]))


def planar_file(tmp_path: Path, encode: Any, compression: int, **more: Any) -> Path:
    planes = np.moveaxis(to_ycbcr(PICTURE), 2, 0)
    segments = [data for plane in planes for data in cut(np.ascontiguousarray(plane), TILE, encode)]
    made = page(
        SHAPE, segments, tile=TILE, samples=3, photometric=6, compression=compression, planar=2,
        more={530: (3, [1, 1]), **more},
    )  # fmt: skip
    return write_tiff(tmp_path / "a.tif", [made])


def test_planar_ycbcr_jpeg(tmp_path: Path) -> None:
    path = planar_file(tmp_path, lambda part: bare_jpeg(jpeg(part)), 7)
    source = opened(path)
    found = source.read(Region.of_shape(SHAPE))
    assert (source.is_rgb, source.channels) == (True, 3)
    assert mean_error(found, PICTURE) < 1.5
    assert np.abs(found.astype(int) - np.array(Image.open(path).convert("RGB"))).mean() < 1
    for region in (Region(10, 20, 150, 300), Region(199, 329, 200, 330), Region(96, 112, 192, 224)):
        np.testing.assert_array_equal(source.read(region), found[region.slices])
    np.testing.assert_array_equal(pixels(path, channels=(2, 0)), found[:, :, [2, 0]])


def test_planar_ycbcr_jpeg_2000(tmp_path: Path) -> None:
    path = planar_file(tmp_path, lambda part: imagecodecs.jpeg2k_encode(part, level=0), 34712)
    assert np.abs(pixels(path).astype(int) - PICTURE).max() <= 2


def test_planar_ycbcr_without_a_codec_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="YCbCr samples with this compression are not read"):
        opened(planar_file(tmp_path, lambda part: part.tobytes(), 1))


@pytest.mark.parametrize(("codec", "code"), [("jpegxr", 22610), ("jpegxr", 34934), ("webp", 50001)])
@pytest.mark.parametrize("says_subsampling", [False, True])
def test_codecs_that_know_their_colours_beside_photometric_ycbcr(
    tmp_path: Path, codec: str, code: int, says_subsampling: bool
) -> None:
    def encode(part: Any) -> bytes:
        return bytes(
            imagecodecs.jpegxr_encode(part) if codec == "jpegxr" else imagecodecs.webp_encode(part, lossless=True)
        )

    made = page(
        SHAPE, cut(PICTURE, TILE, encode), tile=TILE, samples=3, photometric=6, compression=code,
        more={530: (3, [2, 2])} if says_subsampling else {},
    )  # fmt: skip
    path = write_tiff(tmp_path / "a.tif", [made])
    assert mean_error(pixels(path), PICTURE) < 1.5


# --- extra samples


@pytest.mark.parametrize(
    ("extra", "alpha", "is_rgb", "note"),
    [
        ([0], Alpha.NONE, False, "sample 3 is no alpha"),
        ([2], Alpha.STRAIGHT, True, ""),
        (None, Alpha.STRAIGHT, True, "taken as straight alpha"),
        ([0, 0], Alpha.NONE, False, "samples 3, 4 are no alpha"),
        ([0, 2], Alpha.STRAIGHT, False, "sample 3 is no alpha"),
    ],
)
def test_extra_samples(tmp_path: Path, extra: list[int] | None, alpha: Alpha, is_rgb: bool, note: str) -> None:
    count = 3 + (1 if extra is None else len(extra))
    values = np.concatenate([PICTURE, *[PICTURE[:, :, :1] // (2 + k) for k in range(count - 3)]], axis=2)
    more: dict[int, tuple[int, Any]] = {} if extra is None else {338: (3, extra)}
    made = page(
        SHAPE, cut(values, TILE, lambda part: zlib.compress(part.tobytes())), tile=TILE, samples=count, photometric=2,
        compression=8, more=more,
    )  # fmt: skip
    path = write_tiff(tmp_path / "a.tif", [made])
    source = opened(path)
    assert (source.alpha, source.is_rgb, source.channels) == (alpha, is_rgb, count)
    np.testing.assert_array_equal(pixels(path), values)
    said = [text for text in source.info.notes if "alpha" in text]
    assert bool(said) is bool(note)
    assert not note or note in said[0]
    assert opened(path, channels=(0, 1, 2)).is_rgb
