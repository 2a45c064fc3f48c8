"""Receipts in arrays: the same as in a dictionary, and as large at the end as at the start."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledblend.containers import receipts as receipt_tables
from tiledblend.containers.omezarr.layout import ArrayLayout
from tiledblend.containers.omezarr.spec import OutputSpec
from tiledblend.containers.receipts import OBJECT_BYTES, Receipt, Receipts, ReceiptTable
from tiledblend.errors import ResourceError
from tiledblend.geometry import Tile


@st.composite
def layouts(draw: st.DrawFn) -> ArrayLayout:
    spec = OutputSpec(
        16,
        16 << draw(st.integers(0, 3)),
        levels=draw(st.integers(1, 5)),
        ome_zarr=draw(st.sampled_from(["0.5", "0.4"])),
    )
    shape = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    is_rgb = draw(st.booleans())
    return ArrayLayout(spec.grid(shape), 3 if is_rgb else draw(st.integers(1, 3)), "uint8", is_rgb, spec)


def tiles_of(layout: ArrayLayout) -> list[Tile]:
    return [tile for stage in range(layout.grid.stages) for tile in layout.grid.tiles(stage)]


def receipts_of(layout: ArrayLayout, tile: Tile, seed: int) -> Receipts:
    rng = random.Random(seed)
    return tuple(Receipt(key, rng.randrange(2**40), rng.randbytes(32).hex()) for key in layout.tile_objects(tile))


@given(layouts())
@settings(max_examples=60)
def test_objects_are_numbered_as_planned(layout: ArrayLayout) -> None:
    keys = list(layout.planned_objects())
    assert [layout.object_number(key) for key in keys] == list(range(len(keys))) == list(range(layout.object_count()))
    pairs = (zip(layout.tile_objects(tile), layout.tile_numbers(tile), strict=True) for tile in tiles_of(layout))
    numbered = [pair for of_tile in pairs for pair in of_tile]
    assert sorted(numbered) == sorted((key, number) for number, key in enumerate(keys))
    padded = keys[0].replace("0", "00", 1)
    for strange in ("", "0", "0/c/0/0", f"{keys[0]}/0", padded, "9/c/0/0/0", "0/c/0/0/10", "0/c/0/0/-1"):
        assert layout.object_number(strange) is None


@given(layouts(), st.data())
@settings(max_examples=60)
def test_a_table_is_a_dictionary(layout: ArrayLayout, data: st.DataObject) -> None:
    table, model = ReceiptTable(layout), dict[Tile, Receipts]()
    tiles = tiles_of(layout)
    for tile, seed in data.draw(st.lists(st.tuples(st.sampled_from(tiles), st.integers(0, 9)), max_size=20)):
        if seed == 0:
            assert table.pop(tile, None) == model.pop(tile, None)
        else:
            table[tile] = model[tile] = receipts_of(layout, tile, seed)
    assert table == model
    assert (list(table), len(table)) == ([tile for tile in tiles if tile in model], len(model))
    every = {receipt.key: receipt for of_tile in model.values() for receipt in of_tile}
    keys = list(layout.planned_objects())
    assert list(table.planned()) == [every[key] for key in keys if key in every]
    assert [table.of_key(key) for key in keys] == [every.get(key) for key in keys]
    assert table.stored_bytes == sum(receipt.size for receipt in every.values())


def test_only_planned_tiles_are_known() -> None:
    spec = OutputSpec(16, 32, levels=3)
    table = ReceiptTable(ArrayLayout(spec.grid((100, 100)), 3, "uint8", True, spec))
    for strange in (Tile(0, 4, 0), Tile(0, 0, -1), Tile(2, 0, 0), Tile(-1, 0, 0), "tile"):
        assert strange not in table
    with pytest.raises(KeyError):
        table[Tile(0, 4, 0)]
    with pytest.raises(KeyError):
        del table[Tile(0, 0, 0)]
    with pytest.raises(ValueError, match="other objects"):
        table[Tile(0, 0, 0)] = ()


def test_a_full_table_is_as_large_as_an_empty_one() -> None:
    spec = OutputSpec(16, 32, levels=4)
    layout = ArrayLayout(spec.grid((1600, 1600)), 3, "uint8", True, spec)
    tiles, table = tiles_of(layout), ReceiptTable(layout)

    def fill() -> int:
        for tile in tiles:
            table[tile] = receipts_of(layout, tile, 1)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = fill()  # Python keeps some freed objects for later
        for tile in tiles:
            del table[tile]
        second = fill()
    finally:
        tracemalloc.stop()
    assert len(table) == 50 * 50 + 13 * 13
    assert first < 200_000
    assert abs(second - first) < 5_000
    assert table.sizes.nbytes + table.digests.nbytes == layout.object_count() * OBJECT_BYTES


def test_a_plan_without_memory_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(receipt_tables.np, "full", full)
    spec = OutputSpec(16, 32)
    with pytest.raises(ResourceError, match=r"no memory for the receipts of \d+ objects"):
        ReceiptTable(ArrayLayout(spec.grid((100, 100)), 3, "uint8", True, spec))
