"""A file in NDPI's layout: no sample of Hamamatsu's is at hand that could be in the repository."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from itertools import accumulate, pairwise
from typing import Any

from PIL import Image


def restart_jpeg(pixels: Any) -> bytes:
    """One JPEG with a restart marker after every row of 8-pixel blocks, as Hamamatsu writes its levels."""
    out = BytesIO()
    blocks = -(-pixels.shape[1] // 8)
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0, restart_marker_blocks=blocks)
    return out.getvalue()


def restart_strips(jpeg: bytes) -> tuple[bytes, list[bytes]]:
    """A JPEG's header, and each restart interval with the marker that follows it."""
    scan = jpeg.index(b"\xff\xda")
    first = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
    marks = [at for at in range(first, len(jpeg) - 1) if jpeg[at] == 0xFF and 0xD0 <= jpeg[at + 1] <= 0xD7]
    starts = [first, *(at + 2 for at in marks), len(jpeg)]
    return jpeg[:first], [jpeg[start:end] for start, end in pairwise(starts)]


def ndpi_bytes(
    pixels: Any,
    change: Callable[[list[bytes]], None] = lambda strips: None,
    *,
    said: tuple[int, int] | None = None,
    is_cut: bool = True,
) -> bytes:
    """Layout as in tifffile's NDPI_LE: 64-bit next-directory offset, then the high halves of the values.

    change: what becomes of the strips before they are written. said: (y, x) of the tags, instead of the pixels'.
    is_cut: the strips are listed, as they are not of small levels.
    """
    header, strips = restart_strips(restart_jpeg(pixels))
    change(strips)
    starts = list(accumulate(map(len, strips[:-1]), initial=len(header)))
    jpeg = header + b"".join(strips)
    height, width = said or pixels.shape[:2]
    at = 16
    table = at + len(jpeg)
    bits, unit = table + 4 * len(starts), 3
    resolution = bits + 6
    make = resolution + 8
    directory = make + 10
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 7), (262, 3, 1, 6),
        (271, 2, 10, make), (273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, height),
        (279, 4, 1, len(jpeg)), (282, 5, 1, resolution), (283, 5, 1, resolution), (296, 3, 1, unit),
        (65420, 4, 1, 1), (65421, 11, 1, struct.unpack("<I", struct.pack("<f", 20))[0]),
        *([(65426, 4, len(starts), table)] if is_cut else []),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    tail = struct.pack("<Q", 0) + b"\0" * (4 * len(tags))
    head = struct.pack("<2sHQ", b"II", 42, directory).ljust(at, b"\0")
    return b"".join(
        [head, jpeg, struct.pack(f"<{len(starts)}I", *starts), struct.pack("<3H", 8, 8, 8),
         struct.pack("<2I", 45000, 1), b"Hamamatsu\0", struct.pack("<H", len(tags)), entries, tail]
    )  # fmt: skip
