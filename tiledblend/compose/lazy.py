"""The composable face: feathering and blending of dask (or numpy) arrays, and a composite as a lazy dask array.

`feather` is one `map_overlap`, `blend` one chunkwise operation, on the same kernels as the writer.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from tiledblend.compose.reading import LayerReader, MaskRule, apply_mask_rule, decide_rules, layer_readers, units_dtype
from tiledblend.describe.composite import Composite
from tiledblend.describe.fingerprint import fingerprint
from tiledblend.describe.layers import Labels, MaskValues, checked_mask_values
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Contribution, Mode, blend_tile
from tiledblend.kernels.feather import FeatherKernel, feather_tile, inside_only
from tiledblend.sources.arrays import check_dtype
from tiledblend.sources.base import SUPPORTED_DTYPES

Array = Any
CHUNK = 2048


def feather(
    mask: Array,
    sigma: float | tuple[float, float] = 0.0,
    *,
    ksize: int | None = None,
    values: MaskValues = "auto",
    side: Literal["both", "inside"] = "both",
) -> Array:
    """Feathered weight of a mask: float32 in [0, 1], shape (y, x), lazy for dask and at once for numpy arrays.

    mask: (y, x); bool, integers or floats in [0, 1]. sigma in pixels, one or (y, x), or OpenCV's `ksize`. values: as in
    `Layer.mask_values`; "auto" computes the maximum of an integer mask. side: "inside" is max(0, 2 G - 1).
    Raises UsageError for wrong parameters, BadInputError for a mask that cannot be used: of another dtype, masked, of
    unknown shape, with NaN or values out of range (of a dask array when it is computed).

    >>> feather(np.array([[False, True, True]]), sigma=0).tolist()
    [[0.0, 1.0, 1.0]]
    """
    _require_arrays(mask=mask)
    if mask.ndim != 2:
        raise UsageError(f"mask has shape {mask.shape}; a mask is (y, x)")
    if side not in ("both", "inside"):
        raise UsageError(f"side {side!r} must be both or inside")
    check_dtype(mask.dtype, mask=True, source="mask array")
    kernel, values = _kernel(sigma, ksize), checked_mask_values(values)
    if mask.size == 0:
        return mask.astype(np.float32)
    if isinstance(mask, np.ndarray):
        return _feather_whole(_units(mask, _array_rule(mask, values), kernel), kernel, side)
    mask = _without_empty_chunks(mask)
    rule = _array_rule(mask, values)
    dtype = units_dtype(rule, mask.dtype, keep_float=kernel.is_identity)
    units = da.map_blocks(_units, mask, rule=rule, kernel=kernel, dtype=dtype, meta=np.empty((0, 0), dtype))
    return feather_units(units, kernel, side)


def _require_arrays(**arrays: Any) -> None:
    """Raise UsageError naming an argument that is no numpy or dask array, BadInputError for one that cannot be used."""
    for name, array in arrays.items():
        if not isinstance(array, (np.ndarray, da.Array)):
            raise UsageError(f"{name} is a {type(array).__name__}; a numpy or dask array is needed")
        if np.ma.isMaskedArray(getattr(array, "_meta", array)):
            raise BadInputError(f"{name} is a masked array; say what its hidden values are with filled(0)")
        if any(math.isnan(size) for size in array.shape):
            raise BadInputError(
                f"{name} has shape {array.shape}, not known yet; call compute_chunk_sizes() on it first"
            )


def _without_empty_chunks(array: da.Array) -> da.Array:
    """What a selection may leave; dask itself fails on some."""
    return array.rechunk(tuple(_wide_enough(c, 1) for c in array.chunks))


def _kernel(sigma: Any, ksize: Any) -> FeatherKernel:
    try:
        sigmas = float(sigma) if np.ndim(sigma) == 0 else tuple(float(s) for s in sigma)
        size = None if ksize is None else operator.index(ksize)
    except (TypeError, ValueError):
        raise UsageError(f"sigma {sigma!r}, ksize {ksize!r}: must be pixels, sigma one number or (y, x)") from None
    if isinstance(sigmas, tuple) and len(sigmas) != 2:
        raise UsageError(f"sigma {sigma!r} must be one number or two, (y, x)")
    return FeatherKernel(sigmas, size)


def _array_rule(mask: Array, values: MaskValues) -> MaskRule:
    if isinstance(values, Labels):
        return MaskRule("labels", labels=values.values)
    if isinstance(values, tuple):
        return MaskRule("range", *values)
    if values == "binary":
        return MaskRule("nonzero")
    if mask.dtype.kind in "bf":
        return MaskRule("binary" if mask.dtype.kind == "b" else "unit")
    highest = int(mask.max())
    if highest <= 1:
        return MaskRule("binary")
    if highest < np.iinfo(mask.dtype).max / 16:
        raise BadInputError(
            f"mask maximum {highest} of {mask.dtype.name} looks like labels or a narrower range; "
            "pass values=(lo, hi), 'binary' or Labels"
        )
    return MaskRule("scale")


def _units(values: NDArray[Any], rule: MaskRule, kernel: FeatherKernel) -> NDArray[Any]:
    return apply_mask_rule(rule, values, keep_float=kernel.is_identity, where="mask array")


def _feather_whole(units: NDArray[Any], kernel: FeatherKernel, side: str) -> NDArray[np.float32]:
    def read(region: Region) -> NDArray[Any]:
        return units[region.slices]

    weight = feather_tile(kernel, Region.of_shape(units.shape), units.shape, read)
    return inside_only(weight) if side == "inside" and not kernel.is_identity else weight


def feather_units(units: da.Array, kernel: FeatherKernel, side: str = "both") -> da.Array:
    """`map_overlap` of the feather over a dask array of units; every block equals its part of the whole."""
    shape = units.shape
    depth = tuple(min(halo, max(n - 1, 0)) for halo, n in zip(kernel.halo_px, shape, strict=True))
    # dask would merge chunks thinner than the depth by itself (dask#11580): do it here, and say where each block
    # starts.
    units = units.rechunk(tuple(_wide_enough(c, d) for c, d in zip(units.chunks, depth, strict=True)))
    before = units.chunks
    starts = [np.concatenate([[0], np.cumsum(c)]).tolist() for c in before]

    def block(part: NDArray[Any], block_id: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        assert block_id is not None
        y, x = (starts[axis][index] for axis, index in enumerate(block_id))
        y1, x1 = (starts[axis][index + 1] for axis, index in enumerate(block_id))
        origin = max(0, y - depth[0]), max(0, x - depth[1])

        def read(region: Region) -> NDArray[Any]:
            return part[region.shift(-origin[0], -origin[1]).slices]

        weight = feather_tile(kernel, Region(y, x, y1, x1), shape, read)
        return inside_only(weight) if side == "inside" and not kernel.is_identity else weight

    meta = np.empty((0, 0), np.float32)
    if depth == (0, 0):
        direct: da.Array = da.map_blocks(block, units, dtype=np.float32, meta=meta)
        return direct
    out: da.Array = da.map_overlap(
        block,
        units,
        depth=dict(enumerate(depth)),
        boundary="none",
        trim=False,
        dtype=np.float32,
        meta=meta,
        chunks=before,
        allow_rechunk=False,
    )
    if out.chunks != before:
        raise AssertionError(f"map_overlap changed the chunks from {before} to {out.chunks}")
    return out


def _wide_enough(chunks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Chunks merged until none is thinner than the depth."""
    merged: list[int] = []
    for size in chunks:
        if merged and (merged[-1] < depth or size < depth):
            merged[-1] += size
        else:
            merged.append(size)
    return tuple(merged)


