"""JPEG decoded strictly: what a lenient decoder would fill with grey is an error.

libjpeg only warns of a damaged scan (ITU-T T.81, annex F), and most of its users drop the warning. simplejpeg stops
at it. Pixels are those of every decoder built on libjpeg-turbo: accurate integer DCT, smooth chroma upsampling.
"""

from __future__ import annotations

from typing import Any

_EOI = b"\xff\xd9"
# Each scan of a progressive picture goes over all of it: few bytes could cost minutes.
MAX_SCANS = 100


def decode_jpeg(stream: bytes, components: int) -> Any:
    """uint8 (height, width, components) of a complete 8-bit stream of 1 (grey) or 3 components (as RGB).

    Raises ValueError when any of its data is damaged. The size is not checked: it is the caller's.
    """
    import simplejpeg

    if stream.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")
    colours = "RGB" if components == 3 else "GRAY"
    try:
        return simplejpeg.decode_jpeg(stream, colours)
    except ValueError as error:
        unpadded = stream[: stream.rfind(_EOI)].rstrip(b"\0") + _EOI
        if "extraneous" not in str(error) or len(unpadded) >= len(stream):
            raise
    # Zeros before the end marker are some writer's padding, and no damage.
    return simplejpeg.decode_jpeg(unpadded, colours)
