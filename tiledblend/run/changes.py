"""What differs between two results, tile by tile and as a whole, and why: told by their manifests, no pixel is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiledblend.compose.keys import TileKey
from tiledblend.containers.ledger import differences
from tiledblend.containers.older import Older, open_older
from tiledblend.errors import BadInputError
from tiledblend.geometry import Region, Tile

_OF_MASKS = ("mask", "mask_values", "threshold", "mask_frame", "invert", "grow")
_OF_CODE = ("algorithm", "libraries", "machine")


@dataclass(frozen=True)
class TileChange:
    """A tile of the first stage, with its pixels of level 0, of which something differs.

    why: "version" (code, libraries, how it is stored), "parameter" (mode, canvas, how layers are placed and weighed),
    "image", "mask"; () where a result does not tell. same_bytes: what is stored is the same all the same.
    """

    tile: Tile
    region: Region
    why: tuple[str, ...]
    same_bytes: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        at = self.region
        return {
            "tile": [self.tile.row, self.tile.column],
            "region": [at.y0, at.x0, at.y1, at.x1],
            "why": list(self.why),
            "same_bytes": self.same_bytes,
        }


@dataclass(frozen=True)
class Difference:
    """Of two results on one canvas. shape: (y, x). tiles: of the first stage, in all. changed: those that differ. said:
    what differs between their jobs, as lines."""

    older: str
    newer: str
    shape: tuple[int, int]
    tiles: int
    changed: tuple[TileChange, ...]
    said: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the canvas's pixels that lie in tiles that differ, 0 to 1."""
        return sum(change.region.size for change in self.changed) / (self.shape[0] * self.shape[1])

    @property
    def why(self) -> dict[str, int]:
        """Tiles by reason; a tile may have several."""
        return dict(Counter(reason for change in self.changed for reason in change.why or ("unknown",)))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "older": self.older,
            "newer": self.newer,
            "shape": list(self.shape),
            "tiles": self.tiles,
            "changed_tiles": len(self.changed),
            "share": self.share,
            "why": self.why,
            "changes": list(self.said),
            "changed": [change.as_dict() for change in self.changed],
        }


def compare(older: str | os.PathLike[str], newer: str | os.PathLike[str]) -> Difference:
    """What differs between two finished results, by the keys and digests of their manifests.

    Raises BadInputError where one is none, or they are cut into other tiles.
    """
    before, now = open_older(older), open_older(newer)
    if different := differences(_cut(before), _cut(now)):
        raise BadInputError(
            f"{now.uri} and {before.uri} are not cut alike, so their tiles do not compare: {different[0]}"
        )
    possible = _possible(before.job, now.job)
    grid = now.layout.grid
    changed = tuple(change for tile in grid.tiles() if (change := _change(before, now, tile, possible)) is not None)
    rows, columns = grid.tile_counts()
    said = tuple(changed_lines(before.job, now.job))
    return Difference(before.uri, now.uri, grid.shape, rows * columns, changed, said)


def _cut(result: Older) -> dict[str, Any]:
    grid, layout = result.layout.grid, result.layout
    kind = type(layout).__name__
    return {"canvas": list(grid.shape), "chunk": grid.chunk, "shard": grid.shard, "levels": grid.levels, "kind": kind}


def _change(before: Older, now: Older, tile: Tile, possible: set[str]) -> TileChange | None:
    was, key = before.key_of(tile), now.key_of(tile)
    same_bytes = before.receipts.get(tile) == now.receipts.get(tile)
    if (was == key and was) or (not (was and key) and same_bytes):
        return None
    why: tuple[str, ...] = ()
    if was and key:
        why = TileKey.of_stored(key).differing(TileKey.of_stored(was))
        why = tuple(reason for reason in why if reason in possible) or why
    return TileChange(tile, now.layout.grid.tile_region(tile), why, same_bytes)


def _possible(before: Any, now: Any) -> set[str]:
    """Which reasons there can be, by what differs between two jobs as a whole.

    A mask that comes to reach into a tile brings its layer's image there: the tile's key says that the images differ,
    but what was changed is the mask.
    """
    was, are = _parts(before), _parts(now)
    if was is None or are is None:
        return {*TileKey._fields}
    return {name for name in TileKey._fields if was[name] != are[name]}


def _parts(job: Any) -> dict[str, Any] | None:
    """A fingerprint by the parts of a tile's key; None where it does not say."""
    try:
        inputs, layers = job["inputs"], job["layers"]
        masks = [[*(layer.get(name) for name in _OF_MASKS[1:]), *_read(layer["mask"], inputs)] for layer in layers]
        images = [_read(layer["image"], inputs) for layer in layers]
        others = [{key: value for key, value in layer.items() if key not in (*_OF_MASKS, "image")} for layer in layers]
        whole = {key: value for key, value in job.items() if key not in ("inputs", "layers", *_OF_CODE)}
        code = {key: job[key] for key in _OF_CODE}
    except (KeyError, TypeError, IndexError):
        return None
    return {"version": code, "parameter": [whole, others], "image": images, "mask": masks}


def _read(selection: Any, inputs: list[Any]) -> list[Any]:
    """What is read of an input, and its identity."""
    if not isinstance(selection, dict):
        return [selection]
    return [
        {key: value for key, value in selection.items() if key not in ("input", "path")},
        inputs[selection["input"]],
    ]


def changed_lines(before: Any, now: Any) -> list[str]:
    """What differs between the fingerprints of two results, as lines for people; an input by its name.

    >>> changed_lines({"layers": [{"opacity": 1.0}]}, {"layers": [{"opacity": 0.5}]})
    ['layers[0].opacity was 1.0, is now 0.5']
    """
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ["the older result does not say from what it was made"]
    counts = [len(job.get("layers", ())) for job in (before, now)]
    was, are = ({key: value for key, value in job.items() if key != "inputs"} for job in (before, now))
    lines = []
    if counts[0] != counts[1]:
        lines.append(f"layers were {counts[0]}, are now {counts[1]}")
        was, are = ({key: value for key, value in job.items() if key != "layers"} for job in (was, are))
    return [*lines, *_changed_inputs(before.get("inputs", []), now.get("inputs", [])), *differences(was, are)]


def _changed_inputs(before: list[Any], now: list[Any]) -> Iterator[str]:
    known = [_without_name(entry) for entry in before]
    for number, entry in enumerate(now):
        if _without_name(entry) not in known:
            uri = str(entry.get("uri", "")) if isinstance(entry, dict) else ""
            yield f"input {number} ({uri.rstrip('/').rpartition('/')[2] or 'by its content'}) is another one"


def _without_name(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "uri"} if isinstance(entry, dict) else entry
