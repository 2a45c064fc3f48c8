"""NDPI strips in another one's place, found by the numbers of their restart markers.

A level of an NDPI is one JPEG that is read in the pieces between its restart markers. These count modulo 8 from 0
(ITU-T T.81, B.2.1), so that strip i ends in RST(i mod 8), the last in EOI. Each piece decodes without the others: two
that were exchanged would give each other's pixels without an error. Other readers want any restart marker there
(OpenSlide), so a file whose writer did not count is read all the same: a marker out of order is damage only where the
others keep it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tiledblend.bytes.ranges import ByteReader
from tiledblend.sources.tiff.layout import PageTable

_RST0, _RST7, _EOI = 0xD0, 0xD7, 0xD9
_NEAR, _SPREAD = 8, 48
_FEWEST = 4
"""Strips in order without which nothing is said of the others."""


class RestartOrder:
    """The restart markers of one level's strips."""

    def __init__(self, reader: ByteReader, table: PageTable) -> None:
        self._reader = reader
        self._table = table
        self._last = len(table.offsets) - 1
        self._is_counted: bool | None = None

    def problem(self, data: bytes, index: int) -> str | None:
        """What is wrong with the end of strip `index`, if another one's bytes are in its place."""
        found = data[-1] if len(data) >= 2 and data[-2] == 0xFF else 0
        if index >= self._last or not (_RST0 <= found <= _RST7 or found == _EOI) or _is_in_order(data, index):
            return None
        if not self._others_count(index):
            return None
        name = f"restart marker {found - _RST0}" if found != _EOI else "the end marker"
        return f"ends in {name}, not in restart marker {index % 8} as its place asks for: strips were exchanged"

    def _others_count(self, index: int) -> bool:
        """True where the strips all over the level and those beside this one keep the order, the odd one excepted."""
        if self._is_counted is None:
            step = max(1, self._last // _SPREAD)
            self._is_counted = self._keep_order(range(step // 2, self._last, step))
        beside = range(max(0, index - _NEAR), min(self._last, index + _NEAR + 1))
        return self._is_counted and self._keep_order(other for other in beside if other != index)

    def _keep_order(self, strips: Iterable[int]) -> bool:
        ranges = []
        for index in strips:
            end = int(self._table.offsets[index]) + int(self._table.counts[index])
            ranges.append((index, end - 2 if 2 <= end <= self._reader.size else 0))
        ends = self._reader.pread_many([(at, 2) for _, at in ranges])
        odd = sum(not _is_in_order(end, index) for (index, _), end in zip(ranges, ends, strict=True))
        return len(ranges) - odd >= _FEWEST and odd <= max(2, len(ranges) // 8)


def _is_in_order(data: bytes, index: int) -> bool:
    return data[-2:] == bytes((0xFF, _RST0 + index % 8))
