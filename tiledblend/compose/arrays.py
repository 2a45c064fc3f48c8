"""The composable face: feathering and blending of dask (or numpy) arrays.

`feather` is one `map_overlap`, `blend` one chunkwise operation, on the same kernels as the writer.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from tiledblend.compose.masks import MaskRule, apply_mask_rule, not_binary, units_dtype
from tiledblend.compose.modes.mode import Ground, Laid
from tiledblend.compose.scene import MODES
from tiledblend.describe.layers import Labels, MaskValues, checked_mask_values
from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.kernels.blend import Contribution, Mode
from tiledblend.kernels.feather import feather_tile
from tiledblend.kernels.gaussian import FeatherKernel
from tiledblend.kernels.snap import inside_only
from tiledblend.sources.arrays import check_dtype
from tiledblend.sources.base import SUPPORTED_DTYPES

Array = Any


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
    return array.rechunk(tuple(wide_enough(c, 1) for c in array.chunks))


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
        _require_binary(mask)
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


def _require_binary(mask: Array) -> None:
    """Raise BadInputError for floats of more than one value that is no whole number."""
    if mask.dtype.kind != "f":
        return
    broken = mask % 1 != 0
    low, high = np.where(broken, mask, np.inf).min(), np.where(broken, mask, -np.inf).max()
    low, high = float(low), float(high)
    if low < high:
        raise BadInputError(
            not_binary("mask array", low, high)
            .replace("--mask-values", "values")
            .replace("--threshold, such as --threshold 0.5", "mask >= 0.5")
        )


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
    units = units.rechunk(tuple(wide_enough(c, d) for c, d in zip(units.chunks, depth, strict=True)))
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


def wide_enough(chunks: tuple[int, ...], depth: int) -> tuple[int, ...]:
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

    >>> base, overlay = np.zeros((1, 3), np.uint8), np.full((1, 3), 100, np.uint8)
    >>> blend(base, overlay, np.array([[0, 0.5, 1]], np.float32), axes="yx").tolist()
    [[0, 50, 100]]
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
    above = Contribution(to_yxc(overlay.astype(dtype, copy=False)), np.asarray(weight, np.float32))
    ground = Ground(np.zeros(colours.shape[2], np.float32), dtype, has_alpha=False, keeps_alpha=False)
    region = Region.of_shape((colours.shape[0], colours.shape[1]))
    pixels = MODES[mode](()).combine(Laid(region, region, {0: Contribution(colours), 1: above}, ground)).pixels
    return (
        pixels[:, :, 0]
        if axes == "yx"
        else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
        if axes == "cyx"
        else pixels
    )
