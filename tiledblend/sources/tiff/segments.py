"""What an encoded tile or strip says about itself, checked before a decoder believes it.

A tile's own header may claim 65,500 x 65,500 pixels, and a JPEG cut off in the middle decodes to grey without an
error: both must be found in the bytes. Markers: ITU-T T.81 annex B (JPEG), T.832 clause 8.3 (JPEG XR), T.6 clause
2.4.1 (group 4 fax), ISO/IEC 18181-1 annex D (JPEG XL), PNG and WebP container specifications. JPEG 2000 and LERC have
modules of their own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tiledblend.sources.pictures.png import check_png

JPEG = frozenset({6, 7, 33007, 34892})
PNG = frozenset({34933})
WEBP = frozenset({34927, 50001})
JPEG_XR = frozenset({22610, 34934})
JPEG_XL = frozenset({50002, 52546})
GROUP_4_FAX = frozenset({4})

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_SOF = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_FAX_TAIL = 16
_EOI = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """A JPEG stream's frame header. marker: SOF0 to SOF15. shape: (y, x). scan: where the first scan's data begins.

    scanned: number of components in the first scan.
    """

    marker: int
    bits: int
    shape: tuple[int, int]
    components: int
    scan: int
    scanned: int

    @property
    def is_plain(self) -> bool:
        """8-bit Huffman-coded DCT, sequential or progressive, of one component or three."""
        return self.marker in (0xC0, 0xC1, 0xC2) and self.bits == 8 and self.components in (1, 3)

    @property
    def is_one_scan(self) -> bool:
        """True when nothing can follow the first scan's data."""
        return self.marker in (0xC0, 0xC1) and self.scanned == self.components


class SegmentError(ValueError):
    """The bytes of a tile or strip cannot be what the directory says they are."""


def check_segment(
    data: bytes,
    compression: int,
    stored: tuple[int, int, int],
    needed: tuple[int, int],
    frames: JpegFrames | None,
) -> JpegFrame | None:
    """Raise SegmentError unless the encoded segment's own header agrees with the directory.

    stored: (height, width, samples) of a whole tile or strip. needed: (height, width) of its part inside the image,
    which is all that some writers encode at the edges. frames: of the image's JPEG segments; None where
    their header is kept elsewhere (NDPI). Returns a JPEG's frame; whether its end is there, `has_end` tells.
    """
    if compression in JPEG:
        return None if frames is None else _check_jpeg(data, stored, needed, frames)
    if compression in GROUP_4_FAX and not _ends_as_fax(data):
        raise SegmentError(f"truncated group 4 fax: no end marker in its last {_FAX_TAIL} bytes")
    own = None
    if compression in PNG:
        own = _png_shape(data)
    elif compression in WEBP:
        own = _webp_shape(data)
    elif compression in JPEG_XR:
        own = _jpegxr_shape(data)
    elif compression in JPEG_XL:
        own = _jpegxl_shape(data)
    if own is not None:
        compare_sides(own, stored, needed)
    return None


def _ends_as_fax(data: bytes) -> bool:
    """True when the last bytes hold the end-of-block marker, in either order of the bits in a byte."""
    tail = [f"{byte:08b}" for byte in data[-_FAX_TAIL:]]
    return any("000000000001" * 2 in "".join(bits) for bits in (tail, [byte[::-1] for byte in tail]))


class JpegFrames:
    """Frame headers of an image's JPEG segments, which mostly are the same: one that was parsed is known again."""

    def __init__(self) -> None:
        self._last: tuple[bytes, JpegFrame] | None = None

    def of(self, data: bytes) -> JpegFrame:
        """As `jpeg_frame`."""
        last = self._last
        if last is not None and data.startswith(last[0]):
            return last[1]
        frame = jpeg_frame(data)
        self._last = data[: frame.scan], frame
        return frame


def _check_jpeg(data: bytes, stored: tuple[int, int, int], needed: tuple[int, int], frames: JpegFrames) -> JpegFrame:
    frame = frames.of(data)
    (height, width), components = frame.shape, frame.components
    if frame.marker in _LOSSLESS_SOF:  # DNG writers fold samples into the width: only the amount is comparable
        if height * width * components > stored[0] * stored[1] * stored[2]:
            raise SegmentError(f"its own header says {height} x {width} x {components}, the TIFF says {_by(stored)}")
    else:
        compare_sides((height, width), stored, needed)
        if components != stored[2]:
            raise SegmentError(f"its own header says {components} samples per pixel, the TIFF says {stored[2]}")
    return frame


