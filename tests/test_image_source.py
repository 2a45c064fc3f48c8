"""PNG, JPEG and WebP against Pillow, OpenCV and imagecodecs' encoders."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tiledblend.errors import BadInputError
from tiledblend.geometry import Region
from tiledblend.sources import Alpha, RasterSource, open_source
from tiledblend.sources.opening import forget_sources
from tiledblend.sources.pictures import source as image_module
from tiledblend.sources.pictures.header import read_header

PIXELS = np.random.default_rng(3).integers(0, 256, (37, 53, 4), dtype=np.uint8)


def whole(path: Path) -> np.ndarray:
    source = open_source(path)
    pixels = source.read(Region.of_shape(source.shape))
    assert pixels.shape == (*source.shape, source.channels)
    assert pixels.dtype == source.dtype
    return pixels


def png(width: int, height: int, bits: int, kind: int, raw: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG from its parts, for what no encoder here writes."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_png_8_bits(tmp_path: Path, mode: str, channels: int) -> None:
    stored = PIXELS[:, :, :channels]
    Image.fromarray(stored.squeeze()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), stored)
    source = open_source(tmp_path / "a.png")
    assert source.alpha is (Alpha.STRAIGHT if channels in (2, 4) else Alpha.NONE)
    assert source.is_rgb is (channels >= 3)
    assert source.pixel_size_um is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_16_bits(tmp_path: Path, channels: int) -> None:
    stored = PIXELS[:, :, :channels].astype(np.uint16) * 251 + 7
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(stored.squeeze()))
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), stored)
    if channels in (1, 3):
        seen = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(whole(tmp_path / "a.png"), seen.reshape(stored.shape)[:, :, ::-1])


def test_png_palette_and_one_bit(tmp_path: Path) -> None:
    palette = Image.fromarray(PIXELS[:, :, :3]).quantize(17)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(whole(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "holes.png", transparency=3)
    with Image.open(tmp_path / "holes.png") as image:
        np.testing.assert_array_equal(whole(tmp_path / "holes.png"), np.asarray(image.convert("RGBA")))
    Image.fromarray(PIXELS[:, :, 0] > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(whole(tmp_path / "bits.png")[:, :, 0], np.where(PIXELS[:, :, 0] > 99, 255, 0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [None, 0])
def test_a_png_palette_of_colours_is_labels_as_a_mask(tmp_path: Path, bits: int, transparency: int | None) -> None:
    labels = PIXELS[:, :, 0] >> (8 - bits)
    image = Image.fromarray(labels)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 3 << bits, np.uint8).tobytes())
    image.save(tmp_path / "a.png", bits=bits, **({} if transparency is None else {"transparency": transparency}))
    mask, layer = open_source(tmp_path / "a.png", mask=True), open_source(tmp_path / "a.png")
    region = Region.of_shape(labels.shape)
    for source in (mask, pickle.loads(pickle.dumps(mask))):
        assert (source.channels, source.alpha, source.is_rgb) == (1, Alpha.NONE, False)
        np.testing.assert_array_equal(source.read(region)[:, :, 0], labels)
    assert "palette indices are kept as labels" in mask.info.notes
    colours = "RGB" if transparency is None else "RGBA"
    np.testing.assert_array_equal(layer.read(region), np.asarray(Image.open(tmp_path / "a.png").convert(colours)))


def test_a_png_palette_of_greys_is_grey_as_a_mask(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS[:, :, 0] >> 7)
    image.putpalette([255, 255, 255, 0, 0, 0])  # the index is no 0 or 1 of the mask
    image.save(tmp_path / "a.png", bits=1)
    mask = open_source(tmp_path / "a.png", mask=True)
    shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(mask.read(Region.of_shape(mask.shape)), shown)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_with_a_transparent_grey(tmp_path: Path, bits: int) -> None:
    values = PIXELS[:8, :16, 0] >> (8 - bits)
    per_byte = 8 // bits
    packed = sum(values[:, k::per_byte].astype(int) << (8 - bits * (k + 1)) for k in range(per_byte)).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    key = int(values[0, 0])
    (tmp_path / "a.png").write_bytes(png(16, 8, bits, 0, raw, (b"tRNS", struct.pack(">H", key))))
    grey = values * (255 // (2**bits - 1))
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), np.dstack([grey, np.where(values == key, 0, 255)]))


def test_png_transparent_colour(tmp_path: Path) -> None:
    key = tuple(int(v) for v in PIXELS[0, 0, :3])
    Image.fromarray(PIXELS[:, :, :3]).save(tmp_path / "a.png", transparency=key)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("RGBA"))
    assert expected[0, 0, 3] == 0
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), expected)


def test_interlaced_png(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pyvips = pytest.importorskip("pyvips")
    pyvips.Image.new_from_array(PIXELS[:, :, :3]).pngsave(str(tmp_path / "a.png"), interlace=True)
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), PIXELS[:, :, :3])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS[:, :, :3]).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert open_source(path).shape == expected.shape[:2]
    np.testing.assert_array_equal(whole(path), expected)


def test_png_exif_after_the_pixels(tmp_path: Path) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = png(2, 1, 8, 0, b"\0\x01\x02")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    np.testing.assert_array_equal(whole(tmp_path / "a.png")[:, :, 0], [[1], [2]])


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(tmp_path: Path, channels: int, options: dict) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS[:, :, :channels].squeeze()).save(path, dpi=(300, 300), **options)
    expected = imagecodecs.jpeg_decode(path.read_bytes()).reshape(37, 53, channels)
    np.testing.assert_array_equal(whole(path), expected)
    assert open_source(path).pixel_size_um is None


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 70}])
@pytest.mark.parametrize("channels", [3, 4])
def test_webp(tmp_path: Path, channels: int, options: dict) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(PIXELS[:, :, :channels]).save(path, **options)
    with Image.open(path) as image:
        np.testing.assert_array_equal(whole(path), np.asarray(image))


@settings(deadline=None)
@given(y=st.tuples(st.integers(0, 37), st.integers(0, 37)), x=st.tuples(st.integers(0, 53), st.integers(0, 53)))
def test_any_region(shared_png: RasterSource, y: tuple[int, int], x: tuple[int, int]) -> None:
    region = Region(min(y), min(x), max(y), max(x))
    np.testing.assert_array_equal(shared_png.read(region), PIXELS[region.slices])


@pytest.fixture(scope="module")
def shared_png(tmp_path_factory: pytest.TempPathFactory) -> RasterSource:
    path = tmp_path_factory.mktemp("shared") / "a.png"
    Image.fromarray(PIXELS).save(path)
    return open_source(path)


def test_decoded_once_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    original, calls = image_module.decode, []

    def counting(data: bytes, header: object) -> np.ndarray:
        calls.append(threading.get_ident())
        return original(data, header)

    monkeypatch.setattr(image_module, "decode", counting)
    sources = [open_source(tmp_path / "a.png"), open_source(tmp_path / "a.png", mask=True)]
    assert not calls
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda k: sources[k % 2].read(Region(0, 0, 37, 53)), range(32)):
            np.testing.assert_array_equal(pixels, PIXELS)
    assert len(calls) == 1


def test_pickle_and_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    source = open_source(path)
    data = pickle.dumps(source)
    assert len(data) < 1000
    forget_sources()
    again = pickle.loads(data)
    assert again is not source
    assert again.fingerprint() == source.fingerprint()
    assert source.fingerprint()["size"] == path.stat().st_size


def test_pixel_limit_by_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(500_000, 500_000, 8, 2, b""))
    with pytest.raises(BadInputError) as caught:
        open_source(tmp_path / "bomb.png")
    assert str(caught.value).endswith(
        "500000 x 500000 = 250,000 megapixels; a PNG is decoded whole, which is limited to 250 megapixels; "
        "convert it to a tiled TIFF"
    )


def test_below_our_limit_but_above_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(PIXELS[:, :, :3]).save(tmp_path / "a.jpg")
    Image.fromarray(PIXELS[:, :, :3]).quantize(9).save(tmp_path / "a.png")
    assert whole(tmp_path / "a.jpg").shape == (37, 53, 3)
    assert whole(tmp_path / "a.png").shape == (37, 53, 3)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_truncated_is_an_error_not_grey_rows(tmp_path: Path, extension: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg"}.get(extension, extension))
    path = tmp_path / f"a.{extension}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * part)])
    with pytest.raises(BadInputError) as caught:
        open_source(path).read(Region(0, 0, 2, 2))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    source = open_source(path)
    Image.fromarray(PIXELS[:9]).save(path)
    with pytest.raises(BadInputError, match="has changed since it was opened"):
        source.read(Region(0, 0, 2, 2))


def test_cmyk_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(BadInputError, match="a CMYK JPEG; convert it to RGB first"):
        open_source(tmp_path / "a.jpg")


def test_animated_webp_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(PIXELS, k, axis=0)) for k in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(BadInputError, match="animated WebP"):
        open_source(tmp_path / "a.webp")


@pytest.mark.parametrize("selection", [{"plane": {"z": 1}}, {"series": 2}, {"level": 1}, {"channels": (4,)}])
def test_selections_that_a_flat_image_does_not_have(shared_png: RasterSource, selection: dict) -> None:
    with pytest.raises(BadInputError) as caught:
        open_source(shared_png.spec.path, **selection)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(data=st.data())
def test_broken_headers_are_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["png", "jpeg", "webp"]))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[:4, :5, :3]).save(buffer, format=kind, exif=exif)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(12, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / "a"
    path.write_bytes(content[: data.draw(st.integers(12, len(content)))])
    problem, orientation = "", 1
    try:
        orientation = read_header(str(path)).orientation
    except BadInputError as error:
        problem = str(error)
    assert "\n" not in problem
    assert orientation in range(1, 9)
