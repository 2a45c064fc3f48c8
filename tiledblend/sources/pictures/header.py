"""Headers of PNG, JPEG and WebP files: what they hold, before anything is decoded. Standard library only.

PNG: https://www.w3.org/TR/png-3/ · JPEG: ITU-T T.81 · WebP: RFC 9649 · orientation: EXIF 2.32, tag 0x0112.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO

from tiledblend.bytes.ranges import read_whole
from tiledblend.errors import BadInputError

MAX_METADATA_CHUNK = 32 << 20
MAX_REMOTE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says of itself. stored: (y, x) as stored, before `orientation` (EXIF 1..8) is applied.

    channels: as decoded, alpha included. bits: 8 or 16 of a decoded sample. expand: a PNG with a palette,
    samples of under 8 bits, or interlaced. transparent: a PNG's one transparent grey or colour (tRNS), as decoded.
    coloured: a PNG's palette has more than greys. indices: its pixels are decoded to their numbers in the palette.
    """

    format: str
    stored: tuple[int, int]
    channels: int
    bits: int
    alpha: bool
    kind: str
    expand: bool = False
    orientation: int = 1
    transparent: tuple[int, ...] | None = None
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()
    coloured: bool = False
    indices: bool = False

    def of_indices(self) -> ImageHeader:
        """The same PNG, its pixels decoded to numbers in the palette."""
        notes = (*self.notes, "palette indices are kept as labels")
        return replace(self, channels=1, alpha=False, notes=notes, indices=True)

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) as shown: orientations 5 to 8 swap the sides."""
        height, width = self.stored
        return (width, height) if self.orientation >= 5 else (height, width)


def read_header(path: str) -> ImageHeader:
    """The header of a PNG, JPEG or WebP, by path or URL. Raises BadInputError if malformed or not a layer's kind."""
    try:
        with _opened(path) as file:
            head = file.read(16)
            file.seek(0)
            if head.startswith(b"\x89PNG"):
                return _png(file, path)
            if head.startswith(b"\xff\xd8"):
                return _jpeg(file, path)
            return _webp(file, path)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, IndexError) as error:
        raise BadInputError(f"{path}: malformed header: {' '.join(str(error).split())}") from error


def _opened(path: str) -> BinaryIO:
    """The file, or an object's bytes: a PNG's header is only known at its end, and decoding needs all of it anyway."""
    return io.BytesIO(read_whole(path, MAX_REMOTE_BYTES)) if "://" in path else open(path, "rb")


def _exactly(file: BinaryIO, count: int) -> bytes:
    if count > MAX_METADATA_CHUNK:
        raise ValueError(f"a metadata block of {count} bytes")
    data = file.read(count)
    if len(data) != count:
        raise ValueError("the file is cut short")
    return data


def _inflated(chunk: bytes) -> bytes | None:
    """The profile in a PNG's iCCP chunk: a name, a zero, the method (0), zlib. None when it is damaged or too large."""
    packed = chunk.partition(b"\0")[2]
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(packed[1:], MAX_METADATA_CHUNK)
    except zlib.error:
        return None
    return profile if stream.eof and profile else None


def _png(file: BinaryIO, path: str) -> ImageHeader:
    file.seek(8)
    header: ImageHeader | None = None
    # To the very end, past the pixels: EXIF may stand there, and a file without its end is cut short.
    while True:
        length, name = struct.unpack(">I4s", _exactly(file, 8))
        if name == b"IEND":
            break
        if name in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iCCP"):
            data = _exactly(file, length)
            file.seek(4, os.SEEK_CUR)
            header = _png_start(data, path) if name == b"IHDR" else _png_more(header, name, data)
        else:
            file.seek(length + 4, os.SEEK_CUR)
            if name == b"acTL" and header is not None:
                header = replace(header, notes=("animated: the default image is taken",))
    if header is None:
        raise ValueError("no IHDR chunk")
    return header


_PNG_KINDS = {0: ("grey", 1), 2: ("RGB", 3), 3: ("palette", 3), 4: ("grey + alpha", 2), 6: ("RGBA", 4)}


def _png_start(data: bytes, path: str) -> ImageHeader:
    width, height, bits, kind, *_, interlace = struct.unpack(">IIBBBBB", data[:13])
    if kind not in _PNG_KINDS or bits not in (1, 2, 4, 8, 16) or (bits == 16 and kind == 3):
        raise ValueError(f"colour type {kind} with {bits} bits")
    name, channels = _PNG_KINDS[kind]
    return ImageHeader(
        "PNG",
        (height, width),
        channels,
        16 if bits == 16 else 8,
        kind in (4, 6),
        f"{name}, {bits} bits",
        # libpng through imagecodecs complains on stderr about an interlaced file, so those take the same way.
        expand=kind == 3 or bits < 8 or (interlace != 0 and bits == 8),
    )