def has_end(data: bytes, frame: JpegFrame) -> bool:
    """True when a JPEG stream has its end marker."""
    return data.endswith(_EOI) or data.rfind(_EOI) >= frame.scan


def no_end(data: bytes) -> SegmentError:
    """The error of a JPEG stream without one."""
    return SegmentError(f"truncated JPEG: no end marker in its {len(data)} bytes")


def compare_sides(own: tuple[int, int], stored: tuple[int, int, int], needed: tuple[int, int]) -> None:
    """Raise SegmentError unless a segment of `own` sides is a whole one, or its part inside the image."""
    fits = needed[0] <= own[0] <= stored[0] and own[1] in (stored[1], needed[1])
    if not fits:
        raise SegmentError(f"its own header says {own[0]} x {own[1]} pixels, the TIFF says {_by(stored[:2])}")


def _by(numbers: tuple[int, ...]) -> str:
    return " x ".join(str(number) for number in numbers)


def jpeg_frame(data: bytes) -> JpegFrame:
    """The frame header of a JPEG stream. Raises SegmentError when it has none, or two.

    >>> jpeg_frame(bytes.fromhex("ffd8 ffc0000b 08 0010 0020 01 012200 ffda0008 01 0100 003f00 ffd9"))
    JpegFrame(marker=192, bits=8, shape=(16, 32), components=1, scan=25, scanned=1)
    """
    if data[:2] != b"\xff\xd8":
        raise SegmentError(f"not a JPEG (first bytes {data[:4].hex(' ')})")
    found: tuple[int, int, tuple[int, int], int] | None = None
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise SegmentError(f"damaged JPEG: no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            raise SegmentError(f"damaged or truncated JPEG: marker segment at byte {at} of {length} bytes")
        if marker in _SOF and length >= 8:
            bits, height, width, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            if found is not None:
                raise SegmentError("damaged JPEG: two frame headers")
            found = marker, bits, (height, width), components
        scanned = data[at + 4]
        at += 2 + length
        if marker == 0xDA:
            break
    else:
        raise SegmentError("truncated JPEG: its header does not end")
    if found is None:
        raise SegmentError("damaged JPEG: no frame header")
    return JpegFrame(*found, at, scanned)


def _png_shape(data: bytes) -> tuple[int, int]:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise SegmentError("damaged or truncated PNG: no header")
    check_png(data)
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _webp_shape(data: bytes) -> tuple[int, int]:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        raise SegmentError("damaged or truncated WebP: no header")
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise SegmentError(f"truncated WebP: {len(data)} bytes")
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return height & 0x3FFF, width & 0x3FFF


def _jpegxr_shape(data: bytes) -> tuple[int, int]:
    start = data.find(b"WMPHOTO\0", 0, 1 << 16)
    if start < 0 or len(data) < start + 20:
        raise SegmentError("damaged or truncated JPEG XR: no codestream header")
    is_short = bool(data[start + 10] & 0x80)
    width, height = struct.unpack_from(">HH" if is_short else ">II", data, start + 12)
    return height + 1, width + 1


_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jpegxl_shape(data: bytes) -> tuple[int, int]:
    """Of the codestream, bare or in the first jxlc or jxlp box of a container."""
    start = 0
    if data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        boxes = [at for at in (data.find(b"jxlc", 0, 1 << 16), data.find(b"jxlp", 0, 1 << 16)) if at >= 0]
        start = data.find(b"\xff\x0a", min(boxes) + 4, min(boxes) + 10) if boxes else -1
    if start < 0 or data[start : start + 2] != b"\xff\x0a" or len(data) < start + 14:
        raise SegmentError("damaged or truncated JPEG XL: no codestream header")
    bits = _Bits(int.from_bytes(data[start + 2 : start + 14], "little"))
    is_small = bool(bits.take(1))
    height = bits.side(is_small)
    ratio = bits.take(3)
    if ratio:
        over, under = _XL_RATIOS[ratio - 1]
        return height, height * over // under
    return height, bits.side(is_small)


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken

    def side(self, is_small: bool) -> int:
        """A side of JPEG XL's SizeHeader."""
        if is_small:
            return 8 * (self.take(5) + 1)
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1
