"""Bytes are kept as they were given, and memory goes from tile to tile."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledblend.bytes import spool as spools
from tiledblend.bytes.spool import SLAB_BYTES, Spool


@given(st.lists(st.integers(0, 3 * SLAB_BYTES), max_size=6), st.integers(0, 255))
@settings(max_examples=25, deadline=None)
def test_what_is_kept_is_what_was_given(sizes: list[int], seed: int) -> None:
    spool = Spool()
    given_bytes = [bytes([(seed + number) % 256]) * size for number, size in enumerate(sizes)]
    kept = [spool.keep(data) for data in given_bytes]
    assert [b"".join(spool.parts(pieces)) for pieces in kept] == given_bytes
    every = spool.parts(piece for pieces in kept for piece in pieces)
    assert b"".join(every) == b"".join(given_bytes)
    # All that was kept in order is as few parts as there are slabs; out of order it is still right.
    assert [len(part) for part in every[:-1]] == [SLAB_BYTES] * (len(every) - 1)
    backwards = spool.parts(piece for pieces in reversed(kept) for piece in pieces)
    assert b"".join(backwards) == b"".join(reversed(given_bytes))
    spool.release()


def test_slabs_go_to_the_next_tile_only_when_they_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "_free", [])
    made = list[int]()
    take = mmap.mmap

    def counting(number: int, size: int, **options: Any) -> mmap.mmap:
        made.append(size)
        return take(number, size, **options)

    monkeypatch.setattr(spools.mmap, "mmap", counting)
    first, second = Spool(), Spool()
    of_first = first.keep(b"a" * (2 * SLAB_BYTES))
    of_second = second.keep(b"b" * SLAB_BYTES)
    assert b"".join(first.parts(of_first)) == b"a" * (2 * SLAB_BYTES)
    assert b"".join(second.parts(of_second)) == b"b" * SLAB_BYTES
    assert len(made) == 3
    first.release()
    third = Spool()
    assert b"".join(third.parts(third.keep(b"c" * (2 * SLAB_BYTES)))) == b"c" * (2 * SLAB_BYTES)
    assert b"".join(second.parts(of_second)) == b"b" * SLAB_BYTES
    assert len(made) == 3
    third.keep(b"d")
    assert len(made) == 4


def test_no_more_slabs_are_kept_than_the_heap_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "_free", [])
    monkeypatch.setattr(spools, "KEPT_BYTES", 2 * SLAB_BYTES)
    spool = Spool()
    spool.keep(b"a" * (5 * SLAB_BYTES))
    spool.release()
    assert len(spools._free) == 2


def test_no_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(spools, "_free", [])
    monkeypatch.setattr(spools.mmap, "mmap", full)
    with pytest.raises(MemoryError):
        Spool().keep(b"a")
