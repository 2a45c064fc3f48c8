"""How much a compressed file of outlines may grow when it is read."""

from __future__ import annotations

MAX_FILE_BYTES = 4 << 30
_AT_LEAST = 64 << 20
_TIMES = 100


def most_bytes(stored: int) -> int:
    """Of what `stored` compressed bytes hold.

    Outlines shrink to a tenth or so: what grows a hundredfold was made to fill the memory.

    >>> most_bytes(1000), most_bytes(10 << 20)
    (67108864, 1048576000)
    """
    return min(max(_AT_LEAST, _TIMES * stored), MAX_FILE_BYTES)
