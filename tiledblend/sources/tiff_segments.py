"""What an encoded tile or strip says about itself, checked before a decoder believes it.

A tile's own header may claim 65,500 x 65,500 pixels, and a JPEG cut off in the middle decodes to grey without an
error: both must be found in the bytes. Markers: ITU-T T.81 annex B (JPEG), T.800 annex A (JPEG 2000), PNG and
WebP container specifications.
"""

from __future__ import annotations

import struct

JPEG = frozenset({6, 7, 33007, 34892})
JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
PNG = frozenset({34933})
WEBP = frozenset({34927, 50001})

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS_SOF = frozenset({0xC3, 0xC7, 0xCB, 0xCF})


class SegmentError(ValueError):
    """The bytes of a tile or strip cannot be what the directory says they are."""


def check_segment(
    data: bytes, compression: int, stored: tuple[int, int, int], needed: tuple[int, int], *, headless: bool = False
) -> None:
    """Raise SegmentError unless the encoded segment's own header agrees with the directory.

    stored: (height, width, samples) of a whole tile or strip. needed: (height, width) of its part inside the image,
    which is all that some writers encode at the edges. headless: JPEG data whose header is kept elsewhere (NDPI).
    """
    if compression in JPEG:
        if not headless:
            _check_jpeg(data, stored, needed)
        return
    own = None
    if compression in JPEG_2000:
        own = _jpeg2000_shape(data)
    elif compression in PNG:
        own = _png_shape(data)
    elif compression in WEBP:
        own = _webp_shape(data)
    if own is not None:
        _compare(own, stored, needed)


def _check_jpeg(data: bytes, stored: tuple[int, int, int], needed: tuple[int, int]) -> None:
    marker, (height, width), components, scan = jpeg_frame(data)
    if marker in _LOSSLESS_SOF:  # DNG writers fold samples into the width: only the amount is comparable
        if height * width * components > stored[0] * stored[1] * stored[2]:
            raise SegmentError(f"its own header says {height} x {width} x {components}, the TIFF says {_by(stored)}")
    else:
        _compare((height, width), stored, needed)
        if components != stored[2]:
            raise SegmentError(f"its own header says {components} samples per pixel, the TIFF says {stored[2]}")
    if data.rfind(b"\xff\xd9") < scan:
        raise SegmentError(f"truncated JPEG: no end marker in its {len(data)} bytes")


def _compare(own: tuple[int, int], stored: tuple[int, int, int], needed: tuple[int, int]) -> None:
    fits = needed[0] <= own[0] <= stored[0] and own[1] in (stored[1], needed[1])
    if not fits:
        raise SegmentError(f"its own header says {own[0]} x {own[1]} pixels, the TIFF says {_by(stored[:2])}")


def _by(numbers: tuple[int, ...]) -> str:
    return " x ".join(str(number) for number in numbers)


def jpeg_frame(data: bytes) -> tuple[int, tuple[int, int], int, int]:
    """(SOF marker, (height, width), components, offset of the scan's data) of a JPEG stream.

    >>> jpeg_frame(bytes.fromhex("ffd8 ffc0000b 08 0010 0020 01 012200 ffda0008 01 0100 003f00 ffd9"))
    (192, (16, 32), 1, 25)
    """
    if data[:2] != b"\xff\xd8":
        raise SegmentError(f"not a JPEG (first bytes {data[:4].hex(' ')})")
    found: tuple[int, tuple[int, int], int] | None = None
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
            height, width, components = struct.unpack(">HHB", data[at + 5 : at + 10])
            if found is not None:
                raise SegmentError("damaged JPEG: two frame headers")
            found = marker, (height, width), components
        at += 2 + length
        if marker == 0xDA:
            break
    else:
        raise SegmentError("truncated JPEG: its header does not end")
    if found is None:
        raise SegmentError("damaged JPEG: no frame header")
    return (*found, at)


def _jpeg2000_shape(data: bytes) -> tuple[int, int]:
    start = data.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if start < 0 or len(data) < start + 40:
        raise SegmentError("damaged or truncated JPEG 2000: no codestream header")
    width, height, left, top = struct.unpack(">IIII", data[start + 8 : start + 24])
    return height - top, width - left


def _png_shape(data: bytes) -> tuple[int, int]:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise SegmentError("damaged or truncated PNG: no header")
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
