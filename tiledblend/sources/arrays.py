"""Numpy and dask arrays as sources, for Python callers."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiledblend.errors import BadInputError, UsageError
from tiledblend.geometry import Region
from tiledblend.sources.axes import find_plane
from tiledblend.sources.base import MASK_DTYPES, SUPPORTED_DTYPES, Alpha, Level, RasterSource, SourceInfo, SourceSpec
from tiledblend.sources.colour import rgb_doubt

NUMPY_TILE = 1024


def check_dtype(dtype: np.dtype[Any], *, mask: bool, source: str) -> np.dtype[Any]:
    """`dtype` in native byte order. Raises BadInputError by name for one that a layer (or a mask) cannot have."""
    native = dtype.newbyteorder("=")
    allowed = MASK_DTYPES if mask else SUPPORTED_DTYPES
    if native.name not in allowed:
        use = "a mask" if mask else "a layer's image"
        raise BadInputError(f"{source}: dtype {native.name} is not one that {use} can have ({', '.join(allowed)})")
    return native


def from_array(
    array: Any,
    *,
    axes: str,
    name: str | None = None,
    pixel_size_um: tuple[float, float] | None = None,
    mask: bool = False,
    alpha: Alpha = Alpha.NONE,
    rgb: bool | None = None,
) -> RasterSource:
    """A numpy or dask array as a source.

    axes: one letter per dimension, such as "yxc", "cyx" or "yx"; c (or s) is the channel, others must be of size 1.
    pixel_size_um: (y, x). mask: accept every dtype that a mask may have. alpha: what the last channel means.
    rgb: True for three channels (four with `alpha`) of red, green, blue, False for others; None: if they lie last.

    Pickling it pickles the whole numpy array, or the dask graph: for large numpy arrays prefer a file. A graph that no
    other process can be sent (it holds a lock or an open file) is computed by threads of this one. It must hold no
    results of a cluster (persist): tiles are read without asking a scheduler.
    Raises UsageError when axes do not fit the array or another argument is wrong, BadInputError for a dtype that cannot
    be used, masked arrays and sizes that are not known.

    >>> from_array(np.zeros((3, 40, 60), np.uint8), axes="cyx", rgb=True, pixel_size_um=(0.5, 0.5)).shape
    (40, 60)
    """
    label = str(name or f"{type(array).__module__.split('.')[0]} array")
    shape = getattr(array, "shape", None)
    if shape is None or not hasattr(array, "dtype"):
        raise UsageError(f"{label}: a numpy or dask array is needed, not {type(array).__name__}")
    if not isinstance(axes, (str, tuple, list)):
        raise UsageError(f"{label}: axes {axes!r} must be text with one letter per dimension, such as yxc")
    if not isinstance(alpha, Alpha):
        raise UsageError(f"{label}: alpha {alpha!r} must be one of {', '.join(map(str, Alpha))}")
    if len(axes) != len(shape):
        raise UsageError(f"{label}: axes {axes!r} name {len(axes)} dimensions, the array has {len(shape)}: {shape}")
    if any(not float(size).is_integer() or size < 1 for size in shape):
        raise BadInputError(f"{label}: shape {shape} must be known and at least 1 along every axis")
    require_plain(array, label)
    if pixel_size_um is not None:
        pixel_size_um = _pixel_size(pixel_size_um, label)
    made = ArraySource(array, axes="".join(axes), name=label, pixel_size_um=pixel_size_um, mask=mask, alpha=alpha)
    made.say_rgb(rgb, doubted=not mask)
    return made


def require_plain(array: Any, label: str) -> None:
    """Raise BadInputError for a masked array, whose hidden pixels would count, and for a dask array that was persisted
    on a cluster."""
    if np.ma.isMaskedArray(array) or np.ma.isMaskedArray(getattr(array, "_meta", None)):
        raise BadInputError(f"{label}: is a masked array; say what its hidden pixels are with filled(0)")
    distributed = sys.modules.get("distributed")
    layers = getattr(getattr(array, "dask", None), "layers", {})
    if distributed is not None and any(
        isinstance(value, distributed.Future)
        for layer in layers.values()
        if layer.is_materialized()
        for value in layer.values()
    ):
        raise BadInputError(
            f"{label}: its chunks are results on a cluster (persist), which a tile cannot fetch; give the array from "
            "before persist, or compute() it"
        )


def _pixel_size(given: Any, label: str) -> tuple[float, float]:
    try:
        y, x = (float(size) for size in given)
    except (TypeError, ValueError):
        y = x = math.nan
    if not (math.isfinite(y) and math.isfinite(x) and y > 0 and x > 0):
        raise UsageError(f"{label}: pixel_size_um {given!r} must be two positive numbers of micrometres, (y, x)")
    return y, x


class ArraySource(RasterSource):
    """An array in memory (numpy) or a lazy one (dask), read by slicing."""

    is_opened_by_name = False

    def __init__(
        self,
        array: Any,
        *,
        axes: str,
        name: str,
        pixel_size_um: tuple[float, float] | None = None,
        mask: bool = False,
        alpha: Alpha = Alpha.NONE,
    ) -> None:
        self.spec = SourceSpec(name)
        self.dtype = check_dtype(np.dtype(array.dtype), mask=mask, source=name)
        self._axes = find_plane(tuple(axes), array.shape, (), name)
        self._array = array
        self.channels = self._axes.channels(array.shape)
        if alpha is not Alpha.NONE and self.channels < 2:
            raise UsageError(f"{name}: an alpha channel needs a channel beside it; the array has {self.channels}")
        self.alpha = alpha
        colours = self.channels - (alpha is not Alpha.NONE)
        self.is_rgb = colours == 3 and self._axes.channel == len(axes) - 1
        self.pixel_size_um = pixel_size_um
        shape = self._axes.yx(array.shape)
        block = self._axes.yx(array.chunksize) if self._is_dask else (NUMPY_TILE, NUMPY_TILE)
        self.levels = (Level(shape, (min(block[0], shape[0]), min(block[1], shape[1]))),)
        self.info = SourceInfo("dask array" if self._is_dask else "numpy array", axes)

    def say_rgb(self, rgb: bool | None, *, doubted: bool) -> None:
        """Settle `is_rgb` as `from_array` has it. doubted: a note where channels may be RGB and nobody says it."""
        colours = self.channels - (self.alpha is not Alpha.NONE)
        if rgb and colours != 3:
            raise UsageError(f"{self.spec.path}: rgb needs three colour channels, and the array has {colours}")
        self.is_rgb = self.is_rgb if rgb is None else rgb
        if rgb is None and doubted:
            notes = rgb_doubt((), self.channels, self.dtype, is_rgb=self.is_rgb)
            self.info = replace(self.info, notes=tuple(note.replace("--rgb", "rgb=True") for note in notes))

    @property
    def _is_dask(self) -> bool:
        return hasattr(self._array, "dask") and hasattr(self._array, "chunksize")

    def _read(self, region: Region, level: int) -> NDArray[Any]:
        block = self._array[self._axes.index(region)]
        if self._is_dask:
            # The synchronous scheduler: this already runs in a worker's thread, which must not wait for others.
            block = block.compute(scheduler="synchronous")
        pixels = self._axes.to_yxc(np.asarray(block)).astype(self.dtype, copy=False).view()
        pixels.flags.writeable = False
        return pixels

    def contents(self) -> Iterable[tuple[str, str]]:
        """None: the fingerprint has the pixels' digest."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """Digest of a numpy array's values in native byte order, of a dask array's name (its graph's token)."""
        digest = hashlib.blake2b(
            f"{self.info.axes} {self._array.shape} {self.dtype} {self.alpha}".encode(), digest_size=32
        )
        if self._is_dask:
            digest.update(str(self._array.name).encode())
        else:
            digest.update(np.ascontiguousarray(self._array, self.dtype).data.cast("B"))
        return {"uri": f"memory:{self.spec.path}", "size": None, "modified": None, "structure": digest.hexdigest()}