def blend(
    base: Array, overlay: Array, weight: Array, *, axes: Literal["yx", "yxc", "cyx"], mode: Mode = "over"
) -> Array:
    """`weight * overlay + (1 - weight) * base` per pixel and channel, float32 inside, rounded half to even; lazy for
    dask arrays.

    base, overlay: same shape, axes and dtype (uint8, uint16, float32). weight: float32 (y, x) in [0, 1]. axes: of the
    images, stated. The result is in native byte order. Raises UsageError for wrong parameters, BadInputError for arrays
    that do not agree or cannot be used (a weight with NaN or out of range in a dask array: when it is computed).
    """
    _require_arrays(base=base, overlay=overlay, weight=weight)
    if base.shape != overlay.shape or base.dtype != overlay.dtype:
        raise BadInputError(
            f"base is {base.shape} {base.dtype}, overlay is {overlay.shape} {overlay.dtype}; they must agree"
        )
    if axes not in ("yx", "yxc", "cyx") or base.ndim != len(axes):
        raise UsageError(f"axes {axes!r} do not describe an array of shape {base.shape}; use yx, yxc or cyx")
    if mode not in ("over", "average"):
        raise UsageError(f"mode {mode!r} must be over or average")
    plane = base.shape[:2] if axes != "cyx" else base.shape[1:]
    if base.dtype.name not in SUPPORTED_DTYPES:
        raise BadInputError(f"dtype {base.dtype.name} cannot be blended; use one of {', '.join(SUPPORTED_DTYPES)}")
    if weight.dtype.kind != "f":
        raise BadInputError(f"weight is {weight.dtype.name}, not float from 0 to 1; make it with tiledblend.feather")
    if weight.shape != plane:
        raise BadInputError(f"weight is {weight.shape}, but the images are {plane} (y, x)")
    if not any(isinstance(a, da.Array) for a in (base, overlay, weight)):
        return _blend_block(base, overlay, weight, axes=axes, mode=mode)
    base = _without_empty_chunks(da.asarray(base))
    overlay = da.asarray(overlay).rechunk(base.chunks)
    index, dtype = axes, base.dtype.newbyteorder("=")
    weight_chunks = base.chunks[1:] if axes == "cyx" else base.chunks[:2]
    weight = da.asarray(weight).rechunk(weight_chunks)
    return da.blockwise(
        _blend_block,
        index,
        base,
        index,
        overlay,
        index,
        weight,
        "yx",
        axes=axes,
        mode=mode,
        dtype=dtype,
        meta=np.empty((0,) * base.ndim, dtype),
    )