def _png_more(header: ImageHeader | None, name: bytes, data: bytes) -> ImageHeader:
    if header is None:
        raise ValueError("IHDR is not first")
    if name == b"eXIf":
        return replace(header, orientation=_orientation(data))
    if name == b"iCCP":
        return replace(header, icc_profile=_inflated(data))
    if name == b"PLTE":
        return replace(header, coloured=header.kind.startswith("palette") and not data[::3] == data[1::3] == data[2::3])
    if header.alpha:
        return header
    if header.kind.startswith("palette"):
        return replace(header, alpha=True, channels=4)
    stored_bits = int(header.kind.split()[-2])
    scale = 255 // ((1 << stored_bits) - 1) if stored_bits < 8 else 1
    key = tuple(value * scale for value in struct.unpack(f">{header.channels}H", data))
    return replace(header, alpha=True, channels=header.channels + 1, transparent=key)


# Start-of-frame markers: C4 (Huffman tables), C8 (reserved) and CC (arithmetic tables) are not among them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(file: BinaryIO, path: str) -> ImageHeader:
    file.seek(2)
    orientation = 1
    profile: list[bytes] = []
    while True:
        marker = _jpeg_marker(file)
        if marker in (0xD9, 0xDA):
            raise ValueError("no frame header before the data")
        if 0xD0 <= marker <= 0xD7 or marker == 0x01:
            continue
        (length,) = struct.unpack(">H", _exactly(file, 2))
        data = _exactly(file, max(0, length - 2))
        if marker == 0xE1 and data.startswith(b"Exif\0"):
            orientation = _orientation(data[6:])
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0"):
            profile.append(data[14:])
        elif marker in _JPEG_FRAMES:
            header = _jpeg_frame(marker, data, path)
            return replace(header, orientation=orientation, icc_profile=b"".join(profile) or None)


def _jpeg_marker(file: BinaryIO) -> int:
    if _exactly(file, 1) != b"\xff":
        raise ValueError("no marker where one must be")
    while (code := _exactly(file, 1)) == b"\xff":
        pass
    return code[0]


def _jpeg_frame(marker: int, data: bytes, path: str) -> ImageHeader:
    bits, height, width, components = struct.unpack(">BHHB", data[:6])
    if components == 4:
        raise BadInputError(f"{path}: a CMYK JPEG; convert it to RGB first")
    if bits != 8 or marker not in (0xC0, 0xC1, 0xC2):
        raise BadInputError(f"{path}: a JPEG of {bits} bits (frame type {marker:#x}); convert it to PNG or TIFF first")
    if components not in (1, 3):
        raise BadInputError(f"{path}: a JPEG of {components} components; grey (1) and RGB (3) are read")
    return ImageHeader("JPEG", (height, width), components, 8, False, "grey" if components == 1 else "RGB")


def _webp(file: BinaryIO, path: str) -> ImageHeader:
    end = 8 + struct.unpack("<4sI", _exactly(file, 8))[1]
    file.seek(12)
    header: ImageHeader | None = None
    while file.tell() + 8 <= end:
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"VP8X":
            header = _webp_extended(_exactly(file, 10), path)
        elif name in (b"VP8 ", b"VP8L") and header is None:
            return _webp_lossy(_exactly(file, 10)) if name == b"VP8 " else _webp_lossless(_exactly(file, 5))
        elif name == b"EXIF" and header is not None:
            exif = _exactly(file, length)
            header = replace(header, orientation=_orientation(exif.removeprefix(b"Exif\0\0")))
        elif name == b"ICCP" and header is not None:
            header = replace(header, icc_profile=_exactly(file, length) or None)
        file.seek(start + length + length % 2)
    if header is None:
        raise ValueError("no image chunk")
    return header


def _webp_header(width: int, height: int, alpha: bool) -> ImageHeader:
    return ImageHeader("WebP", (height, width), 4 if alpha else 3, 8, alpha, "RGBA" if alpha else "RGB")


def _webp_extended(data: bytes, path: str) -> ImageHeader:
    if data[0] & 0x02:
        raise BadInputError(f"{path}: an animated WebP is not one image; export a frame first")
    width, height = int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    return _webp_header(width, height, bool(data[0] & 0x10))


def _webp_lossy(data: bytes) -> ImageHeader:
    if data[3:6] != b"\x9d\x01\x2a":
        raise ValueError("no VP8 start code")
    width, height = struct.unpack("<HH", data[6:10])
    return _webp_header(width & 0x3FFF, height & 0x3FFF, False)


def _webp_lossless(data: bytes) -> ImageHeader:
    if data[0] != 0x2F:
        raise ValueError("no VP8L signature")
    bits = int.from_bytes(data[1:5], "little")
    return _webp_header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1))


def _orientation(exif: bytes) -> int:
    """Orientation 1..8 of an EXIF block (a little TIFF); 1 when it says nothing usable."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack(f"{order}I", exif[4:8])
    if at + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == 0x0112 and kind == 3:
            (value,) = struct.unpack_from(f"{order}H", exif, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1
