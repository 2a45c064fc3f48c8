"""What a kept tile would come to: how many tiles pass, what is decoded and encoded. Masks are read, no image is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tiledblend.compose.keeping import NOBODY, KeepingLayout, KeptTile, Pixels, own_layers, owners_of
from tiledblend.compose.render import TileRenderer
from tiledblend.compose.scene import Scene
from tiledblend.geometry import Tile


@dataclass
class Foreseen:
    """What becomes of one level's tiles; all planes of a place count once.

    copied: bytes, by what its image's tiles have on average. decoded, encoded: pixels of that level.
    """

    tiles: int = 0
    passed: int = 0
    copied: float = 0.0
    decoded: int = 0
    encoded: int = 0


def foresee(scene: Scene, layout: KeepingLayout, tile: Tile) -> dict[int, Foreseen]:
    """Of a tile of the first stage, by the grid's level: by masks and places alone, no image is read."""
    renderer = TileRenderer(scene, layout.grid.tile_region(tile))
    layers = own_layers(scene, layout)
    work = KeptTile(scene, layout, tile, _Nowhere(), layers, owners_of(renderer, layout, tile, layers))
    found = {}
    for level in work.levels:
        passing = work.own[level] & work.in_file(level)
        for index in range(len(layers)):
            layer = layers[index]
            if layer is None or level not in layer.tiles:
                passing &= work.owners[level] != index
        work.passed[level] = passing
        if not layout.own_levels:
            work.own[level] = passing.copy()
    made = work.plan_needs()
    for level in work.levels:
        if level not in layout.stored:
            continue
        area = [work.region(level, row, column).size for row, column in np.ndindex(made[level].shape)]
        sizes = np.reshape(area, made[level].shape)
        needed = work.needed[level]
        decoded = sizes * needed * work.own[level]
        if level == work.first:
            decoded = decoded + sizes * (needed & ~work.own[level])
        passed = work.passed[level]
        copied = sum(
            float(layer.tiles[level].mean_bytes) * int((passed & (work.owners[level] == index)).sum())
            for index, layer in enumerate(layers)
            if layer is not None and level in layer.tiles
        )
        count = int(work.in_file(level).sum())
        found[level] = Foreseen(count, int(passed.sum()), copied, int(decoded.sum()), int((sizes * made[level]).sum()))
    return found


class _Nowhere:
    """A sink for what is only foreseen."""

    def add_chunk_row(self, level: int, row_in_tile: int, pixels: Pixels) -> None:
        raise AssertionError

    def add_chunk(self, level: int, chunk_row: int, chunk_col: int, pixels: Pixels) -> None:
        raise AssertionError

    def add_encoded(
        self, level: int, chunk_row: int, chunk_col: int, group: int, data: bytes, *, has_checksum: bool = False
    ) -> None:
        raise AssertionError

    def keep_pixels(self, pixels: Pixels | None, owner: int = NOBODY) -> None:
        raise AssertionError