def _blend_block(
    base: NDArray[Any], overlay: NDArray[Any], weight: NDArray[np.float32], *, axes: str, mode: Mode
) -> NDArray[Any]:
    def to_yxc(array: NDArray[Any]) -> NDArray[Any]:
        return array[:, :, None] if axes == "yx" else np.moveaxis(array, 0, 2) if axes == "cyx" else array

    # Written so that NaN fails too.
    if not ((weight >= 0) & (weight <= 1)).all():
        raise BadInputError("weight has NaN or values outside 0 to 1; make it with tiledblend.feather")
    # OpenCV takes the bytes of every array for native ones.
    dtype = base.dtype.newbyteorder("=")
    if base.size == 0:
        return base.astype(dtype)
    colours = to_yxc(base.astype(dtype, copy=False))
    layers = [
        Contribution(colours),
        Contribution(to_yxc(overlay.astype(dtype, copy=False)), np.asarray(weight, np.float32)),
    ]
    pixels = blend_tile(layers, np.zeros(colours.shape[2], np.float32), dtype, mode).pixels
    return (
        pixels[:, :, 0]
        if axes == "yx"
        else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
        if axes == "cyx"
        else pixels
    )


def to_dask(composite: Composite, *, chunk: int = CHUNK) -> da.Array:
    """The composite as a lazy dask array (c, y, x) in its dtype: feather by `map_overlap`, blend chunkwise.

    chunk: side of the blocks in pixels. The same bits as `tiledblend.write` stores. No pixel is read yet, except masks
    of integers whose `mask_values` are "auto". The keys of the graph name the inputs as they are now: a cluster that
    still has an older file's blocks computes new ones. Raises UsageError, BadInputError.
    """
    if not isinstance(composite, Composite):
        raise UsageError(f"{composite!r} must be a Composite; use Composite([Layer(source), ...])")
    if type(chunk) is not int or chunk < 1:
        raise UsageError(f"chunk {chunk!r} must be a whole number of pixels, 1 or more")
    readers = layer_readers(composite, decide_rules(composite))
    height, width = composite.shape
    canvas = da.core.normalize_chunks((chunk, chunk), (height, width))
    token = tokenize(fingerprint(composite), chunk)
    masks = [
        mask
        for number, reader in enumerate(readers)
        if (mask := _canvas_mask_weight(reader, (height, width), canvas, chunk, f"{token}-{number}")) is not None
    ]
    block = _CanvasBlock(composite, readers)
    starts = [np.concatenate([[0], np.cumsum(c)]) for c in canvas]

    def compute(*weights: NDArray[np.float32], block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
        assert block_id is not None
        y, x = int(starts[0][block_id[-2]]), int(starts[1][block_id[-1]])
        y1, x1 = int(starts[0][block_id[-2] + 1]), int(starts[1][block_id[-1] + 1])
        return block(Region(y, x, y1, x1), weights)

    chunks = ((composite.channels,), *canvas)
    lifted = [mask[None] for mask in masks]
    meta = np.empty((0, 0, 0), composite.dtype)
    result: da.Array = da.map_blocks(
        compute, *lifted, name=f"composite-{token}", chunks=chunks, dtype=composite.dtype, meta=meta
    )
    return result


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
    """Blends one block of the canvas from feathered mask weights; reads the images itself."""

    def __init__(self, composite: Composite, readers: tuple[LayerReader, ...]) -> None:
        self.composite, self.readers = composite, readers

    def __call__(self, region: Region, weights: tuple[NDArray[np.float32], ...]) -> NDArray[Any]:
        masks = iter(weights)
        layers = [self._layer(reader, region, next(masks)[0] if reader.has_mask else None) for reader in self.readers]
        composite = self.composite
        done = blend_tile(
            layers, composite.background_values(), composite.dtype, composite.mode, has_alpha=composite.has_alpha
        )
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
    """The whole composite in memory: (y, x, c) in its dtype."""
    return np.moveaxis(to_dask(composite).compute(scheduler="threads"), 0, 2)
