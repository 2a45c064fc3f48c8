"""A scene as a lazy dask array: masks feathered by `map_overlap`, the canvas blended chunkwise."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from tiledblend.compose.arrays import feather_units, wide_enough
from tiledblend.compose.modes.mode import Laid
from tiledblend.compose.reader import LayerReader
from tiledblend.compose.scene import Scene, decide
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import fingerprint
from tiledblend.errors import UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Contribution

CHUNK = 2048


def to_dask(composite: Composite, *, chunk: int = CHUNK) -> da.Array:
    """The composite as a lazy dask array (c, y, x) in its dtype: feather by `map_overlap`, blend chunkwise.

    chunk: side of the blocks in pixels. The same bits as `tiledblend.write` stores. No pixel is read yet, except masks
    of integers whose `mask_values` are "auto". The keys of the graph name the inputs as they are now: a cluster that
    still has an older file's blocks computes new ones. Raises UsageError, BadInputError.

    >>> import tiledblend as tb
    >>> image = tb.from_array(np.full((30, 40, 3), 7, np.uint8), axes="yxc")
    >>> lazy = tb.to_dask(tb.Composite([tb.Layer(image)]))
    >>> lazy.shape, int(lazy.max().compute())
    ((3, 30, 40), 7)
    """
    if not isinstance(composite, Composite):
        raise UsageError(f"{composite!r} must be a Composite; use Composite([Layer(source), ...])")
    return to_dask_of(decide(composite), chunk=chunk)


def to_dask_of(scene: Scene, *, chunk: int = CHUNK) -> da.Array:
    """As `to_dask`, of a scene."""
    if type(chunk) is not int or chunk < 1:
        raise UsageError(f"chunk {chunk!r} must be a whole number of pixels, 1 or more")
    canvas = da.core.normalize_chunks((chunk, chunk), scene.shape)
    halo = scene.mode.halo_px
    wide = tuple(wide_enough(c, min(halo, n - 1)) for c, n in zip(canvas, scene.shape, strict=True))
    token = tokenize(fingerprint(scene.composite), chunk)
    masks = [
        mask
        for number, reader in enumerate(scene.readers)
        if (mask := _canvas_mask_weight(reader, scene.shape, wide, chunk, f"{token}-{number}")) is not None
    ]
    if halo:
        depth = {axis: min(halo, n - 1) for axis, n in enumerate(scene.shape)}
        masks = [da.overlap.overlap(mask, depth, boundary="none", allow_rechunk=False) for mask in masks]
    block = _CanvasBlock(scene)
    starts = [np.concatenate([[0], np.cumsum(c)]) for c in wide]

    def compute(*weights: NDArray[np.float32], block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
        assert block_id is not None
        y, x = int(starts[0][block_id[-2]]), int(starts[1][block_id[-1]])
        y1, x1 = int(starts[0][block_id[-2] + 1]), int(starts[1][block_id[-1] + 1])
        return block(Region(y, x, y1, x1), weights)

    chunks = ((scene.channels,), *wide)
    lifted = [mask[None] for mask in masks]
    meta = np.empty((0, 0, 0), scene.dtype)
    result: da.Array = da.map_blocks(
        compute, *lifted, name=f"composite-{token}", chunks=chunks, dtype=scene.dtype, meta=meta
    )
    return result if wide == canvas else result.rechunk((scene.channels, *canvas))


def _canvas_mask_weight(
    reader: LayerReader, canvas: tuple[int, int], chunks: Any, chunk: int, token: str
) -> da.Array | None:
    """The layer's feathered mask laid on the canvas: float32 (y, x), zero where the mask does not reach.

    token: of what decides the mask's pixels.
    """
    if not reader.has_mask:
        return None
    shape = reader.mask_shape
    mask_chunks = da.core.normalize_chunks((chunk, chunk), shape)
    starts = [np.concatenate([[0], np.cumsum(c)]) for c in mask_chunks]

    def read(block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
        assert block_id is not None
        y, x = block_id
        return reader.mask_units(
            Region(int(starts[0][y]), int(starts[1][x]), int(starts[0][y + 1]), int(starts[1][x + 1]))
        )

    dtype = reader.units_dtype
    units = da.map_blocks(
        read, name=f"mask-units-{token}", chunks=mask_chunks, dtype=dtype, meta=np.empty((0, 0), dtype)
    )
    weight = feather_units(units, reader.kernel, reader.layer.side)
    frame = reader.mask_frame
    y0, x0 = max(0, -frame.y0), max(0, -frame.x0)
    seen = weight[
        y0 : y0 + min(frame.y1, canvas[0]) - max(frame.y0, 0), x0 : x0 + min(frame.x1, canvas[1]) - max(frame.x0, 0)
    ]
    top, left = max(0, frame.y0), max(0, frame.x0)
    padding = ((top, canvas[0] - top - seen.shape[0]), (left, canvas[1] - left - seen.shape[1]))
    if any(any(pair) for pair in padding):
        seen = da.pad(seen, padding)
    laid: da.Array = seen.rechunk(chunks)
    return laid


class _CanvasBlock:
    """Blends one block of the canvas from feathered mask weights of its reach; reads the images itself."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __call__(self, region: Region, weights: tuple[NDArray[np.float32], ...]) -> NDArray[Any]:
        masks, scene = iter(weights), self.scene
        reach = scene.reach(region)
        layers = {
            reader.index: self._layer(reader, reach, next(masks)[0] if reader.has_mask else None)
            for reader in scene.readers
        }
        done = scene.mode.combine(Laid(region, reach, layers, scene.ground))
        return np.ascontiguousarray(np.moveaxis(done.pixels, 2, 0))

    def _layer(self, reader: LayerReader, region: Region, mask: NDArray[np.float32] | None) -> Contribution:
        part = region & reader.visible
        at = part.shift(-region.y0, -region.x0).slices
        colour = np.zeros((*region.shape, reader.layer.colours), reader.layer.image.dtype)
        weight, cover = np.zeros(region.shape, np.float32), np.zeros(region.shape, np.float32)
        if part.is_empty:
            return Contribution(colour, weight, None, cover)
        pixels, alpha = reader.read(part)
        if pixels.dtype != colour.dtype:
            colour = colour.astype(pixels.dtype)
        colour[at] = pixels
        border = reader.border.weight(part)
        if not reader.multiplies_alpha:
            alpha = None  # it counts once, as the mask
        inner = None if mask is None else mask[at]
        opacity = np.full(part.shape, reader.layer.opacity, np.float32)
        cover[at] = _product(opacity, inner, border)
        weight[at] = _product(opacity, alpha, inner, border)
        whole_alpha = None
        if alpha is not None:
            whole_alpha = np.zeros(region.shape, np.float32)
            whole_alpha[at] = alpha
        return Contribution(colour, weight, whole_alpha, cover)


def _product(first: NDArray[np.float32], *factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    for factor in factors:
        if factor is not None:
            first = first * factor
    return first


def to_array(composite: Composite) -> NDArray[Any]:
    """The whole composite in memory: (y, x, c) in its dtype.

    >>> import tiledblend as tb
    >>> image = tb.from_array(np.full((30, 40, 3), 7, np.uint8), axes="yxc")
    >>> tb.to_array(tb.Composite([tb.Layer(image)])).shape
    (30, 40, 3)
    """
    return to_array_of(decide(composite))


def to_array_of(scene: Scene) -> NDArray[Any]:
    """As `to_array`, of a scene."""
    return np.moveaxis(to_dask_of(scene).compute(scheduler="threads"), 0, 2)
