"""Byte ranges of one object: joined into few requests, and requests under way for what will be read soon."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

EXPECTED_BYTES = 1 << 26
MERGE_GAP_BYTES = 1 << 18
MERGED_BYTES = 1 << 24


class Expected:
    """Requests under way for bytes that will be read once, until they were. Thread-safe; at most `EXPECTED_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: OrderedDict[int, tuple[int, Future[bytes | None], int]] = OrderedDict()
        self._bytes = 0

    def put(self, start: int, size: int, answer: Future[bytes | None], uses: int) -> None:
        """The answer that will be read `uses` times. None as its result: there is nothing to be had."""
        with self._lock:
            self._drop(start)
            self._spans[start] = size, answer, uses
            self._bytes += size
            while self._bytes > EXPECTED_BYTES and len(self._spans) > 1:
                self._drop(next(iter(self._spans)))

    def take(self, offset: int, size: int) -> bytes | None:
        """The bytes, waited for if they are still under way; None if they were not expected."""
        with self._lock:
            start = self._start_of(offset, size)
            if start is None:
                return None
            length, answer, uses = self._spans[start]
            if uses > 1:
                self._spans[start] = length, answer, uses - 1
            else:
                self._drop(start)
        data = answer.result()
        return None if data is None else data[offset - start : offset - start + size]

    @property
    def size(self) -> int:
        """Bytes that are expected."""
        with self._lock:
            return self._bytes

    def holds(self, offset: int, size: int) -> bool:
        """True if the bytes are expected."""
        with self._lock:
            return self._start_of(offset, size) is not None

    def _start_of(self, offset: int, size: int) -> int | None:
        return next((s for s, (n, *_) in self._spans.items() if s <= offset and offset + size <= s + n), None)

    def clear(self) -> None:
        with self._lock:
            self._spans.clear()
            self._bytes = 0

    def _drop(self, start: int) -> None:
        if start in self._spans:
            self._bytes -= self._spans.pop(start)[0]


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (offset, size) requests that cover all ranges, in order of offset.

    Ranges join over gaps up to `MERGE_GAP_BYTES` (a request costs more than those bytes), up to `MERGED_BYTES`.

    >>> merge_ranges([(1000, 50), (0, 100), (50_000_000, 10)])
    [(0, 1050), (50000000, 10)]
    """
    merged: list[tuple[int, int]] = []
    for offset, size in sorted(ranges):
        if merged:
            start, length = merged[-1]
            end = max(start + length, offset + size)
            inside = offset + size <= start + length
            if inside or (offset - start - length <= MERGE_GAP_BYTES and end - start <= MERGED_BYTES):
                merged[-1] = start, end - start
                continue
        merged.append((offset, size))
    return merged


def uses_of(merged: Sequence[tuple[int, int]], ranges: Iterable[tuple[int, int]]) -> Counter[int]:
    """How many of the ranges each merged request (by its number) is for."""
    starts = [start for start, _ in merged]
    return Counter(bisect_right(starts, offset) - 1 for offset, _ in ranges)


def cut(stored: Sequence[bytes], starts: Sequence[int], offset: int, size: int) -> bytes:
    """One range's bytes of the merged requests' answers. starts: where those begin, in order."""
    index = bisect_right(starts, offset) - 1
    # An empty or shorter range at the same start may have been merged into an earlier request.
    while offset + size > starts[index] + len(stored[index]):
        index -= 1
    at = offset - starts[index]
    return stored[index][at : at + size]
