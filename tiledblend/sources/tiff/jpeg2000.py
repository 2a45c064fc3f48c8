"""JPEG 2000 in TIFF: what its codestream says of its components, and RGB of it whoever converts.

Codestream and boxes: ITU-T T.800 annexes A and I. The TIFF's tags (photometric, YCbCrSubSampling) say too little:
Aperio's scanners write 4:2:2 chroma as 33003 beside any photometric, and decoders built on OpenJPEG return RGB when
chroma is subsampled, or a JP2 box says sYCC, and YCbCr as it is when neither holds.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.sources.tiff.colours import ycbcr_to_rgb
from tiledblend.sources.tiff.segments import SegmentError, compare_sides

JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
_APERIO_YCBCR, _APERIO_RGB = 33003, 33005
_HEADER = 1 << 16
_COD, _SOT = 0xFF52, 0xFF90
_SYCC = 18  # EnumCS of a colr box


@dataclass(frozen=True, slots=True)
class Codestream:
    """What a JPEG 2000 segment says of itself. start: of the codestream, behind its boxes. shape: (y, x).

    steps: (y, x) subsampling of each component. bits: of each, negative when it is signed. is_transformed: the decoder
    undoes a multiple component transform, to what the encoder was given. is_sycc: its boxes say YCbCr.
    """

    start: int
    shape: tuple[int, int]
    steps: tuple[tuple[int, int], ...]
    bits: tuple[int, ...]
    is_transformed: bool
    is_sycc: bool

    @property
    def is_subsampled(self) -> bool:
        """True where components are stored smaller than others: luminance and chrominance."""
        return any(step != (1, 1) for step in self.steps)


def codestream(data: bytes) -> Codestream:
    """The main header of a codestream, bare or in boxes. Raises SegmentError where there is none."""
    start = data.find(b"\xff\x4f\xff\x51", 0, _HEADER)
    number = int.from_bytes(data[start + 40 : start + 42], "big") if start >= 0 else 0
    components = data[start + 42 : start + 42 + 3 * number]
    if not number or len(components) < 3 * number:
        raise SegmentError("damaged or truncated JPEG 2000: no codestream header")
    if b"pclr" in data[:start]:
        raise SegmentError("a palette inside JPEG 2000 is not read")
    width, height, left, top = struct.unpack(">IIII", data[start + 8 : start + 24])
    bits = tuple((-1 if size & 0x80 else 1) * ((size & 0x7F) + 1) for size in components[::3])
    steps = tuple(zip(components[2::3], components[1::3], strict=True))
    shape = height - top, width - left
    return Codestream(start, shape, steps, bits, _is_transformed(data, start), _is_sycc(data[:start]))


def _is_transformed(data: bytes, start: int) -> bool:
    """Of the main header's COD marker (A.6.1)."""
    at = start + 2
    while at + 9 <= len(data):
        marker, length = struct.unpack(">HH", data[at : at + 4])
        if marker == _COD:
            return data[at + 8] != 0
        if marker == _SOT or marker < 0xFF00 or length < 2:
            break
        at += 2 + length
    return False


def _is_sycc(boxes: bytes) -> bool:
    """Of the first colour specification box (I.5.3.3), when it enumerates its colour space."""
    at = boxes.find(b"colr")
    return at >= 0 and boxes[at + 4 : at + 5] == b"\x01" and int.from_bytes(boxes[at + 7 : at + 11], "big") == _SYCC


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """Decodes the segments of a page. code: the TIFF's compression. is_ycbcr: its photometric says YCbCr.

    is_colour: a segment holds three colours, and maybe more.
    """

    code: int
    is_ycbcr: bool
    is_colour: bool

    def decode(self, data: bytes, stored: tuple[int, int, int], needed: tuple[int, int]) -> NDArray[Any]:
        """(height, width, samples) of a segment; colours as RGB. As `Codec.decode`."""
        import imagecodecs

        stream = codestream(data)
        if len(stream.steps) != stored[2]:
            said = f"its own header says {len(stream.steps)} samples per pixel, the TIFF says {stored[2]}"
            raise SegmentError(said)
        compare_sides(stream.shape, stored, needed)
        # Without its boxes: a decoder would convert by them what is converted here.
        bare = data[stream.start :] if stream.start else data
        if stream.is_subsampled:
            if not self.is_colour:
                raise SegmentError("subsampled components in an image without colours")
            return _subsampled(bare, stream)
        pixels: NDArray[Any] = imagecodecs.jpeg2k_decode(bare)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.is_colour and self._is_luminance(stream):
            if min(stream.bits[:3]) < 1:
                raise SegmentError("YCbCr of signed components is not read")
            pixels = ycbcr_to_rgb(pixels, stream.bits[0])
        return pixels

    def _is_luminance(self, stream: Codestream) -> bool:
        """True when what is decoded is YCbCr. As OpenSlide has it, Aperio's two codes decide by themselves."""
        if self.code == _APERIO_YCBCR or stream.is_sycc:
            return True
        return self.is_ycbcr and self.code != _APERIO_RGB and not stream.is_transformed


def _subsampled(bare: bytes, stream: Codestream) -> NDArray[np.uint8]:
    """RGB of luminance with smaller chrominance, each value repeated over its pixels."""
    import imagecodecs
    from PIL import Image

    steps, (height, width), count = stream.steps, stream.shape, len(stream.steps)
    step_y, step_x = steps[1]
    alike = steps[2] == steps[1] and all(step == (1, 1) for step in (steps[0], *steps[3:]))
    by_two = count == 3 and (step_y, step_x) in ((1, 2), (2, 2))
    # Pillow takes any steps, and skews the chrominance of sides that are no multiple of them.
    is_whole = height % step_y == 0 and width % step_x == 0 and count <= 4
    if set(stream.bits) != {8} or not alike or not (by_two or is_whole):
        said = ", ".join(f"{y} x {x}" for y, x in steps)
        raise SegmentError(f"{abs(stream.bits[0])}-bit components subsampled by {said} are not read")
    if by_two:
        pixels: NDArray[np.uint8] = imagecodecs.jpeg2k_decode(bare)
        return pixels
    with Image.open(io.BytesIO(bare), formats=["JPEG2000"]) as picture:
        return np.asarray(picture)
